"""Rounding to the levels of a quantizer, as Brevitas does it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized
from torch import nn

import fxfactor
from fxfactor.quantization.brevitas_layers import quantize_layer
from fxfactor.quantization.levels import (
    integer_range,
    round_to_levels,
    rounded_weight,
    scale_at,
    weight_levels,
    weight_range,
)

pytest.importorskip("scipy")


def test_weights_are_rounded_as_brevitas_rounds_them() -> None:
    qmodel = fxfactor.transform(randomized(ResidualNet(16)), level=0, bits=3, example_inputs=torch.randn(1, 3, 16, 16))
    layer = qmodel.get_submodule("block.conv1")
    torch.testing.assert_close(rounded_weight(layer.weight.detach(), 3), layer.quant_weight().value.detach())


@pytest.mark.parametrize("bits", [1, 2, 8])
@pytest.mark.parametrize(
    "plain", [nn.Conv2d(4, 6, 3, groups=2), nn.Linear(5, 3), nn.ConvTranspose2d(4, 6, 3, groups=2)]
)
def test_integers_and_scale_are_those_of_brevitas(plain: nn.Module, bits: int) -> None:
    layer: Any = quantize_layer(plain, bits)
    layer.weight.data.flatten()[:3] = torch.tensor([0.0, 1.0, -1.0])
    integers, scale = weight_levels(layer.weight.detach(), bits, layer)
    low, high = weight_range(bits)
    assert (integers.min(), integers.max()) == (low, high)
    assert torch.equal(integers, integers.round())
    torch.testing.assert_close(integers * scale, layer.quant_weight().value.detach())


@pytest.mark.parametrize("bits", [2, 3, 8])
@pytest.mark.parametrize("signed", [True, False])
def test_levels_are_those_of_the_bits(bits: int, signed: bool) -> None:
    low, high = integer_range(bits, signed)
    assert high - low + 1 == 2**bits
    assert (low == -high - 1) if signed else (low == 0)
    narrow = integer_range(bits, signed, narrow=True)
    assert narrow[1] - narrow[0] + 1 == 2**bits - 1
    assert narrow == ((-high, high) if signed else (0, high - 1))
    assert scale_at(6.0, bits, signed) == 6.0 / (-low if signed else high)


def test_values_go_to_the_nearest_level_and_halves_to_the_even_one() -> None:
    x = torch.tensor([-9.0, -1.25, -0.75, 0.25, 0.3, 0.75, 1.24, 99.0])
    before = x.clone()
    assert round_to_levels(x, 0.5, -4, 3).tolist() == [-2.0, -1.0, -1.0, 0.0, 0.5, 1.0, 1.0, 1.5]
    assert torch.equal(x, before)


def test_a_weight_has_a_scale_for_each_output_channel() -> None:
    weight = torch.tensor([[3.0, 1.0], [0.3, -0.1]])
    torch.testing.assert_close(rounded_weight(weight, 3), torch.tensor([[3.0, 1.0], [0.3, -0.1]]))
    torch.testing.assert_close(rounded_weight(weight.T.contiguous(), 3, nn.ConvTranspose1d(2, 2, 1)), weight.T)
    assert rounded_weight(weight, None) is weight
    assert not rounded_weight(torch.zeros(2, 3), 4).any()
