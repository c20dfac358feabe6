"""Integer levels of a uniform quantizer, and rounding to them, as Brevitas does it."""

from __future__ import annotations

from torch import Tensor, nn

from fxfactor.graph.questions import TRANSPOSED
from fxfactor.quantization.brevitas_layers import has_one_weight_scale

Bits = int | None
"""None is floating point."""


def rounded_weight(weight: Tensor, bits: Bits, layer: nn.Module | None = None) -> Tensor:
    """The weight as Brevitas rounds it: symmetric, narrow range, one scale for every output channel or in all."""
    if bits is None:
        return weight
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    one_scale = layer is not None and has_one_weight_scale(layer)
    others = [a for a in range(weight.dim()) if one_scale or a != axis]
    scale = weight.abs().amax(others, keepdim=True).clamp_min(1e-30) / (2 ** (bits - 1) - 1)
    return (weight / scale).round() * scale
