"""Brevitas layers and quantizers as we make them: the same tensors, the wanted levels, ranges that can be set."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxfactor.graph import is_quantizer
from fxfactor.quantization.brevitas_layers import (
    bits_of,
    get_limit,
    is_quantized_layer,
    is_signed,
    make_quantizer,
    quantize_layer,
    quantizer_bits,
    set_limit,
    weight_bits_of,
)
from fxfactor.quantization.levels import rounded_weight

LAYERS = [
    (nn.Conv1d(4, 6, 3, stride=2, padding=1), (2, 4, 9)),
    (nn.Conv2d(4, 6, (3, 1), dilation=2, groups=2, bias=False), (2, 4, 8, 7)),
    (nn.Conv2d(4, 4, 3, padding="same", padding_mode="circular"), (2, 4, 8, 7)),
    (nn.Conv3d(2, 3, 2), (1, 2, 4, 4, 4)),
    (nn.ConvTranspose2d(4, 6, 3, stride=2, output_padding=1, groups=2), (2, 4, 5, 6)),
    (nn.Linear(5, 3), (2, 5)),
]


@pytest.mark.parametrize(("layer", "shape"), LAYERS, ids=lambda value: type(value).__name__)
def test_the_quantized_layer_has_the_same_tensors(layer: nn.Module, shape: tuple[int, ...]) -> None:
    layer.weight.requires_grad_(False)  # type: ignore[operator, union-attr]
    found = quantize_layer(layer.eval(), 3)
    assert is_quantized_layer(found)
    assert not is_quantized_layer(layer)
    assert (weight_bits_of(found), weight_bits_of(layer)) == (3, None)
    assert found.weight.data_ptr() == layer.weight.data_ptr()  # type: ignore[operator, union-attr]
    assert (found.bias is None) == (layer.bias is None)
    assert not found.weight.requires_grad
    assert not found.training
    x = torch.randn(shape)
    with torch.no_grad():
        assert found(x).shape == layer(x).shape


@pytest.mark.parametrize("bits", [2, 3, 8])
def test_weights_have_one_scale_per_channel_and_the_wanted_levels(bits: int) -> None:
    layer = nn.Conv2d(16, 5, 3)
    layer.weight.data.mul_(torch.tensor([1.0, 2.0, 0.1, 5.0, 1.0]).view(-1, 1, 1, 1))
    weight = quantize_layer(layer, bits).quant_weight()  # type: ignore[operator]
    most = 2 ** (bits - 1) - 1
    levels = weight.value / weight.scale
    torch.testing.assert_close(levels, levels.round(), rtol=0, atol=1e-4)
    assert weight.scale.numel() == 5
    torch.testing.assert_close(levels.flatten(1).abs().amax(1), torch.full((5,), float(most)))
    limits = layer.weight.detach().flatten(1).abs().amax(1)
    torch.testing.assert_close(weight.scale.flatten() * most, limits)


@pytest.mark.parametrize(
    ("signed", "expected"),
    [(True, [-4, -4, -2, 0, 2, 3, 3]), (False, [0, 0, 0, 0, 4, 7, 7])],
)
def test_levels_of_activations(signed: bool, expected: list[int]) -> None:
    quantizer = make_quantizer(3, 2.0, signed).eval()
    scale = 2.0 / (4 if signed else 7)
    x = torch.tensor([-9.0, -2.0, -1.0, 0.0, 1.1, 2.0, 9.0])
    torch.testing.assert_close(quantizer(x), torch.tensor(expected) * scale)


def test_bits_sign_and_range_can_be_read_and_set() -> None:
    signed, unsigned = make_quantizer(4, 3.0, signed=True), make_quantizer(5, 3.0, signed=False)
    assert is_quantizer(signed)
    assert (quantizer_bits(signed), quantizer_bits(unsigned)) == (4, 5)
    assert (bits_of(signed), bits_of(nn.ReLU()), bits_of(None)) == (4, None, None)
    assert is_signed(signed)
    assert not is_signed(unsigned)
    assert get_limit(signed) == pytest.approx(3.0)
    set_limit(signed, 0.5)
    assert get_limit(signed) == pytest.approx(0.5)
    assert float(signed(torch.tensor(9.0)).detach()) == pytest.approx(0.5 * 7 / 8)


def test_sensitivities_round_weights_as_brevitas_does() -> None:
    for layer, _ in LAYERS:
        wanted = quantize_layer(layer, 4).quant_weight().value  # type: ignore[operator]
        torch.testing.assert_close(rounded_weight(layer.weight, 4, layer), wanted, rtol=1e-6, atol=1e-7)  # type: ignore[arg-type]


def test_no_range_goes_beyond_where_the_activation_clips() -> None:
    quantizer = make_quantizer(4, 100.0, signed=False, after_relu=True, at_most=6.0)
    assert get_limit(quantizer) == pytest.approx(6.0)
    set_limit(quantizer, 7.0)
    assert get_limit(quantizer) == pytest.approx(6.0)
    set_limit(quantizer, 2.0)
    assert get_limit(quantizer) == pytest.approx(2.0)


def test_weights_of_one_bit_are_two_magnitudes_per_channel() -> None:
    layer = nn.Conv2d(16, 5, 3)
    layer.weight.data.mul_(torch.tensor([1.0, 2.0, 0.1, 5.0, 1.0]).view(-1, 1, 1, 1))
    found = quantize_layer(layer, 1)
    assert weight_bits_of(found) == 1
    weight = found.quant_weight()  # type: ignore[operator]
    torch.testing.assert_close(weight.scale.flatten(), layer.weight.detach().abs().flatten(1).mean(1))
    torch.testing.assert_close(weight.value, torch.where(layer.weight < 0, -weight.scale, weight.scale))
    weight.value.square().sum().backward()
    assert found.weight.grad.abs().sum() > 0  # type: ignore[operator, union-attr]
