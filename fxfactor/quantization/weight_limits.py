"""Weight ranges that are trained with the weights, and gone when the training is over.

A Brevitas layer of ours takes its scale from the largest weight of each output channel: one outlier makes the steps of all
others wide, at 2 bits so wide that most weights become 0. While a network is trained each channel here has a limit of its own,
beyond which weights are clipped, a parameter like the weights (LSQ, Esser et al. 2020, arXiv 1902.08153). The limit never
exceeds the largest weight. So some weight is always at the last level, and afterwards the rounded weights, written in place of
those that were trained, give the layer's own quantizer the same scale and the same levels: nothing is added to the network.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxfactor.quantization.brevitas_layers import is_quantized_layer
from fxfactor.quantization.fused import SMALLEST, highest_level, with_weight

PARAMETER = "weight_limit"
"""Name of the parameter that a layer has while its limits are trained, (C_out, 1)."""

_PARTS = torch.linspace(1.0, 0.2, 33).tolist()
"""Limits that are tried to begin with, as parts of the largest weight."""


class _RoundWithin(torch.autograd.Function):
    """scale · clamp(round(weight / scale), ±high) with scale = min(|limit|, largest |weight| of the channel) / high."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, limit: Tensor, high: int) -> Tensor:
        rows = weight.flatten(1)
        largest = rows.abs().amax(1, keepdim=True)
        scale = _scale(largest, limit, high)
        levels = rows / scale
        rounded = levels.round().clamp_(-high, high)
        inside = levels.abs() <= high * (1 + 1e-6)  # the largest weight is inside where it is the limit
        ctx.save_for_backward(rounded - levels * inside, inside, limit, largest)
        ctx.high = high
        return rounded.mul_(scale).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None]:
        of_scale, inside, limit, largest = ctx.saved_tensors
        rows = gradients[0].flatten(1)
        of_limit = (rows * of_scale).sum(1, keepdim=True).div_(ctx.high)
        of_limit *= (limit.abs() <= largest) | (of_limit > 0)  # beyond the largest weight it may only come back
        return (rows * inside).view(gradients[0].shape), of_limit * limit.sign(), None


@contextmanager
def learned_weight_limits(graph: nn.Module) -> Iterator[None]:
    """Give the quantized layers of `graph` a limit for each output channel meanwhile, a parameter named `weight_limit`.

    Before: layers whose weights are symmetric integers scaled by the largest of each output channel; others stay as they are.
    The limits start where the squared error of the weights is least. After, also after an error: the same modules and
    parameters as before, with weights that lie on their levels.
    """
    changed: list[tuple[Any, int]] = []
    try:
        for layer in graph.modules():
            high = highest_level(layer) if is_quantized_layer(layer) else None
            if high is not None and "forward" not in layer.__dict__:
                limit = nn.Parameter(_best_limits(cast(Tensor, layer.weight).detach(), high))
                layer.register_parameter(PARAMETER, limit)
                layer.__dict__["forward"] = partial(_layer, layer, high)
                changed.append((layer, high))
        yield
    finally:
        for layer, high in changed:
            with torch.no_grad():
                layer.weight.copy_(_RoundWithin.apply(layer.weight, layer.weight_limit, high))
            del layer.__dict__["forward"], layer._parameters[PARAMETER]


def rounded_rows(layer: Any) -> tuple[Tensor, Tensor] | None:
    """Levels (C_out, K) and scales (C_out, 1) of a layer while its limits are trained; None where they are not.

    >>> levels, scale = rounded_rows(layer)  # doctest: +SKIP
    """
    limit = getattr(layer, PARAMETER, None)
    if limit is None:
        return None
    high = cast(int, highest_level(layer))
    rows = layer.weight.detach().flatten(1)
    scale = _scale(rows.abs().amax(1, keepdim=True), limit.detach(), high)
    return (rows / scale).round_().clamp_(-high, high), scale


def _scale(largest: Tensor, limit: Tensor, high: int) -> Tensor:
    return torch.minimum(limit.abs(), largest).clamp_min_(SMALLEST).div_(high)


def _layer(layer: Any, high: int, x: Tensor) -> Tensor:
    return with_weight(layer, x, cast(Tensor, _RoundWithin.apply(layer.weight, layer.weight_limit, high)))


def _best_limits(weight: Tensor, high: int) -> Tensor:
    """Where clipping and rounding lose least, (C_out, 1)."""
    rows = weight.flatten(1)
    largest = rows.abs().amax(1, keepdim=True)
    best, least = largest.clone(), torch.full_like(largest, torch.inf)
    for part in _PARTS:
        limit = part * largest
        error = (_RoundWithin.apply(rows, limit, high) - rows).square().sum(1, keepdim=True)
        best = torch.where(error < least * (1 - 1e-6), limit, best)
        least = torch.minimum(error, least)
    return torch.where(largest > 0, best, best.max())  # a channel of zeros may grow to what the others have
