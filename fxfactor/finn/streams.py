"""What is known of a tensor of integers, and the thresholds that stand for everything up to the next quantizer.

A network in integers carries at every edge integers `a` and, per channel, the numbers they stand for:
`real = f(scale * a + offset)`, with f a chain of functions that never fall (ReLU, clipping, a batch norm after them ...).
A quantizer then is a staircase in `a`, so it is its thresholds: T[k] is the smallest integer `a` that reaches level k.
`thresholds` finds them by bisection on the quantizer itself, evaluated in float64. Nothing is rearranged, so rounding
half to even, as torch and QONNX do it, is kept although FINN's MultiThreshold compares with >= : where scales are powers
of two and values fall on a tie, FINN's own conversion is off by one level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Function = Callable[[Reals], Reals]
"""Takes and gives real values of shape (channels, n); never falls."""


@dataclass(frozen=True)
class Columns:
    """Where a run of channels is computed: `count` columns of `matrix` (rows, channels) from `start` on."""

    matrix: str
    start: int
    count: int


@dataclass(frozen=True)
class Stream:
    """One tensor of the integer graph and what it stands for; arrays are per channel, shape (C,).

    `tensor` lies as (1, H, W, C) or (1, C); `shape` is (C, H, W) or (C,). `low` and `high` bound the integers.
    `columns` says where the integers are computed if their sign can be changed there. `order` is set after flattening:
    position in the tensor -> position in torch's flattened (C, H, W).
    """

    tensor: str
    shape: tuple[int, ...]
    datatype: str
    low: Integers
    high: Integers
    scale: Reals
    offset: Reals
    functions: tuple[Function, ...] = ()
    quantized: bool = False
    columns: tuple[Columns, ...] | None = None
    order: Integers | None = None
    pads: tuple[int, int, int, int] = (0, 0, 0, 0)

    @property
    def channels(self) -> int:
        """Number of channels, or of features after flattening."""
        return self.shape[0]

    def evaluate(self, integers: Integers) -> Reals:
        """The real values that `integers` (C, n) stand for."""
        real: Reals = self.scale[:, None] * integers + self.offset[:, None]
        for function in self.functions:
            real = function(real)
        return real


@dataclass(frozen=True)
class Quantizer:
    """`level = clip(round(x / scale), lowest, highest)`; `scale` has shape (1,) or (C,)."""

    scale: Reals
    bits: int
    signed: bool
    narrow: bool
    rounding: str = "ROUND"

    @property
    def lowest(self) -> int:
        """The least level."""
        return -(2 ** (self.bits - 1)) + int(self.narrow) if self.signed else 0

    @property
    def highest(self) -> int:
        """The greatest level."""
        return 2 ** (self.bits - 1) - 1 if self.signed else 2**self.bits - 1 - int(self.narrow)

    @property
    def datatype(self) -> str:
        """The FINN datatype of the levels."""
        return f"{'INT' if self.signed else 'UINT'}{self.bits}" if self.bits > 1 or self.signed else "BINARY"

    def levels(self, real: Reals) -> Reals:
        """Levels of `real` (C, n)."""
        levels = ROUNDINGS[self.rounding](real / self.scale[:, None])
        return np.clip(levels, self.lowest, self.highest)


ROUNDINGS: dict[str, Function] = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil}
"""QONNX rounding mode -> function. np.round rounds half to even, as torch and the QONNX standard do."""


def thresholds(stream: Stream, quantizer: Quantizer) -> Integers:
    """The smallest integers that reach each level above the lowest: shape (C, levels - 1), or (1, ...) if all are equal.

    A level that no integer in `low..high` reaches gets `high + 1`. Needs `stream.scale` >= 0.
    """
    low, high = stream.low, stream.high
    if is_uniform(stream.scale) and is_uniform(stream.offset):  # one row can serve all channels
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    wanted = np.arange(quantizer.lowest + 1, quantizer.highest + 1)
    shape = (stream.channels, len(wanted))
    below = np.broadcast_to(low[:, None], shape).copy()
    reached = np.broadcast_to(high[:, None] + 1, shape).copy()
    while (below < reached).any():
        middle = (below + reached) // 2
        enough = quantizer.levels(stream.evaluate(middle)) >= wanted
        reached = np.where(enough, np.minimum(middle, reached), reached)
        below = np.where(enough, below, np.minimum(middle + 1, reached))
    return reached[:1] if (reached == reached[:1]).all() else reached


def is_uniform(values: Reals) -> bool:
    """Whether all channels carry the same value."""
    return bool((values == values[0]).all())


def integer_datatype(low: int, high: int) -> str:
    """The smallest FINN integer datatype that holds `low..high`."""
    if low >= 0:
        return f"UINT{max(2, int(high).bit_length())}"
    return f"INT{max(2, int(-low - 1).bit_length() + 1, int(high).bit_length() + 1 if high > 0 else 1)}"
