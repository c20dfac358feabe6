"""Which plans are tried, by FINN's prices of a small network; what cannot fit is known before anything is measured."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch
from trained import digits, digits_network

import fxfactor
from fxfactor.compression import plans as module
from fxfactor.compression.plans import Choices, is_whole, plans_for
from fxfactor.errors import PreconditionError
from fxfactor.finn.target import Target
from fxfactor.planning import board

pytestmark = pytest.mark.finn
CHOICES = Choices(levels=(0, 2, "depthwise"), bits=(2, 4), widths=(1,), boundary_bits=8, join_bits=(4,), keep=())


def images() -> list[torch.Tensor]:
    return [digits("train")[0][:64]]


def test_each_kind_has_plans_from_dear_to_cheap_and_none_twice() -> None:
    found = plans_for(digits_network(), images(), CHOICES, Target("ZCU104", target_fps=2000), 3)
    assert [name for name in found if name.endswith(" 1")][:2] == ["whole 1", "factorized 1"]
    plans = [tuple(sorted((site, str(layer)) for site, layer in plan.layers.items())) for plan in found.values()]
    assert len(set(plans)) == len(plans)
    for kind in ("whole", "factorized"):
        row = [plan for name, plan in found.items() if name.startswith(kind)]
        assert 1 <= len(row) <= 3
        shares = [plan.explain().totals["share"] for plan in row]
        losses = [sum(choice.loss for choice in plan.explain().layers.values()) for plan in row]
        assert shares == sorted(shares, reverse=True)
        assert losses == sorted(losses)
        assert all(is_whole(plan) for plan in row) == (kind == "whole")
    factorized = found["factorized 1"].layers
    assert all(layer.groups is not None for name, layer in factorized.items() if name.startswith("block"))


def test_for_the_highest_speed_plans_lie_at_speeds_each_twice_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, bool]] = []
    real = board.price_space

    def price_space(graph: Any, space: Any, target: Target, crew: Any) -> Any:
        asked.append((target.cycles, len(next(iter(space.weight_bits.values()))) == 1))
        return real(graph, space, target, crew)

    monkeypatch.setattr(module, "price_space", price_space)
    choices = replace(CHOICES, boundary_bits=None)
    found = plans_for(digits_network(), images(), choices, Target("Pynq-Z2", target_fps="max"), 3)
    for kind in ("whole", "factorized"):
        row = [plan for name, plan in found.items() if name.startswith(kind)]
        assert 1 <= len(row) <= 3
        assert all(is_whole(plan) for plan in row) == (kind == "whole")
        budgets = [plan.explain().budget["cycles"] for plan in row]
        ratios = [slow / fast for slow, fast in pairwise(budgets)]
        assert ratios == pytest.approx(
            [round(ratio / 2) * 2 for ratio in ratios], rel=0.02
        )  # the same plan is told once
        assert all(plan.explain().totals["cycles"] <= plan.explain().budget["cycles"] for plan in row)
        losses = [sum(choice.loss for choice in plan.explain().layers.values()) for plan in row]
        assert losses == sorted(losses)
    assert len(asked) == len(set(asked))  # no speed is priced twice
    fastest = min(plan.explain().budget["cycles"] for plan in found.values())
    with pytest.raises(PreconditionError):  # a step faster there is no place for anything
        plans_for(digits_network(), images(), choices, Target("Pynq-Z2", target_fps=int(2e8 / fastest * 1.5)), 1)


def test_a_board_that_is_too_small_is_known_before_anything_is_measured(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("measured before the prices were compared with the board")

    monkeypatch.setattr(module, "measure_errors", measured)
    data = digits("train")
    loader = [(data[0][:64], data[1][:64])]
    with pytest.raises(PreconditionError, match="at most 100 look-up tables"):
        fxfactor.compress(
            digits_network(), loader, loader, tmp_path / "out", board="Pynq-Z2", target_fps=2000, limits={"lut": 100},
            levels=(0, 2), bits=(2, 4), widths=(1,), join_bits=4, images=64,
        )  # fmt: skip


@pytest.mark.slow
def test_from_a_trained_network_to_a_build(tmp_path: Path) -> None:
    data, test = digits("train"), digits("test")
    train = [(data[0][start : start + 64], data[1][start : start + 64]) for start in range(0, 1024, 64)]
    found = fxfactor.compress(
        digits_network(), train, [test], tmp_path / "out", board="Pynq-Z2", target_fps=2000, epochs=2, plans=2,
        levels=(0, 2, "depthwise"), bits=(2, 4), widths=(1,), join_bits=4, images=256,
    )  # fmt: skip
    assert found.best.fits
    assert found.best.metric is not None and found.best.metric > found.original - 0.1
    again = fxfactor.load(tmp_path / "out" / "best", digits_network())
    assert fxfactor.exploration.rung.top1(again.eval(), [test]) == pytest.approx(found.best.metric, abs=0.01)
    assert fxfactor.finn.check(tmp_path / "out" / "model.onnx") == []
    assert (tmp_path / "out" / "build" / "build.py").is_file() or list((tmp_path / "out" / "build").glob("*.py"))
    assert {row.epochs for row in found.rows} == {0, 1, 2}


def test_what_the_network_needs_beside_its_layers_is_taken_off_the_board(monkeypatch: pytest.MonkeyPatch) -> None:
    beside = {"lut": 0.0}

    def estimate_plan(model: Any, plan: fxfactor.Plan, example: Any, target: Target) -> dict[str, float]:
        asked.append(plan)
        return {"lut": firsts(plan) + beside["lut"], "bram": 0, "dsp": 0, "uram": 0}

    def beside_sites(space: Any, plan: fxfactor.Plan, whole: Any) -> dict[str, float]:
        return {"lut": whole["lut"] - firsts(plan)}

    def firsts(plan: fxfactor.Plan) -> float:
        return plan.explain().totals["lut"]

    monkeypatch.setattr(board, "estimate_plan", estimate_plan)
    monkeypatch.setattr(board, "beside_sites", beside_sites)
    asked: list[fxfactor.Plan] = []
    choices = replace(CHOICES, join_bits=(4, 8))
    roomy = plans_for(digits_network(), images(), choices, Target("Pynq-Z2", target_fps=2000), 1)
    assert {plan.join_bits for plan in asked} == {4, 8}  # each is estimated once
    assert len(asked) == 2
    most = max(firsts(plan) for plan in roomy.values())
    beside["lut"] = Target("Pynq-Z2").available.lut - 0.9 * most
    for plan in plans_for(digits_network(), images(), choices, Target("Pynq-Z2", target_fps=2000), 1).values():
        assert firsts(plan) <= 0.9 * most
