"""A quantizer's thresholds as one multiplication: `clip((scale * a + bias) >> shift)`, the same integers exactly.

Thresholds that a batch norm and a rounding make lie at equal distances, up to the rounding of each to an integer. Where a
straight line of integer slope passes all of them on the right side, a multiplier and a few parameters for each channel take
the place of 2^bits - 1 numbers. Where it does not (a function that bends, a chance of rounding), thresholds stay.

Line and thresholds agree for all integers `low..high` if for each threshold T of level k (the smallest integer that reaches k)

    scale * T + bias >= k * 2^shift    and    scale * (T - 1) + bias <= k * 2^shift - 1.

For a given slope the biases that do are an interval; how long it is, is a concave function of the slope, the least of
straight lines less the greatest of others, so that bisection on its slope finds the most room.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from fxfactor.finn.integer.streams import Integers, Quantizer, Stream

WIDEST_SCALE = 33
"""Bits of a scale at most, without its sign. With the inputs below, sums stay under 2^62."""
WIDEST_INPUT = 26
"""Bits of an input at most, with its sign: what two multipliers of a DSP slice take."""
_LARGEST_SHIFT = 52
_STEP = 4


@dataclass(frozen=True)
class Requantization:
    """`clip((scales * a + biases) >> shift, lowest, highest)` for each channel, (C,) of int64. `scales` >= 0."""

    scales: Integers
    biases: Integers
    shift: int
    lowest: int
    highest: int

    def __call__(self, integers: NDArray[np.int64]) -> NDArray[np.int64]:
        """Levels of `integers` (..., C)."""
        return np.clip((self.scales * integers + self.biases) >> self.shift, self.lowest, self.highest)

    @property
    def scale_bits(self) -> int:
        """Bits of the widest scale, without a sign."""
        return max(1, int(self.scales.max()).bit_length())

    @property
    def bias_bits(self) -> int:
        """Bits of the widest bias, with its sign."""
        return max(int(each).bit_length() for each in (self.biases.max(), -self.biases.min() - 1)) + 1


def requantization(stream: Stream, quantizer: Quantizer, steps: Integers) -> Requantization | None:
    """The multiplication that gives what `steps` (C or 1, levels - 1) of `thresholds` give, with the smallest shift.

    None where there is none of at most WIDEST_SCALE bits. Cost: some thousand operations for each threshold.
    """
    if int(max(-stream.low.min(), stream.high.max())).bit_length() >= WIDEST_INPUT:
        return None
    steps = np.broadcast_to(steps, (stream.channels, steps.shape[1]))
    lowest = quantizer.least + int((steps <= stream.low[:, None]).sum(1).min())
    highest = quantizer.least + int((steps <= stream.high[:, None]).sum(1).max())
    limits = _Limits.of(stream, steps, np.arange(quantizer.least + 1, quantizer.most + 1), lowest, highest)
    first = next((shift for shift in range(0, _LARGEST_SHIFT + 1, _STEP) if limits.lines(shift) is not None), None)
    if first is None:
        return None
    found = None
    for shift in range(max(0, first - _STEP + 1), first + 1):
        found = limits.lines(shift)
        if found is not None:
            break
    assert found is not None
    scales, biases = found
    return Requantization(scales, biases, shift, lowest, highest)


@dataclass(frozen=True)
class _Limits:
    """For each channel: at `above` (C, n) the line has to reach `levels`; at `below` it must not."""

    above: Integers
    below: Integers
    levels: Integers
    reached: NDArray[np.bool_]
    missed: NDArray[np.bool_]

    @classmethod
    def of(cls, stream: Stream, steps: Integers, levels: Integers, lowest: int, highest: int) -> _Limits:
        """Of levels that all integers reach or none does, only what the line does at the last integer counts."""
        low, high = stream.low[:, None], stream.high[:, None]
        inside = (levels > lowest) & (levels <= highest)  # beyond them the result is clipped
        reached, missed = inside & (steps <= high), inside & (steps > low)
        return cls(np.maximum(steps, low), np.minimum(steps - 1, high), levels, reached, missed)

    def room(self, slopes: Integers, shift: int) -> tuple[Integers, Integers]:
        """The least bias and the greatest, for slopes (C,); the greatest may lie below the least. 2^61 is without limit."""
        aims, far = self.levels << shift, np.int64(2**61)
        least = np.where(self.reached, aims - slopes[:, None] * self.above, -far).max(1)
        most = np.where(self.missed, aims - 1 - slopes[:, None] * self.below, far).min(1)
        return least, most

    def lines(self, shift: int) -> tuple[Integers, Integers] | None:
        """Slopes and biases (C,) for a shift, or None where a channel has none."""
        low = np.zeros(len(self.above), np.int64)
        high = np.full_like(low, self._steepest(shift))
        while (low < high).any():
            middle = (low + high) // 2
            here, there = (np.subtract(*self.room(each, shift)[::-1]) for each in (middle, middle + 1))
            wider = there > here
            low, high = np.where(wider, middle + 1, low), np.where(wider, high, middle)
        least, most = self.room(low, shift)
        if (most < least).any():
            return None
        return low, np.clip(0, least, most)

    def _steepest(self, shift: int) -> int:
        """No slope is steeper than one step of all levels, nor has it more than the widest bits."""
        return int(min(2**WIDEST_SCALE - 1, (len(self.levels) + 1) << min(shift, WIDEST_SCALE)))
