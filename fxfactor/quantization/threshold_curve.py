"""A monotone curve before a quantizer, whose thresholds it moves, and that costs nothing in hardware.

A uniform quantizer has its thresholds at equal distances, where the values seldom lie. FINN compares with any thresholds that
rise, and only the levels that come out are at equal distances. So a trained function that rises, followed by a quantizer, is
again a quantizer of the same bits with thresholds of its own: Nonuniform-to-Uniform Quantization (Liu et al. 2022, arXiv
2111.14826). Here the function is linear in pieces. As ONNX it is a chain of subtractions and PReLUs.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

_CHUNK = 1 << 16
"""Elements that are worked on at a time on a CPU: they and what is computed from them stay in its cache."""


class _Pieces(torch.autograd.Function):
    """shift + slopes[0] · x + Σ_k (slopes[k + 1] − slopes[k]) · relu(x − knots[k]); keeps no tensor but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, knots, slopes)
        y = torch.empty_like(x)
        bends = list(zip(knots.tolist(), slopes.diff().tolist(), strict=True))
        for part, out in _chunks(x, y):
            torch.mul(part, slopes[0], out=out).add_(shift)
            beyond = torch.empty_like(part)
            for knot, bend in bends:
                out.add_(torch.sub(part, knot, out=beyond).relu_(), alpha=bend)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, knots, slopes = ctx.saved_tensors
        gradient = gradients[0]
        if gradient.stride() != x.stride():
            gradient = torch.empty_like(x).copy_(gradient)
        of_x = torch.empty_like(x)
        bends = slopes.diff()
        listed = list(zip(knots.tolist(), bends.tolist(), strict=True))
        sums = x.new_zeros(len(slopes), 2)  # of the gradient and of gradient · x: everywhere, and beyond each knot
        for part, given, out in _chunks(x, gradient, of_x):
            torch.mul(given, slopes[0], out=out)
            found = [given.sum(), torch.dot(given, part)]
            beyond = torch.empty_like(part)
            for knot, bend in listed:
                torch.ops.aten.threshold_backward.grad_input(given, part, knot, grad_input=beyond)
                found += [beyond.sum(), torch.dot(beyond, part)]
                out.add_(beyond, alpha=bend)
            sums += torch.stack(found).reshape(sums.shape)
        total, with_x = sums.unbind(1)
        steps = torch.cat([with_x[:1], with_x[1:] - knots * total[1:]])
        return of_x, total[0], -bends * total[1:], steps - F.pad(steps[1:], (0, 1))


def _chunks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Views of a part of each tensor, of one shape and one order in memory, one after the other."""
    flat = [_in_memory_order(each) for each in tensors]
    size = _CHUNK if flat[0].device.type == "cpu" else max(1, len(flat[0]))
    return zip(*(each.split(size) for each in flat), strict=True)


def _in_memory_order(x: Tensor) -> Tensor:
    """A view of a dense tensor with one dimension, its elements in the order of memory."""
    return x.as_strided((x.numel(),), (1,))


class ThresholdCurve(nn.Module):
    """y = f(x) elementwise, f continuous, rising and linear in `pieces` pieces, f(0) = 0; the identity to begin with.

    Parameters: `knots` (pieces − 1,), where the slope changes, in rising order; `log_slopes` (pieces,). `low` and `high`: the
    range of the quantizer behind it, over which the knots are spread evenly.
    """

    def __init__(self, pieces: int, low: float, high: float) -> None:
        super().__init__()
        self.knots = nn.Parameter(torch.linspace(low, high, pieces + 1)[1:-1].clone())
        self.log_slopes = nn.Parameter(torch.zeros(pieces))

    def forward(self, x: Tensor) -> Tensor:
        """Any shape in, the same out."""
        knots, slopes = self._curve()
        shift = -(slopes.diff() * (-knots).relu()).sum()  # f(0) = 0
        return cast(Tensor, _Pieces.apply(_dense(x.to(knots.dtype)), shift, knots, slopes))

    def _curve(self) -> tuple[Tensor, Tensor]:
        """Knots in rising order, also where training has let one overtake another, and slopes."""
        return cast(Tensor, self.knots).sort().values, cast(Tensor, self.log_slopes).exp()

    @torch.no_grad()
    def as_chain(self) -> nn.Sequential:
        """The same function by subtractions, PReLUs, one multiplication and one addition, which ONNX has."""
        knots, slopes = (each.double() for each in self._curve())
        bent = nn.Sequential()
        at = knots.clone()  # where the knots have come to
        zero = torch.zeros((), dtype=torch.float64)
        for index, (before, after) in enumerate(pairwise(slopes)):
            ratio, knot = before / after, at[index].clone()
            bent.append(_Shift(-knot)).append(_prelu(ratio))
            at, zero = (_bend(each - knot, ratio) for each in (at, zero))
        bent.append(_Scale(slopes[-1])).append(_Shift(-zero * slopes[-1]))
        return bent.to(cast(Tensor, self.knots).dtype)


def _dense(x: Tensor) -> Tensor:
    """The tensor, or a copy of it where its elements do not lie side by side."""
    dense = x.is_contiguous() or (x.dim() == 4 and x.is_contiguous(memory_format=torch.channels_last))
    return x if dense else x.contiguous()


def _bend(x: Tensor, ratio: Tensor) -> Tensor:
    return torch.where(x < 0, ratio * x, x)


def _prelu(slope: Tensor) -> nn.PReLU:
    module = nn.PReLU()
    module.weight = nn.Parameter(slope.reshape(1))
    return module


class _Shift(nn.Module):
    def __init__(self, by: Tensor) -> None:
        super().__init__()
        self.register_buffer("by", by)

    def forward(self, x: Tensor) -> Tensor:
        return x + cast(Tensor, self.by)


class _Scale(_Shift):
    def forward(self, x: Tensor) -> Tensor:
        return x * cast(Tensor, self.by)
