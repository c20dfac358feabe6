"""Weights that jump to and fro are frozen where they were most; others are not, and a run goes on with what it knew."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from fxfactor.quantization.brevitas_layers import quantize_layer
from fxfactor.quantization.weight_limits import learned_weight_limits, rounded_rows
from fxfactor.recovery.oscillations import FIRST, LAST, Freezing


@pytest.fixture
def layer() -> Iterator[nn.Module]:
    """One output channel with levels −7 … 7, a step of 0.1; its largest weight, 0.7, never moves."""
    found = quantize_layer(nn.Linear(4, 1, bias=False), 4)
    found.weight.data = torch.tensor([[0.7, 0.18, 0.0, 0.0]])  # type: ignore[union-attr]
    with learned_weight_limits(found):
        found.weight_limit.data.fill_(0.7)  # type: ignore[operator, union-attr]
        yield found


def put(layer: nn.Module, *weights: float) -> None:
    """What an optimizer's step would leave."""
    with torch.no_grad():
        layer.weight.copy_(torch.tensor([[0.7, *weights]]))  # type: ignore[operator]


def weights(layer: nn.Module) -> list[float]:
    return [round(float(each), 4) for each in layer.weight.detach().flatten()[1:]]  # type: ignore[union-attr]


def test_a_weight_that_jumps_stays_where_it_was_most(layer: nn.Module) -> None:
    freezing = Freezing(layer)
    for step in range(30):
        # the first is at 0.2 in two steps of three; the second rises, level after level; the third stays
        put(layer, 0.19 if step % 3 else 0.12, min(0.02 * step, 0.6), 0.31)
        freezing.step(0.0)
    assert freezing.frozen == 1
    assert weights(layer) == [0.2, 0.58, 0.31]
    put(layer, -0.3, -0.3, -0.3)
    freezing.step(0.0)
    assert weights(layer) == [0.2, -0.3, -0.3]


def test_the_threshold_falls(layer: nn.Module) -> None:
    """A turn in every fortieth step is fewer than the first threshold and more than the last, in every twentieth more than both."""
    assert LAST < 1 / 40 < FIRST < 1 / 20 < FIRST + LAST + 0.01
    frozen = []
    for every, progress in ((40, 0.0), (40, 1.0), (20, 0.0)):
        freezing = Freezing(layer)
        for step in range(400):
            put(layer, 0.12 if (step // every) % 2 else 0.18, 0.0, 0.0)
            freezing.step(progress)
        frozen.append(freezing.frozen)
    assert frozen == [0, 1, 1]


def test_a_step_aside_and_further_is_no_turn(layer: nn.Module) -> None:
    """Levels 0, 1, 2, 3 …: every step changes the level, always in the same direction."""
    freezing = Freezing(layer)
    for step in range(13):
        put(layer, 0.1 * (step - 6), 0.0, 0.0)
        freezing.step(1.0)
    assert freezing.frozen == 0


def test_what_it_remembers_can_be_kept(layer: nn.Module) -> None:
    one, kept = Freezing(layer), Freezing(layer)
    for step in range(40):
        if step == 3:  # nothing is frozen yet
            assert one.frozen == 0
            saved: dict[str, Tensor] = {name: value.clone() for name, value in one.named_tensors()}
            kept = Freezing(layer)
            kept.load(saved)
        put(layer, 0.12 if step % 2 else 0.18, 0.0, 0.0)
        one.step(0.5)
        if step >= 3:
            put(layer, 0.12 if step % 2 else 0.18, 0.0, 0.0)
            kept.step(0.5)
    assert one.frozen == kept.frozen == 1
    for (name, value), (other, again) in zip(one.named_tensors(), kept.named_tensors(), strict=True):
        assert name == other
        assert torch.equal(value, again)


def test_layers_without_learned_limits_are_left_alone() -> None:
    plain = nn.Sequential(nn.Linear(3, 2), quantize_layer(nn.Linear(2, 2), 4))
    assert rounded_rows(plain[1]) is None
    freezing = Freezing(plain)
    freezing.step(0.5)
    assert (freezing.layers, freezing.frozen) == ({}, 0)
