"""The walk along one level's bits: what it takes over, fine-tunes and survives."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from small_exploration import TRAIN, VALIDATION, explore, halve, model, output_norm
from torch import Tensor, nn

import fxfactor
from fxfactor import PreconditionError
from fxfactor.exploration.result import plan_of


def test_at_8_bits_a_candidate_is_what_transform_makes(tmp_path: Path) -> None:
    result = explore(tmp_path / "state", levels=(3,), bits=(8, None))
    for each, bits in zip(result.candidates, (None, 8), strict=True):
        made = fxfactor.transform(model(), level=3, bits=bits, calibration=TRAIN)
        assert each.metric == pytest.approx(output_norm(made.eval(), VALIDATION), rel=1e-5)


def test_a_level_takes_over_what_the_one_before_has_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxfactor.exploration import rung as walk

    fitted: list[set[str]] = []

    def spy(original: Any, graph: Any, batches: Any, done: set[str], **settings: Any) -> Any:
        fitted.append(set(done))
        return real(original, graph, batches, done=done, **settings)

    real = walk.fit_to_outputs
    monkeypatch.setattr(walk, "fit_to_outputs", spy)
    together = explore(tmp_path / "a", levels=(4, 5), bits=(8,))
    assert fitted == [set(), {"stem.0", "block.conv1", "block.conv2", "classifier"}]
    assert together.candidates[0].metric == together.candidates[1].metric


def test_fine_tuning_goes_on_from_the_bits_before(tmp_path: Path) -> None:
    seen = []

    def tune(qmodel: nn.Module, original: nn.Module) -> None:
        seen.append(float(qmodel.get_submodule("block.conv2").weight.detach().norm()))
        halve(qmodel, original)

    explore(tmp_path / "state", levels=(0,), bits=(8, 4, 3), finetune=tune)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[1] > seen[2]


def test_a_candidate_that_raises_or_gives_nan_is_marked_and_the_walk_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def metric(model: nn.Module, validation: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no good")
        return math.nan if len(calls) == 3 else float(len(calls))

    result = explore(tmp_path / "state", metric=metric)
    assert [each.status for each in result.candidates] == ["done", "failed", "nan", "done", "done", "done"]
    assert result.candidates[1].message == "ValueError: no good"
    assert result.candidates[2].message == "the metric is nan"
    assert {each.status for each in result.front()} == {"done"}
    assert "no good" in str(result)
    with pytest.raises(PreconditionError, match="has no plan: it failed: ValueError"):
        plan_of(result.candidates[1])


class Unlike(nn.Module):
    """A wide convolution, then a narrow one: a higher level splits the first further, and not the second."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, padding=1)
        self.wide = nn.Conv2d(32, 8, 3, padding=1)
        self.narrow = nn.Conv2d(8, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.narrow(self.wide(self.stem(x).relu()).relu()).mean((2, 3))


def test_what_lies_behind_a_site_that_differs_is_fitted_anew(tmp_path: Path) -> None:
    def found(name: str, levels: tuple[int, ...]) -> float | None:
        torch.manual_seed(0)
        settings = {"levels": levels, "bits": (None,), "metric": output_norm, "state": tmp_path / name}
        return fxfactor.explore(Unlike(), TRAIN, VALIDATION, **settings).candidates[-1].metric

    assert found("both", (3, 4)) == found("alone", (4,))
