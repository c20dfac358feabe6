"""A copy of a quantized network for evaluation only: the same outputs, two to three times faster.

Brevitas rounds the weights anew at every call, and its quantizers are chains of small modules made for training. In the
copy the weights are rounded once, and a quantizer is one module that works in place.
"""

from __future__ import annotations

import copy
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.graph.questions import is_quantizer
from fxfactor.quantization.brevitas_layers import is_quantized_layer, is_signed, quantizer_bits
from fxfactor.quantization.levels import integer_range, round_to_levels


class FixedQuantizer(nn.Module):
    """x → clamp(round(x / scale), low, high) · scale: what a Brevitas quantizer with a fixed range computes."""

    def __init__(self, scale: Tensor, low: int, high: int) -> None:
        super().__init__()
        self.register_buffer("scale", scale)
        self.low, self.high = low, high

    def forward(self, x: Tensor) -> Tensor:
        return round_to_levels(x, cast(Tensor, self.scale), self.low, self.high)


@torch.no_grad()
def freeze(qmodel: GraphModule) -> GraphModule:
    """The network for evaluation: plain layers with rounded weights, and one module for every activation quantizer.

    Before: Brevitas layers and quantizers. After: the same graph with nn.Conv2d, nn.Linear … and `FixedQuantizer` at their paths,
    in eval mode, without gradients. `qmodel` is not changed. The outputs are the same up to rounding of the last bit.
    """
    replaced: dict[int, Any] = {}
    for module in qmodel.modules():
        if is_quantizer(module):
            replaced[id(module)] = _fixed(module)
        elif is_quantized_layer(module):
            replaced[id(module)] = plain_layer(module, cast(Any, module).quant_weight().value.detach().clone())
    return copy.deepcopy(qmodel, replaced).eval().requires_grad_(False)


def _fixed(quantizer: nn.Module) -> FixedQuantizer:
    bits, signed = quantizer_bits(quantizer), is_signed(quantizer)
    scale = cast(Any, quantizer).act_quant.scale()
    assert scale is not None
    return FixedQuantizer(scale.detach().clone(), *integer_range(bits, signed))


def plain_layer(layer: nn.Module, weight: Tensor) -> nn.Module:
    """A Brevitas layer's plain class, with the rounded weight, so that nothing of Brevitas stays behind."""
    kind = next(each for each in type(layer).__mro__ if each.__module__.startswith("torch.nn.modules"))
    with torch.device("meta"):
        plain = nn.Linear(1, 1) if kind is nn.Linear else cast(Any, kind)(1, 1, 1)
    for name in vars(plain).keys() - {"_parameters", "_buffers", "_modules"}:
        setattr(plain, name, copy.copy(getattr(layer, name)))
    plain.weight = nn.Parameter(weight)
    bias = cast("Tensor | None", layer.bias)
    plain.bias = None if bias is None else nn.Parameter(bias.detach().clone())
    return cast(nn.Module, plain)
