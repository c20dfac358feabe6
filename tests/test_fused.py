"""Fused activation quantizers: the same values and gradients as Brevitas' own, and Brevitas' own afterwards."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fxfactor.fused import fused_quantizers
from fxfactor.quantizers import make_quantizer


def run(quantizer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.clone().requires_grad_()
    quantizer.zero_grad()
    y = quantizer(x)
    (y * torch.linspace(-1, 2, y.numel()).reshape(y.shape)).sum().backward()
    return [y.detach(), x.grad, *(p.grad.clone() for p in quantizer.parameters())]


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize(("signed", "after_relu"), [(True, False), (False, True), (False, False)])
def test_values_and_gradients_are_those_of_brevitas(bits, signed, after_relu):
    quantizer = make_quantizer(bits, 1.3, signed, after_relu)
    x = torch.randn(4, 5, 6, 7, generator=torch.Generator().manual_seed(0))
    expected = run(quantizer, x)
    inner = quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant
    with fused_quantizers(quantizer):
        assert quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant is not inner
        found = run(quantizer, x)
    assert quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant is inner
    assert len(found) == len(expected) == 3
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_brevitas_is_back_after_an_exception():
    quantizer = make_quantizer(4, 1.0, signed=True)
    inner = quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant
    with pytest.raises(KeyError), fused_quantizers(quantizer):
        raise KeyError
    assert quantizer.act_quant.fused_activation_quant_proxy.tensor_quant.int_quant is inner
