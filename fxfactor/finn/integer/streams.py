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
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fxfactor.quantization.levels import integer_range

Integers = NDArray[np.int64]
Reals = NDArray[np.float64]
Function = Callable[[Reals], Reals]
"""Takes and returns real values of shape (channels, n); never falls."""


@dataclass(frozen=True)
class Columns:
    """Where a run of channels is computed: `count` columns of `matrix` (rows, channels) from `start` on."""

    matrix: str
    start: int
    count: int


Pads = tuple[int, int, int, int]
"""Top, left, bottom, right."""


@dataclass(frozen=True)
class Window:
    """How a convolution or pooling goes over (height, width)."""

    kernel: tuple[int, int]
    strides: tuple[int, int] = (1, 1)
    pads: Pads = (0, 0, 0, 0)
    dilations: tuple[int, int] = (1, 1)

    def positions(self, height: int, width: int) -> tuple[int, int]:
        """Height and width of what comes out, rounding down."""
        return self._positions(0, height), self._positions(1, width)

    def _positions(self, axis: int, size: int) -> int:
        extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
        return (size + self.pads[axis] + self.pads[axis + 2] - extent) // self.strides[axis] + 1

    def rounding_up(self, height: int, width: int) -> Window:
        """The window that rounding down gives what torch's ceil_mode gives: more padding at the bottom and right.

        Windows that would start in the padding at the end are left out, as torch does.
        """
        more = []
        for axis, size in enumerate((height, width)):
            start, end, stride = self.pads[axis], self.pads[axis + 2], self.strides[axis]
            extent = self.dilations[axis] * (self.kernel[axis] - 1) + 1
            count = -(-(size + start + end - extent) // stride) + 1
            if (count - 1) * stride >= size + start:
                count -= 1
            more.append(max(0, (count - 1) * stride + extent - size - start - end))
        top, left, bottom, right = self.pads
        return replace(self, pads=(top, left, bottom + more[0], right + more[1]))


@dataclass(frozen=True)
class Stream:
    """One tensor of the integer graph and what it stands for; arrays are per channel, shape (C,).

    `tensor` lies as (1, H, W, C) or (1, C); `shape` is (C, H, W) or (C,). `low` and `high` bound the integers.
    `columns` says where the integers are computed if their sign can be changed there. `order` is set after flattening
    and where channels leave in another order (depthwise units side by side): position in the tensor -> position in torch's
    flattened (C, H, W), or channel of torch's tensor. `pools` are max poolings still to be done: they
    change places with the quantizer that follows, since it never falls; `shape` is what they lead to. `pads` is padding
    still to be done, by the next convolution.
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
    pads: Pads = (0, 0, 0, 0)
    pools: tuple[Window, ...] = ()

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
    """`level = clip(round(x / scale), lowest, highest)`, kept as `datatype`; `scale` has shape (1,) or (C,)."""

    scale: Reals
    lowest: int
    highest: int
    datatype: str
    rounding: str = "ROUND"

    @property
    def least(self) -> int:
        """The least value of the datatype; `lowest` may lie above it (narrow range)."""
        return self._range[0]

    @property
    def most(self) -> int:
        """The greatest value of the datatype."""
        return self._range[1]

    @property
    def _range(self) -> tuple[int, int]:
        return integer_range(int(self.datatype.lstrip("UINT")), signed=not self.datatype.startswith("U"))

    def levels(self, real: Reals) -> Reals:
        """Levels of `real` (C, n)."""
        levels = ROUNDINGS[self.rounding](real / self.scale[:, None])
        return np.clip(levels, self.lowest, self.highest)

    def unsigned(self) -> Quantizer:
        """The same levels for values that are never negative: a bit less, and zero may be padded."""
        bits = max(2, self.highest.bit_length())
        return replace(self, lowest=0, datatype=f"UINT{bits}")


def make_quantizer(scale: Reals, bits: int, signed: bool, narrow: bool, rounding: str = "ROUND") -> Quantizer:
    """A quantizer as QONNX describes it. One unsigned bit is kept in two, since FINN reads one bit as binary."""
    lowest, highest = integer_range(bits, signed, narrow)
    return Quantizer(scale, lowest, highest, f"{'INT' if signed else 'UINT'}{max(2, bits)}", rounding)


ROUNDINGS: dict[str, Function] = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil}
"""QONNX rounding mode -> function. np.round rounds half to even, as torch and the QONNX standard do."""


def thresholds(stream: Stream, quantizer: Quantizer) -> Integers:
    """The smallest integers that reach each value of the datatype above its least: (C, 2^bits - 1), or (1, ...) if equal.

    A value that no integer in `low..high` reaches gets `high + 1`. Needs `stream.scale` >= 0.
    """
    low, high = stream.low, stream.high
    if is_uniform(stream.scale) and is_uniform(stream.offset):  # one row can serve all channels
        low, high = np.full_like(low, low.min()), np.full_like(high, high.max())
    wanted = np.arange(quantizer.least + 1, quantizer.most + 1)
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
