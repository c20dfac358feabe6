"""One candidate of a compression, and candidates side by side in worker processes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized
from torch import nn
from trained import digits, digits_network

import fxfactor
from fxfactor.compression import candidates as module
from fxfactor.compression import run as stages
from fxfactor.compression.candidates import Candidates, Task, Training
from fxfactor.compression.result import Row
from fxfactor.errors import InfeasibleError
from fxfactor.finn.boards import Resources
from fxfactor.finn.target import Target
from fxfactor.plan.plan import Plan

BATCHES = [torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(n)) for n in range(2)]
TRAINING = Training(epochs=8, learning_rate=1e-3, label_weight=0.0, augment=None, seed=0)


class FakeEstimate:
    total, shares, fits, fps = Resources(7, 2, 3, 0), {"lut": 0.25, "dsp": 0.5}, True, 1234.0


def first_weight(network: nn.Module, validation: Any) -> float:
    return float(next(network.parameters()).detach().sum())


@pytest.fixture
def made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Candidates:
    torch.manual_seed(0)
    monkeypatch.setattr(module, "estimate_network", lambda *_: FakeEstimate())
    model = randomized(ResidualNet()).eval()
    return Candidates(model, BATCHES, None, first_weight, BATCHES, Target("ZCU104"), TRAINING, tmp_path)


def task(made: Candidates, level: int = 2, stage: int = 0, more: int = 0, epochs: int = 0) -> Task:
    plan = Plan.uniform(fxfactor.capture(made.model, BATCHES[0][:1]), level, 4, 4)
    return Task("a plan", plan.to_json(), stage, more, epochs)


def test_the_first_stage_rounds_and_the_next_trains_what_it_left(made: Candidates) -> None:
    first = task(made)
    ((which, row),) = made.steps(first)
    assert which is first
    assert row == Row("a plan", False, 0, row.metric, 0.75, 7, 2, 3, 0, 1234.0, True)
    rounded = fxfactor.load(made.place("a plan", 0), made.model)
    wanted = fxfactor.transform(made.model, plan=Plan.from_json(first.plan), calibration=BATCHES, recover="none")
    fxfactor.round_weights(made.model, wanted, BATCHES)
    assert all(torch.equal(tensor, wanted.state_dict()[name]) for name, tensor in rounded.state_dict().items())

    trained = task(made, stage=1, more=2, epochs=2)
    row = made.row(trained)
    assert row.epochs == 2
    again = fxfactor.load(made.place("a plan", 1), made.model)
    fxfactor.finetune(rounded, BATCHES, teacher=made.model, epochs=2, learning_rate=1e-3, label_weight=0.0, seed=0)
    assert all(torch.equal(tensor, rounded.state_dict()[name]) for name, tensor in again.state_dict().items())
    left = made.place("a plan", 1).with_suffix(".checkpoint")
    assert left.is_dir()  # for a run that is stopped before the row is kept
    made.forget_training(trained)
    assert not left.exists()


def test_whole_and_not_a_number_and_infeasible_are_said(made: Candidates, monkeypatch: pytest.MonkeyPatch) -> None:
    row = replace(made, metric=lambda *_: math.inf).row(task(made, level=0))
    assert (row.whole, row.metric, row.fits) == (True, None, True)

    def refuse(*_: Any) -> None:
        raise InfeasibleError("required: at most 1 LUT; found: 2; remedy")

    monkeypatch.setattr(module, "estimate_network", refuse)
    row = made.row(task(made))
    assert (row.fits, row.share, row.message) == (False, None, "required: at most 1 LUT")


def test_for_the_highest_speed_rows_say_so(made: Candidates) -> None:
    made = replace(made, target=Target("ZCU104", target_fps="max"))
    assert made.row(task(made)).cost == 1 / 1234.0


def test_workers_give_rows_in_any_order_and_none_is_asked_for_twice(
    made: Candidates, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[tuple[int, str, str]] = []

    def backwards(common: Candidates, tasks: Sequence[Task], workers: int, engine: str, caller: str) -> Iterator[Any]:
        asked.append((workers, engine, caller))
        for each in reversed(tasks):
            yield from common.steps(each)

    monkeypatch.setattr("fxfactor.workers.side_by_side", backwards)
    monkeypatch.setattr(
        stages, "prepare", lambda folder, *_, **__: (folder.mkdir(), (folder / "estimate.json").write_text("{}"))
    )
    monkeypatch.setattr(stages, "find_spec", lambda name: None)
    monkeypatch.setattr(stages, "export", lambda *_, **__: None)
    monkeypatch.setattr(stages, "reference", lambda *_: None)
    plans = {f"level {level}": Plan.from_json(task(made, level).plan) for level in (0, 1, 2)}
    monkeypatch.setattr(stages, "plans_for", lambda *_: plans)
    settings: dict[str, Any] = {"epochs": 0, "metric": first_weight}
    alone = fxfactor.compress(made.model, BATCHES, None, tmp_path / "alone", **settings)
    assert asked == []
    for _ in range(2):
        found = fxfactor.compress(made.model, BATCHES, None, tmp_path / "two", workers=2, **settings)
        assert asked == [(2, "local", "compress")]
        assert [row.name for row in found.rows] == list(plans)
        assert found.rows == alone.rows
    fxfactor.compress(made.model, BATCHES, None, tmp_path / "ray", engine="ray", **settings)
    assert asked[1:] == [(1, "ray", "compress")]


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("engine", ["local", "ray"])
def test_workers_find_what_one_process_finds(engine: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    here = str(Path(__file__).parents[1])  # workers import the network's class
    monkeypatch.setenv("PYTHONPATH", here)
    monkeypatch.syspath_prepend(here)
    data, test = digits("train"), digits("test")
    train = [(data[0][start : start + 64], data[1][start : start + 64]) for start in range(0, 512, 64)]
    settings: dict[str, Any] = {
        "board": "Pynq-Z2", "target_fps": 2000, "epochs": 2, "plans": 1, "levels": (0, 2), "bits": (2, 4), "widths": (1,),
        "join_bits": 4, "images": 128,
    }  # fmt: skip
    alone = fxfactor.compress(digits_network(), train, [test], tmp_path / "alone", **settings)
    if engine == "ray":
        ray = pytest.importorskip("ray")
    try:
        found = fxfactor.compress(
            digits_network(), train, [test], tmp_path / "together", workers=2, engine=engine, **settings
        )
    finally:
        if engine == "ray":
            ray.shutdown()
    assert found.rows == alone.rows
    assert found.plan == alone.plan
