"""Integer levels of a uniform quantizer, and rounding to them, as Brevitas does it."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import Tensor, nn

from fxfactor.graph.questions import TRANSPOSED
from fxfactor.quantization.brevitas_layers import has_one_weight_scale

Bits = int | None
"""None is floating point."""

Limit = TypeVar("Limit", float, Tensor)


def integer_range(bits: int, signed: bool, narrow: bool = False) -> tuple[int, int]:
    """The least and the greatest level; a narrow range leaves out the one that has no counterpart.

    >>> integer_range(4, True), integer_range(4, True, narrow=True), integer_range(4, False)
    ((-8, 7), (-7, 7), (0, 15))
    """
    if signed:
        return -(2 ** (bits - 1)) + narrow, 2 ** (bits - 1) - 1
    return 0, 2**bits - 1 - narrow


def weight_range(bits: int) -> tuple[int, int]:
    """The least and the greatest level of a weight: narrow; of one bit −1 and 1, with nothing between them."""
    return (-1, 1) if bits == 1 else integer_range(bits, signed=True, narrow=True)


def scale_at(limit: Limit, bits: int, signed: bool) -> Limit:
    """The distance of two levels of the range ±limit (signed) or 0…limit."""
    low, high = integer_range(bits, signed)
    return limit / (-low if signed else high)


def round_to_levels(x: Tensor, scale: float | Tensor, low: int, high: int) -> Tensor:
    """clamp(round(x / scale), low, high) · scale, halves to even; without gradients."""
    return (x / scale).round_().clamp_(low, high).mul_(scale)


def rounded_weight(weight: Tensor, bits: Bits, layer: nn.Module | None = None) -> Tensor:
    """The weight as Brevitas rounds it: symmetric, narrow range, one scale for every output channel or in all."""
    if bits is None:
        return weight
    integers, scale = weight_levels(weight, bits, layer)
    return integers * scale


def weight_levels(weight: Tensor, bits: int, layer: nn.Module | None = None) -> tuple[Tensor, Tensor]:
    """The integers of a weight as Brevitas rounds it, and their scale, which broadcasts over them."""
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    one_scale = layer is not None and has_one_weight_scale(layer)
    others = [a for a in range(weight.dim()) if one_scale or a != axis]
    magnitudes = weight.abs()
    if bits == 1:
        return torch.where(weight < 0, -1.0, 1.0).to(weight), magnitudes.mean(others, keepdim=True)
    scale = magnitudes.amax(others, keepdim=True).clamp_min(1e-30) / weight_range(bits)[1]
    return (weight / scale).round(), scale
