"""compress: every stage of it on small networks; FINN stands aside where only the order of things is tested."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized
from torch import Tensor, nn

import fxfactor
from fxfactor.compression import candidates
from fxfactor.compression import run as stages
from fxfactor.compression.plans import Choices
from fxfactor.errors import FxfactorError, InfeasibleError, PreconditionError
from fxfactor.finn.boards import Resources
from fxfactor.finn.target import Target
from fxfactor.plan.plan import Plan
from fxfactor.quantization.plain_copy import freeze

TRAIN = [(torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(n)), torch.arange(8) % 4) for n in range(2)]


@dataclass
class FakeEstimate:
    """As much of an estimate as a compression reads: fewer bits are smaller."""

    total: Resources
    shares: dict[str, float]
    fits: bool
    fps: float = 1234.0


@dataclass
class World:
    """What stands in the place of FINN and of the metric, and what was asked of it."""

    board: float = 1.0
    measured: list[str] = field(default_factory=list)
    built: list[Path] = field(default_factory=list)
    trained: list[tuple[str, int]] = field(default_factory=list)
    stop_at: int | None = None


BITS = {"whole 1": 8, "whole 2": 4, "factorized 1": 6, "factorized 2": 3}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    found = World()

    def plans_for(
        model: nn.Module, batches: Any, choices: Choices, target: Target, count: int, crew: Any
    ) -> dict[str, Plan]:
        graph = fxfactor.capture(model, batches[0][:1])
        return {name: Plan.uniform(graph, 0 if "whole" in name else 2, bits, bits) for name, bits in BITS.items()}

    def estimate_network(network: Any, example: Tensor, target: Target) -> FakeEstimate:
        bits = _bits(network)
        if bits == 3 and found.board < 0.3:
            raise InfeasibleError("required: at most 1 LUT; found: 2; remedy")
        share = bits / 10
        if target.target_fps == "max":
            return FakeEstimate(Resources(100, 1, 1, 0), {"lut": 0.9}, True, 8000.0 / bits)
        return FakeEstimate(Resources(100 * bits, bits, bits, 0), {"lut": share}, share <= found.board)

    def prepare(folder: Path, *arguments: Any, **settings: Any) -> None:
        found.built.append(folder)
        folder.mkdir()
        (folder / "estimate.json").write_text('{"board": "ZCU104", "fps": 1234.0}')

    def finetune(network: Any, loader: Any, *, epochs: int, **settings: Any) -> None:
        found.trained.append((str(_bits(network)), epochs))
        with torch.no_grad():
            next(network.parameters()).add_(1e-3 * epochs)

    for module, fakes in {
        stages: {
            "plans_for": plans_for,
            "prepare": prepare,
            "export": lambda *a, **k: None,
            "reference": lambda *a: None,
        },
        candidates: {"estimate_network": estimate_network, "finetune": finetune},
    }.items():
        for name, fake in fakes.items():
            monkeypatch.setattr(module, name, fake)
    return found


def _bits(network: Any) -> int:
    """Of the layers between the first and the last."""
    return min(layer.weight_bits or 0 for layer in Plan.of(network).layers.values())


def small() -> nn.Module:
    torch.manual_seed(0)
    return randomized(ResidualNet()).eval()


def _metric(world: World) -> Callable[[nn.Module, Any], float]:
    """A number that depends on the weights, so that training and rounding show in it."""

    def metric(network: nn.Module, validation: Any) -> float:
        assert not network.training
        if world.stop_at == len(world.measured):
            world.stop_at = None
            raise KeyboardInterrupt
        world.measured.append(validation)
        return float(next(network.parameters()).detach().sum())

    return metric


def run(world: World, folder: Path, **settings: Any) -> fxfactor.Compressed:
    model = small()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    result = fxfactor.compress(model, TRAIN, "validation", folder, metric=_metric(world), **{"epochs": 4, **settings})
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    return result


def test_half_of_each_kind_is_trained_shortly_and_half_of_these_to_the_end(world: World, tmp_path: Path) -> None:
    found = run(world, tmp_path)
    stages = [[row for row in found.rows if row.epochs == epochs] for epochs in (0, 1, 4)]
    assert [len(stage) for stage in stages] == [4, 2, 1]
    assert {row.whole for row in stages[1]} == {True, False}  # both kinds get a chance
    assert [epochs for _, epochs in world.trained] == [1, 1, 3]
    assert found.best.epochs == 4
    assert found.best.kept
    assert found.best.lut == 100 * BITS[found.best.name]
    assert found.plan == Plan.from_json(found.plans[found.best.name])
    assert world.built == [tmp_path / "build"]
    written = json.loads((tmp_path / "result.json").read_text())
    assert written == found.to_dict()
    assert Plan.load(tmp_path / "plan.json") == found.plan
    best = fxfactor.load(tmp_path / "best", small())
    assert {name: (layer.groups, layer.weight_bits) for name, layer in Plan.of(best).layers.items()} == {
        name: (layer.groups, layer.weight_bits) for name, layer in found.plan.layers.items()
    }
    assert not list((tmp_path / "candidates").glob("*.checkpoint"))


def test_the_result_is_a_page_where_pictures_can_be_drawn(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("matplotlib")
    found = run(world, tmp_path / "with", epochs=0)
    page = (tmp_path / "with" / "report.html").read_text()
    for section in ("candidates", "costs", "finn", "architecture", "plan"):
        assert f'<section id="{section}">' in page
    assert f"Taken: {found.best.name}, the best of 4 of 4 candidates" in page
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    run(world, tmp_path / "without", epochs=0)
    assert (tmp_path / "without" / "result.json").is_file()
    assert not (tmp_path / "without" / "report.html").exists()


@pytest.mark.parametrize("at", [0, 1, 3, 5, 7])
def test_a_run_that_was_stopped_goes_on_and_ends_the_same(at: int, world: World, tmp_path: Path) -> None:
    whole = run(world, tmp_path / "whole")
    calls = len(world.measured)
    world.measured.clear()
    world.stop_at = at
    with pytest.raises(KeyboardInterrupt):
        run(world, tmp_path / "broken")
    again = run(world, tmp_path / "broken")
    assert len(world.measured) == calls  # nothing was measured twice
    assert again.rows == whole.rows
    assert again.best == whole.best
    assert len(world.built) == 2
    run(world, tmp_path / "broken")
    assert len(world.measured) == calls
    assert len(world.built) == 2  # a run that has ended does nothing


def test_what_does_not_fit_is_not_trained(world: World, tmp_path: Path) -> None:
    world.board = 0.5
    found = run(world, tmp_path)
    assert {row.name for row in found.rows if row.epochs} <= {"whole 2", "factorized 2"}
    assert {row.name for row in found.rows if not row.fits} == {"whole 1", "factorized 1"}


def test_where_nothing_fits_the_error_says_what_each_takes(world: World, tmp_path: Path) -> None:
    world.board = 0.2
    with pytest.raises(FxfactorError, match=r"none of 4 candidates fits ZCU104.*factorized 2: required: at most 1 LUT"):
        run(world, tmp_path)


def test_training_that_makes_it_worse_is_taken_back(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def finetune(network: Any, loader: Any, *, epochs: int, **settings: Any) -> None:
        with torch.no_grad():
            next(network.parameters()).sub_(epochs)

    monkeypatch.setattr(candidates, "finetune", finetune)
    found = run(world, tmp_path)
    assert found.best.epochs == 0
    assert found.best.metric == max(row.metric for row in found.rows if row.metric is not None)
    network = fxfactor.load(tmp_path / "best", small())
    assert float(next(freeze(network).parameters()).detach().sum()) == pytest.approx(found.best.metric, rel=1e-4)


def test_a_candidate_that_a_short_training_made_worse_is_judged_by_what_it_was(world: World, tmp_path: Path) -> None:
    order = ["whole 1", "whole 2", "factorized 1", "factorized 2"]
    metrics = iter([0.95, *(0.9, 0.5, 0.8, 0.2), *(0.1, 0.7), 0.85])
    found = fxfactor.compress(small(), TRAIN, None, tmp_path, epochs=4, metric=lambda *_: next(metrics))
    stages = [[row.name for row in found.rows if row.epochs == epochs] for epochs in (0, 1, 4)]
    assert stages == [order, ["whole 1", "factorized 1"], ["whole 1"]]
    assert (found.best.name, found.best.epochs) == ("whole 1", 0)


def test_without_epochs_candidates_are_compared_as_they_are(world: World, tmp_path: Path) -> None:
    found = run(world, tmp_path, epochs=0)
    assert len(found.rows) == 4
    assert world.trained == []
    assert found.best.metric == max(row.metric for row in found.rows)  # type: ignore[type-var]


def test_for_the_highest_speed_the_fastest_within_the_tolerance_is_taken(world: World, tmp_path: Path) -> None:
    order = {"whole 1": 0.9, "whole 2": 0.897, "factorized 1": 0.893, "factorized 2": 0.8}  # and fewer bits are faster
    settings: dict[str, Any] = {"epochs": 0, "target_fps": "max"}

    def compressed(name: str, **more: Any) -> fxfactor.Compressed:
        metrics = iter([0.95, *order.values()])
        return fxfactor.compress(
            small(), TRAIN, None, tmp_path / name, metric=lambda *_: next(metrics), **settings, **more
        )

    found = compressed("a")
    assert found.tolerance == 0.01
    assert found.best.name == "whole 2"  # 6 bits is no faster than 4 bits here
    assert "as many frames/s as fit" in found.target
    found = compressed("b", tolerance=0.0)
    assert found.best.name == "whole 1"
    assert [row.name for row in found.front()] == ["factorized 2", "whole 2", "whole 1"]  # from fast to slow
    with pytest.raises(PreconditionError, match="its tolerance is"):
        compressed("b", tolerance=0.1)


def test_another_run_does_not_go_on_from_this_one(world: World, tmp_path: Path) -> None:
    run(world, tmp_path)
    with pytest.raises(PreconditionError, match="belongs to another compression: its training is"):
        run(world, tmp_path, epochs=5)
    with pytest.raises(PreconditionError, match="its target is"):
        run(world, tmp_path, target_fps=5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"tolerance": -0.1}, "required: tolerance"),
        ({"tolerance": math.nan}, "required: tolerance"),
        ({"epochs": -1}, "required: epochs"),
        ({"epochs": 1.5}, "required: epochs"),
        ({"plans": 0}, "required: plans"),
        ({"workers": 0}, "workers must be at least 1"),
    ],
)
def test_values_out_of_range_are_refused(settings: dict[str, Any], message: str, world: World, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match=message):
        run(world, tmp_path / "new", **settings)
    assert not (tmp_path / "new").exists()


def test_an_empty_loader_and_a_wrong_board_leave_no_folder(world: World, tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="compressing"):
        fxfactor.compress(small(), [], None, tmp_path / "new")
    with pytest.raises(FxfactorError, match="a board that FINN knows"):
        fxfactor.compress(small(), TRAIN, None, tmp_path / "new", board="ZCU")
    assert not (tmp_path / "new").exists()
