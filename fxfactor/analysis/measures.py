"""What one walk over the images can measure of a tensor: its spread, what rounding does to it, how far it is from another.

Each class here is filled batch by batch and never keeps a batch; tensors only, no fx. The formulas stand at the
properties. Sums are float64, so neither the batch size nor the order of the batches shows beyond rounding.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from fxfactor.quantization.histogram import BINS, Histogram

PERCENTILES = (0.1, 1.0, 25.0, 50.0, 75.0, 99.0, 99.9)
CELL_BINS = 8
"""Histogram bins to one level of a quantizer: 2048 for 8 bits, as in TensorRT's calibration."""

COMPARED_BINS = 256
"""Histogram bins over which the distributions of two networks are compared."""


def plain(values: Tensor) -> Tensor:
    """The same values for measuring: float64, on the CPU, contiguous (a copy only where something differs)."""
    return values.detach().to("cpu", torch.float64, memory_format=torch.contiguous_format)


class Spread:
    """How the values of a tensor are distributed, in all and in each channel.

    `channel_axis` is the axis of the channels. Percentiles come from a histogram of 8192 bins over a power of two
    (`fxfactor.quantization.histogram.Histogram`): they are right to one bin, at most 1/2048 of the largest absolute
    value. Exact zeros, of which a ReLU makes many, are counted apart from it.
    """

    def __init__(self, channel_axis: int = 1) -> None:
        self.channel_axis = channel_axis
        self.count = self.zero_count = 0
        self.mean = 0.0
        self._squares = 0.0
        self.histogram = Histogram()
        self.channel_min = self.channel_max = torch.empty(0, dtype=torch.float64)

    def add(self, values: Tensor) -> None:
        """Count `values`. Raises ValueError where one is NaN or infinite, or the number of channels has changed."""
        values = plain(values)
        self.histogram.add(values)
        self.zero_count += values.numel() - int(values.count_nonzero())
        self._add_moments(values)
        low, high = _channel_extremes(values, self.channel_axis)
        if not len(self.channel_min):
            self.channel_min, self.channel_max = low, high
        elif len(low) != len(self.channel_min):
            raise ValueError(f"{len(low)} channels after {len(self.channel_min)}")
        self.channel_min, self.channel_max = self.channel_min.minimum(low), self.channel_max.maximum(high)

    def _add_moments(self, values: Tensor) -> None:
        """Mean and sum of squared deviations of two parts together (Chan, Golub and LeVeque 1979, eq. 1.5)."""
        size, mean = values.numel(), float(values.mean())
        squares = _sum_of_squares(values - mean)
        together = self.count + size
        apart = mean - self.mean
        self._squares += squares + apart * apart * self.count * size / together
        self.mean += apart * size / together
        self.count = together

    @property
    def std(self) -> float:
        """√(Σ(x − mean)²/n)."""
        return math.sqrt(self._squares / self.count)

    @property
    def min(self) -> float:
        """The smallest value."""
        return float(self.channel_min.min())

    @property
    def max(self) -> float:
        """The largest value."""
        return float(self.channel_max.max())

    @property
    def dynamic_range(self) -> float:
        """max − min, the layer's dynamic range (Yun and Wong 2021, arXiv 2104.11849)."""
        return self.max - self.min

    @property
    def peak_to_std(self) -> float:
        """max|x − mean| / std: how far out the outermost value lies. A uniform grid wastes levels where it is large."""
        peak = max(self.max - self.mean, self.mean - self.min)
        return peak / self.std if self.std > 0 else 0.0

    @property
    def channel_range_ratio(self) -> float:
        """Mean over the channels of (max_c − min_c)/(max − min), in 0…1; 0 where all values are the same.

        Small where few channels set the range of the layer and the others use little of its grid. The channel's
        "precision" of Nagel et al. 2019 (arXiv 1906.04721, section 4.1), averaged over the channels as Yun and Wong 2021
        (arXiv 2104.11849) do to show the mismatch between channels and layer in depthwise-separable networks.
        """
        whole = self.dynamic_range
        return float((self.channel_max - self.channel_min).mean()) / whole if whole > 0 else 0.0

    @property
    def constant_channels(self) -> int:
        """Channels in which no value ever differs from another."""
        return int((self.channel_min == self.channel_max).sum())

    @property
    def zero_channels(self) -> int:
        """Channels of zeros only."""
        return int(((self.channel_min == 0) & (self.channel_max == 0)).sum())

    @property
    def zeros(self) -> float:
        """Share of the values that are exactly zero."""
        return self.zero_count / self.count

    def _counts_but_zeros(self) -> Tensor:
        counts = self.histogram.counts.clone()
        counts[BINS // 2] -= self.zero_count
        return counts

    def percentile(self, percent: float) -> float:
        """The value below which `percent` % of all values lie."""
        counts = self._counts_but_zeros()
        cumulative = counts.cumsum(0)
        negative, target = float(cumulative[BINS // 2 - 1]), self.count * percent / 100
        if negative < target <= negative + self.zero_count:
            return 0.0
        target -= self.zero_count if target > negative else 0
        index = min(int(torch.searchsorted(cumulative, target)), BINS - 1)
        here = float(counts[index])
        inside = (target - (float(cumulative[index]) - here)) / max(here, 1.0)
        value = (index + inside) * (2 * self.histogram.limit / BINS) - self.histogram.limit
        return min(max(value, self.min), self.max)

    def binned(self, edges: Tensor) -> Tensor:
        """Counts between consecutive `edges`, each bin of the histogram taken as evenly filled.

        What lies beyond the outermost edges is counted in the outermost bins.
        """
        counts, limit = self._counts_but_zeros(), self.histogram.limit
        result = edges.new_zeros(len(edges) - 1)
        if limit > 0.0:
            cumulative = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
            position = ((edges / limit + 1) * (BINS / 2)).clamp(0, BINS)
            position[0], position[-1] = 0, BINS
            index = position.long().clamp_max(BINS - 1)
            result = torch.diff(cumulative[index] + (position - index) * counts[index])
        if self.zero_count:
            result[int((edges <= 0).sum().clamp(1, len(result))) - 1] += self.zero_count
        return result


class RoundingLoss:
    """What a quantizer with the levels low, low + step … high does to a tensor: before → after = scale · level."""

    def __init__(self, low: int, high: int, channel_axis: int = 1, step: int = 1) -> None:
        self.low, self.high, self.channel_axis, self.step = low, high, channel_axis, step
        levels = (high - low) // step + 1
        self.error = Difference()
        self.count = self.zero_count = 0
        self._bins = torch.zeros(levels * CELL_BINS + 2, dtype=torch.float64)  # first and last: clipped
        self.level_counts = torch.zeros(levels, dtype=torch.float64)
        self._constant = torch.empty(0, dtype=torch.bool)
        self._value = torch.empty(0, dtype=torch.float64)

    def add(self, before: Tensor, after: Tensor, scale: Tensor | float) -> None:
        """Count a tensor before and after; `scale` is one number or has one for each channel (it broadcasts)."""
        before, after = plain(before), plain(after)
        scale = scale.detach().to(before) if isinstance(scale, Tensor) else scale
        self.error.add(before, after)
        self.count += before.numel()
        self.zero_count += before.numel() - int(before.count_nonzero())
        bins = (
            (before / scale)
            .sub_(self.low)
            .div_(self.step)
            .add_(0.5)
            .mul_(CELL_BINS)
            .add_(1)
            .clamp_(0, len(self._bins) - 1)
        )
        self._bins += torch.bincount(bins.long().flatten(), minlength=len(self._bins))
        levels = (after / scale).round_().sub_(self.low).div_(self.step).long().flatten()
        self.level_counts += torch.bincount(levels, minlength=len(self.level_counts))
        self._note_constants(after)

    def _note_constants(self, after: Tensor) -> None:
        low, high = _channel_extremes(after, self.channel_axis)
        same = low == high
        self._constant = same & (self._value == low) & self._constant if len(self._constant) else same
        self._value = low

    @property
    def clipped(self) -> float:
        """Share of values beyond the outermost levels by more than half a step, so that they lose more than rounding."""
        return float(self._bins[0] + self._bins[-1]) / self.count

    @property
    def levels_used(self) -> float:
        """Share of the levels that at least one value takes."""
        return int((self.level_counts > 0).sum()) / len(self.level_counts)

    @property
    def kl(self) -> float:
        """D(P‖Q) = Σ P·ln(P/Q) in nats: what the distribution loses when each level's values become alike.

        P is the histogram of the values before, 8 bins to a level, those beyond the range counted in the outermost bins;
        Q spreads the values of each level evenly over its bins that P uses. Exact zeros, which cost nothing, are left
        out. As TensorRT's calibration does it (Migacz, "8-bit inference with TensorRT", GTC 2017).
        """
        cells = self._bins[1:-1].clone()
        cells[0] += self._bins[0]
        cells[-1] += self._bins[-1]
        cells[CELL_BINS // 2 - self.low * CELL_BINS // self.step] -= self.zero_count
        cells = cells.view(-1, CELL_BINS)
        used = cells > 0
        spread = cells.sum(1, keepdim=True) / used.sum(1, keepdim=True).clamp_min(1)
        total = float(cells.sum())
        return float((cells * (cells / spread).log())[used].sum()) / total if total > 0 else 0.0

    @property
    def constant_channels(self) -> int:
        """Channels that took one and the same level for every value."""
        return int(self._constant.sum())


class Difference:
    """How far one tensor is from another that it should equal."""

    def __init__(self) -> None:
        self.count = 0
        self._signal = self._noise = 0.0

    def add(self, wanted: Tensor, found: Tensor) -> None:
        """Count a batch of both."""
        wanted, found = plain(wanted), plain(found)
        self.count += wanted.numel()
        self._signal += _sum_of_squares(wanted)
        self._noise += _sum_of_squares(found - wanted)

    @property
    def mean_square(self) -> float:
        """QMSE = Σ(x̂ − x)²/n, in the unit of the tensor squared."""
        return self._noise / self.count

    @property
    def sqnr_db(self) -> float:
        """10·log₁₀(Σx²/Σ(x̂ − x)²) in dB; infinite where the two are equal."""
        if self._noise == 0:
            return math.inf
        return 10 * math.log10(self._signal / self._noise) if self._signal > 0 else -math.inf

    @property
    def relative(self) -> float:
        """‖x̂ − x‖/‖x‖, Frobenius norms over everything seen; 0 where the two are equal."""
        if self._noise == 0:
            return 0.0
        return math.sqrt(self._noise / self._signal) if self._signal > 0 else math.inf


def kl_between(wanted: Spread, found: Spread) -> float:
    """D(P‖Q) = Σ P·ln(P/Q) in nats between the distributions of a tensor in two networks.

    Both are counted in 256 equal bins over the range that the two take together; one is added to every bin (Laplace), so
    that an empty one does not make it infinite.
    """
    low, high = min(wanted.min, found.min), max(wanted.max, found.max)
    if low == high:
        return 0.0
    edges = torch.linspace(low, high, COMPARED_BINS + 1, dtype=torch.float64)
    p, q = (each.binned(edges) + 1 for each in (wanted, found))
    p, q = p / p.sum(), q / q.sum()
    return max(float((p * (p / q).log()).sum()), 0.0)


def compose(spatial: Tensor, pointwise: Tensor, groups: int, original_groups: int = 1) -> Tensor:
    """The one convolution weight that two factors stand for.

    spatial (mid, C_in/groups, *k) and pointwise (C_out, mid/original_groups, *1) → (C_out, C_in/original_groups, *k).
    """
    kernel, per_original = spatial.shape[2:], groups // original_groups
    blocks = spatial.reshape(original_groups, per_original, -1, spatial.shape[1] * kernel.numel())
    dense = blocks.new_zeros(*blocks.shape[:3], per_original, blocks.shape[3])
    for index in range(per_original):
        dense[:, index, :, index] = blocks[:, index]
    rows = pointwise.reshape(original_groups, -1, pointwise.shape[1])
    product = rows @ dense.reshape(original_groups, rows.shape[2], -1)
    return product.reshape(pointwise.shape[0], -1, *kernel)


def _channel_extremes(values: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    others = [a for a in range(values.dim()) if a != axis % values.dim()]
    if not others:
        return values, values
    return values.amin(others), values.amax(others)


def _sum_of_squares(values: Tensor) -> float:
    flat = values.flatten()
    return float(flat @ flat)
