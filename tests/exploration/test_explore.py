"""explore: which candidates are evaluated, what is resumed, what is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_exploration import TRAIN, VALIDATION, explore, halve, model, output_norm, without_seconds
from torch import nn

import fxfactor
from fxfactor import Exploration, PreconditionError
from fxfactor.exploration.explore import pairs_of, rungs_of
from fxfactor.exploration.result import plan_of
from fxfactor.exploration.rung import top1
from fxfactor.exploration.state_file import Candidate


@pytest.mark.finn
def test_finns_estimates_are_those_of_what_transform_makes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"levels": (2, "depthwise"), "bits": (4, None), "metric": top1}
    result = explore(tmp_path / "state", board="Pynq-Z2", target_fps=2000, **settings)
    qmodel = fxfactor.transform(model(), level=2, bits=4, calibration=TRAIN)
    fxfactor.export(qmodel, tmp_path / "model.onnx", target="finn")
    wanted = fxfactor.finn.estimate(tmp_path / "model.onnx", "Pynq-Z2", 2000, cache=tmp_path / "cache")
    quantized, floating = (next(each for each in result.candidates if each.weight_bits == bits) for bits in (4, None))
    assert (quantized.bram18, quantized.dsp, quantized.fps) == (wanted.total.bram18, wanted.total.dsp, wanted.fps)
    assert quantized.lut == pytest.approx(wanted.total.lut, rel=0.02)  # ranges, and so widths, may differ a little
    assert floating.status == "done"
    assert floating.lut is None
    assert "no FINN estimates" in floating.message
    assert "LUT" in str(result)
    assert {each.key for each in result.front("lut")} <= {each.key for each in result.candidates if each.lut}
    assert result.best(max_lut=quantized.lut, min_fps=2000).lut <= quantized.lut
    with pytest.raises(PreconditionError, match=r"lut ≤ 1 and frames/s ≥ 2,000"):
        result.best(max_lut=1, min_fps=2000)
    with pytest.raises(PreconditionError, match="board"):
        explore(tmp_path / "state", **settings)


def test_the_grid_is_evaluated_with_the_costs_of_the_networks(tmp_path: Path) -> None:
    result = explore(tmp_path / "state", metric=top1)
    assert [each.key for each in result.candidates] == [(str(n), 1.0, b, b) for n in (0, 2, 4) for b in (8, 3)]
    assert {each.status for each in result.candidates} == {"done"}
    for each in result.candidates:
        made = fxfactor.transform(model(), plan=plan_of(each), calibration=TRAIN)
        total = fxfactor.cost(made)
        assert (each.macs, each.bops, each.total_weight_bits) == (total.macs, total.bops, total.total_weight_bits)


def test_every_level_at_every_width_but_level_0_once(tmp_path: Path) -> None:
    result = explore(tmp_path / "state", levels=(0, 3), widths=(1, 2), bits=(8,))
    assert [each.rung for each in result.candidates] == ["0", "3", "3 ×2"]
    assert "3 ×2" in str(result)
    for each, width in zip(result.candidates[1:], (1, 2), strict=True):
        made = fxfactor.transform(model(), level=3, bits=8, width=width, calibration=TRAIN)
        assert (each.macs, each.total_weight_bits) == (fxfactor.cost(made).macs, fxfactor.cost(made).total_weight_bits)
        assert fxfactor.Plan.of(fxfactor.transform(model(), plan=plan_of(each))) == fxfactor.Plan.of(made)
        assert each.metric == pytest.approx(output_norm(made.eval(), VALIDATION), rel=1e-5)


def test_more_widths_may_be_asked_for_later(tmp_path: Path) -> None:
    first = explore(tmp_path / "state", levels=(2,), bits=(8,))
    later = explore(tmp_path / "state", levels=(2,), bits=(8,), widths=(1, 1.5))
    assert later.candidates[0] == first.candidates[0]  # with its seconds: it was not made again
    fresh = explore(tmp_path / "fresh", levels=(2,), bits=(8,), widths=(1, 1.5))
    assert without_seconds(later) == without_seconds(fresh)


def test_bits_are_walked_from_many_to_few() -> None:
    assert pairs_of((2, None, (4, 8), 8)) == ((None, None), (8, 8), (4, 8), (2, 2))
    with pytest.raises(PreconditionError, match="bits must be an int from 2 to 8"):
        pairs_of((1,))


def test_an_interrupt_loses_one_candidate_and_the_result_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    for finetune in (None, halve):
        name = f"{finetune}"[:5]
        unbroken = explore(tmp_path / f"{name}a", finetune=finetune)
        for stop_at in range(6):
            state, calls = tmp_path / f"{name}{stop_at}", []

            def metric(model: nn.Module, validation: Any, calls: list[int] = calls, stop_at: int = stop_at) -> float:
                calls.append(1)
                if len(calls) == stop_at + 1:
                    raise KeyboardInterrupt
                return output_norm(model, validation)

            metric.__qualname__ = "output_norm"
            with pytest.raises(KeyboardInterrupt):
                explore(state, metric=metric, finetune=finetune)
            assert len(Exploration.read(state).candidates) == stop_at
            assert without_seconds(explore(state, finetune=finetune)) == without_seconds(unbroken)


def test_a_finished_run_evaluates_nothing_again_and_more_bits_are_added(tmp_path: Path) -> None:
    first = explore(tmp_path / "state")
    seen: list[Candidate] = []
    assert explore(tmp_path / "state", progress=seen.append) == first
    assert seen == []
    more = explore(tmp_path / "state", bits=(3, 4, 8), progress=seen.append)
    assert [each.key for each in seen] == [(str(level), 1.0, 4, 4) for level in (0, 2, 4)]
    assert without_seconds(more) == without_seconds(explore(tmp_path / "whole", bits=(3, 4, 8)))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": ()}, r"explore needs levels and widths, found levels=\(\)"),
        ({"widths": ()}, r"explore needs levels and widths, found .*widths=\(\)"),
        ({"bits": ()}, "explore needs bits, found none"),
        ({"widths": (0,)}, "width must be a number above 0"),
        ({"levels": (-1,)}, "level must be an int of at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"engine": "cluster"}, 'engine must be "local" or "ray"'),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PreconditionError, match=words):
        explore(tmp_path / "state", **settings)
    assert not (tmp_path / "state").exists()


def test_rungs_are_every_level_at_every_width() -> None:
    found = rungs_of((0, 2, "depthwise", 2), (1, 2, 1))
    assert [(rung.level, rung.width) for rung in found] == [
        (0, 1.0),
        (2, 1.0),
        ("depthwise", 1.0),
        (2, 2.0),
        ("depthwise", 2.0),
    ]
    assert [rung.name for rung in found] == ["0", "2", "depthwise", "2 ×2", "depthwise ×2"]


def test_pairs_of_bits_go_from_many_to_few_each_once() -> None:
    assert pairs_of((2, (8, 4), None, (4, 8), 2, (None, 4))) == ((None, None), (None, 4), (8, 4), (4, 8), (2, 2))
    for wrong in ((4, 4, 4), (0, 4), (4, 1), 1):
        with pytest.raises(PreconditionError, match="bits"):
            pairs_of((wrong,))


@pytest.mark.parametrize(
    ("changed", "name"),
    [
        ({"boundary_bits": 4}, "boundary_bits"), ({"keep": ("block.conv1",)}, "keep"), ({"finetune": halve}, "finetune"),
        ({"images": 8}, "images"),
    ],
)  # fmt: skip
def test_another_exploration_does_not_go_on_from_this_one(tmp_path: Path, changed: dict[str, Any], name: str) -> None:
    explore(tmp_path / "state", levels=(0,), bits=(8,))
    with pytest.raises(PreconditionError, match=f"belongs to another exploration: its {name} is") as told:
        explore(tmp_path / "state", levels=(0,), bits=(8,), **changed)
    if name == "finetune":
        assert 'its finetune is "", here it is "halve"' in str(told.value)


def test_other_weights_or_validation_images_are_another_exploration(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"levels": (0,), "bits": (8,), "state": tmp_path / "state", "metric": output_norm}
    fxfactor.explore(model(), TRAIN, VALIDATION, **settings)
    other = model()
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    with pytest.raises(PreconditionError, match="its model is"):
        fxfactor.explore(other, TRAIN, VALIDATION, **settings)
    with pytest.raises(PreconditionError, match="its first validation images is"):
        fxfactor.explore(model(), TRAIN, VALIDATION[::-1], **settings)


def test_mixed_precision_is_fitted_and_evaluated_nearly_alike(tmp_path: Path) -> None:
    seen = []

    def metric(network: nn.Module, validation: Any) -> float:
        with torch.no_grad():
            seen.append(network(validation[0][0]).dtype)
        return output_norm(network, validation)

    plain = explore(tmp_path / "plain", bits=(8, None))
    mixed = explore(tmp_path / "mixed", bits=(8, None), precision="bfloat16", metric=metric)
    assert set(seen) == {torch.bfloat16}
    for one, other in zip(plain.candidates, mixed.candidates, strict=True):
        assert other.metric != one.metric
        assert other.metric == pytest.approx(one.metric, rel=0.03)
        assert (other.plan, other.bops) == (one.plan, one.bops)
    with pytest.raises(PreconditionError, match='another exploration: its precision is "bfloat16", here it is None'):
        explore(tmp_path / "mixed", bits=(8, None), metric=metric)
    with pytest.raises(PreconditionError, match='precision must be "float32" or "bfloat16", found .half'):
        explore(tmp_path / "new", precision="half")
    assert not (tmp_path / "new").exists()
