"""A monotone curve before a quantizer, whose thresholds it moves, and that costs nothing in hardware.

A uniform quantizer has its thresholds at equal distances, where the values seldom lie. FINN compares with any thresholds that
rise, and only the levels that come out are at equal distances. So a trained function that rises, followed by a quantizer, is
again a quantizer of the same bits with thresholds of its own: Nonuniform-to-Uniform Quantization (Liu et al. 2022, arXiv
2111.14826). Here the function is linear in pieces. As ONNX it is a chain of subtractions and PReLUs.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class _Pieces(torch.autograd.Function):
    """shift + slopes[0] · x + Σ_k (slopes[k + 1] − slopes[k]) · relu(x − knots[k]); keeps no tensor but its input."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, shift: Tensor, knots: Tensor, slopes: Tensor) -> Tensor:
        ctx.save_for_backward(x, knots, slopes)
        y = torch.addcmul(shift, x, slopes[0])
        for knot, bend in zip(knots, slopes.diff(), strict=True):
            y.addcmul_((x - knot).relu_(), bend)
        return y

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        (gradient,) = gradients
        x, knots, slopes = ctx.saved_tensors
        bends = slopes.diff()
        of_x, of_shift, of_base = gradient * slopes[0], gradient.sum(), _dot(gradient, x)
        of_knots, of_bends = [], []
        for knot, bend in zip(knots, bends, strict=True):
            beyond = gradient * (x > knot)
            total = beyond.sum()
            of_bends.append(_dot(beyond, x) - knot * total)
            of_knots.append(-bend * total)
            of_x.addcmul_(beyond, bend)
        steps = torch.stack([of_base, *of_bends])
        return of_x, of_shift, torch.stack(of_knots), steps - F.pad(steps[1:], (0, 1))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum()


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
        return cast(Tensor, _Pieces.apply(x, shift, knots, slopes))

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
