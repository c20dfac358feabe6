"""Fused quantizers: the same values and gradients as Brevitas' own, and Brevitas' own afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxfactor.quantization.brevitas_layers import make_quantizer, quantize_layer
from fxfactor.quantization.fused import fused_quantizers


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0))


def run(module: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone(memory_format=torch.preserve_format).requires_grad_()
    module.zero_grad()
    y = module(x)
    (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in module.parameters())]


def assert_fused_is_the_same(module: nn.Module, x: Tensor) -> None:
    expected = run(module, x)
    with fused_quantizers(module):
        assert "forward" in module.__dict__, "it was not fused"
        found = run(module, x)
    assert "forward" not in module.__dict__
    assert len(found) == len(expected) > 2
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()))


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("signed", "after_relu"), [(True, False), (False, True), (False, False)])
def test_activations_are_those_of_brevitas(bits, signed, after_relu, layout):
    assert_fused_is_the_same(
        make_quantizer(bits, 1.3, signed, after_relu), random(4, 5, 6, 7).contiguous(memory_format=layout)
    )


@pytest.mark.parametrize("limit", [-0.7, 1e-3])
def test_limits_that_are_negative_or_small(limit):
    quantizer = make_quantizer(4, 1.0, signed=True)
    with torch.no_grad():
        next(quantizer.parameters()).fill_(limit)
    assert_fused_is_the_same(quantizer, random(4, 30))


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(6, 4, 3, stride=2, padding=1, bias=False), (2, 6, 7, 5)),
        (nn.Conv2d(6, 12, 3, groups=6, padding=1, padding_mode="reflect"), (2, 6, 7, 5)),
        (nn.Conv1d(6, 4, 3), (2, 6, 9)),
        (nn.Linear(6, 4), (3, 6)),
    ],
    ids=["strided", "depthwise", "series", "linear"],
)
def test_weights_are_those_of_brevitas(bits, layer, shape):
    with torch.no_grad():
        layer.weight.copy_(random(*layer.weight.shape))
    assert_fused_is_the_same(quantize_layer(layer, bits), random(*shape))


def test_channel_of_zeros_stays_finite():
    layer = nn.Linear(6, 4)
    with torch.no_grad():
        layer.weight[1] = 0.0
    quantized = quantize_layer(layer, 4)
    with fused_quantizers(quantized):
        assert all(values.isfinite().all() for values in run(quantized, random(3, 6)))


def test_a_layer_that_is_not_known_is_left_to_brevitas():
    transposed = quantize_layer(nn.ConvTranspose2d(4, 6, 3), 4)  # its output channels are the second dimension
    with fused_quantizers(transposed):
        assert "forward" not in transposed.__dict__


def test_brevitas_is_back_after_an_exception():
    quantizer = make_quantizer(4, 1.0, signed=True)
    with pytest.raises(KeyError), fused_quantizers(quantizer):
        assert "forward" in quantizer.__dict__
        raise KeyError
    assert "forward" not in quantizer.__dict__


def test_two_at_a_time_leave_nothing_behind():
    quantizer = make_quantizer(4, 1.0, signed=True)
    with fused_quantizers(quantizer):
        with fused_quantizers(quantizer):
            pass
        assert "forward" in quantizer.__dict__
    assert "forward" not in quantizer.__dict__


def test_weights_loaded_meanwhile_are_used():
    quantizer, other = make_quantizer(4, 1.0, signed=True), make_quantizer(4, 0.3, signed=True)
    x = random(4, 30)
    with fused_quantizers(quantizer):
        quantizer.load_state_dict(other.state_dict())
        torch.testing.assert_close(quantizer(x), other(x))
