"""Every metric against a second, plain numpy computation on known distributions."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.analysis.measures import CELL_BINS, PERCENTILES, Difference, RoundingLoss, Spread, compose, kl_between

CHANNELS = 6


def samples(kind: str, count: int = 4000, seed: int = 0) -> np.ndarray:
    """(N, channels, 5) float64, every channel on a scale of its own."""
    generator = np.random.default_rng(seed)
    shape = (count // 30, CHANNELS, 5)
    values = {
        "normal": lambda: generator.normal(0.3, 1.7, shape),
        "laplace": lambda: generator.laplace(0, 0.01, shape),
        "uniform": lambda: generator.uniform(-3, 5, shape),
        "rectified": lambda: np.maximum(generator.normal(-0.5, 1, shape), 0),
        "far from zero": lambda: generator.normal(1000, 0.5, shape),
    }[kind]()
    return values * np.array([1, 0.5, 0.25, 1, 1, 0])[:, None]


KINDS = ["normal", "laplace", "uniform", "rectified", "far from zero"]


def spread_of(values: np.ndarray, parts: int = 1) -> Spread:
    spread = Spread()
    for part in np.array_split(values, parts):
        spread.add(torch.from_numpy(part))
    return spread


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_spread_is_what_numpy_says(kind: str, parts: int) -> None:
    values = samples(kind)
    spread = spread_of(values, parts)
    assert spread.count == values.size
    assert (spread.min, spread.max) == (values.min(), values.max())
    assert spread.mean == pytest.approx(values.mean(), rel=1e-12)
    assert spread.std == pytest.approx(values.std(), rel=1e-10)
    assert spread.zeros == (values == 0).mean()
    assert spread.dynamic_range == np.ptp(values)
    assert spread.peak_to_std == pytest.approx(np.abs(values - values.mean()).max() / values.std(), rel=1e-10)
    ranges = [np.ptp(values[:, c]) for c in range(CHANNELS)]
    assert spread.channel_range_ratio == pytest.approx(np.mean(ranges) / np.ptp(values), rel=1e-12)
    assert (spread.constant_channels, spread.zero_channels) == (1, 1)  # the last channel is all zeros


@pytest.mark.parametrize("parts", [1, 7])
@pytest.mark.parametrize("kind", KINDS)
def test_percentiles_are_right_to_one_bin(kind: str, parts: int) -> None:
    values = samples(kind)
    spread = spread_of(values, parts)
    bin_width = np.abs(values).max() / 2048
    for percent in PERCENTILES:
        below = np.percentile(values, percent, method="lower"), np.percentile(values, percent, method="higher")
        assert below[0] - bin_width <= spread.percentile(percent) <= below[1] + bin_width, percent


@pytest.mark.parametrize("kind", KINDS)
def test_binned_counts_are_those_of_numpy(kind: str) -> None:
    values = samples(kind)
    edges = np.linspace(values.min(), values.max(), 41)
    found = spread_of(values).binned(torch.from_numpy(edges)).numpy()
    assert found.sum() == pytest.approx(values.size, rel=1e-12)
    # values within one bin of the fine histogram of an edge may fall on its other side
    width = 2 * np.abs(values).max() / 2048
    wanted, _ = np.histogram(values, edges)
    near = np.array([(np.abs(values - edge) <= width).sum() for edge in edges])
    assert (np.abs(found - wanted) <= near[:-1] + near[1:]).all()


def test_one_constant_channel_is_not_a_zero_channel() -> None:
    values = torch.randn(10, 2, 3)
    values[:, 1] = 4.0
    spread = Spread()
    spread.add(values)
    assert (spread.constant_channels, spread.zero_channels) == (1, 0)


def test_all_zeros_have_a_spread_of_zero() -> None:
    spread = spread_of(np.zeros((4, CHANNELS, 5)))
    assert (spread.std, spread.peak_to_std, spread.channel_range_ratio, spread.percentile(99)) == (0, 0, 0, 0)
    assert spread.binned(torch.linspace(-1, 1, 5, dtype=torch.float64)).tolist() == [0, 0, 120, 0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_value_that_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        Spread().add(torch.tensor([[1.0, bad]]))


@pytest.mark.parametrize("channels_have_scales", [False, True])
@pytest.mark.parametrize(("low", "high"), [(-8, 7), (-7, 7), (0, 15), (-128, 127), (-2, 1)])
@pytest.mark.parametrize("kind", KINDS[:4])
def test_rounding_is_what_numpy_says(kind: str, low: int, high: int, channels_have_scales: bool) -> None:
    values = samples(kind)
    if low == 0:
        values = np.abs(values)
    whole = np.full((CHANNELS, 1), np.abs(values).max())
    scale = (np.abs(values).max((0, 2), initial=1e-3)[:, None] if channels_have_scales else whole) * 0.8137 / high
    after = np.clip(np.rint(values / scale), low, high) * scale
    rounding = RoundingLoss(low, high)
    for part in np.array_split(np.arange(len(values)), 3):
        rounding.add(torch.from_numpy(values[part]), torch.from_numpy(after[part]), torch.from_numpy(scale))

    noise, signal = np.sum((after - values) ** 2), np.sum(values**2)
    assert rounding.error.mean_square == pytest.approx(noise / values.size, rel=1e-12)
    assert rounding.error.sqnr_db == pytest.approx(10 * np.log10(signal / noise), rel=1e-12)
    assert rounding.error.relative == pytest.approx(np.sqrt(noise / signal), rel=1e-12)
    steps = values / scale
    assert rounding.clipped == ((steps < low - 0.5) | (steps > high + 0.5)).mean()
    assert rounding.levels_used == len(np.unique(np.rint(after / scale))) / (high - low + 1)
    assert rounding.constant_channels == sum(np.ptp(after[:, c]) == 0 for c in range(CHANNELS))
    assert rounding.kl == pytest.approx(kl_of_cells(steps, low, high), rel=1e-9, abs=1e-12)


def test_weights_of_one_bit_have_two_levels() -> None:
    values = np.random.default_rng(0).standard_normal((3, 500))
    values[:, :5] = 0.0
    scale = np.abs(values).mean(1, keepdims=True)
    after = np.where(values < 0, -scale, scale)
    rounding = RoundingLoss(-1, 1, 0, step=2)
    rounding.add(torch.from_numpy(values), torch.from_numpy(after), torch.from_numpy(scale))
    assert rounding.level_counts.tolist() == [(after < 0).sum(), (after > 0).sum()]
    assert rounding.levels_used == 1
    assert rounding.clipped == (np.abs(values) > 2 * scale).mean()  # more than half of the distance 2 beyond
    assert rounding.kl == pytest.approx(kl_of_cells(values / scale / 2 - 0.5, -1, 0, zero=-0.5), rel=1e-9)


def kl_of_cells(steps: np.ndarray, low: int, high: int, zero: float = 0) -> float:
    """TensorRT's divergence, value by value: P in 8 bins to a level, Q flat over the bins of a level that P uses."""
    counts: dict[tuple[int, int], int] = {}
    for step in steps.flatten():
        if step == zero:
            continue
        inside = min(max(step, low - 0.5), high + 0.5 - 1e-9)
        level = math.floor(inside + 0.5)
        bin_in_level = math.floor((inside + 0.5 - level) * CELL_BINS)
        counts[level, bin_in_level] = counts.get((level, bin_in_level), 0) + 1
    total, divergence = sum(counts.values()), 0.0
    for (level, _), count in counts.items():
        alike = [c for (other, _), c in counts.items() if other == level]
        divergence += count / total * math.log(count / (sum(alike) / len(alike)))
    return divergence


def test_a_channel_that_changes_its_level_between_batches_is_not_dead() -> None:
    rounding = RoundingLoss(0, 3)
    for value in (1.0, 2.0):
        batch = torch.tensor([[value, 1.0]])
        rounding.add(batch, batch, 1.0)
    assert rounding.constant_channels == 1


def test_differences_of_equal_and_of_zero_tensors() -> None:
    equal, from_zero = Difference(), Difference()
    equal.add(torch.ones(3), torch.ones(3))
    from_zero.add(torch.zeros(3), torch.ones(3))
    assert (equal.sqnr_db, equal.relative, equal.mean_square) == (math.inf, 0.0, 0.0)
    assert (from_zero.sqnr_db, from_zero.relative, from_zero.mean_square) == (-math.inf, math.inf, 1.0)


def test_kl_between_networks_is_what_numpy_says() -> None:
    # values on the middle of bins, so that the fine histogram and the edges cannot disagree about any of them
    generator = np.random.default_rng(0)
    p, q = (np.clip(generator.binomial(256, s, (500, 2)), 0, 255) for s in (0.4, 0.5))
    p[0, 0], q[0, 0], p[0, 1], q[0, 1] = 0, 0, 255, 255
    a, b = ((each - 128 + 0.5) / 128 for each in (p, q))
    edges = np.linspace(a.min(), a.max(), 257)
    # numpy on the same counts, smoothed by one
    counts = [np.histogram(each, edges)[0] + 1 for each in (a, b)]
    first, second = (each / each.sum() for each in counts)
    wanted = float(np.sum(first * np.log(first / second)))
    assert kl_between(spread_of(a[..., None]), spread_of(b[..., None])) == pytest.approx(wanted, rel=0.02)


def test_kl_of_a_distribution_with_itself_is_zero_and_grows_with_a_shift() -> None:
    spreads = [spread_of(samples("normal") + shift) for shift in (0, 0.5, 2)]
    divergences = [kl_between(spreads[0], each) for each in spreads]
    assert divergences[0] == 0.0
    assert 0 < divergences[1] < divergences[2]


@pytest.mark.parametrize(("groups", "original_groups"), [(1, 1), (4, 1), (4, 2), (8, 4), (16, 1)])
def test_composed_factors_compute_what_the_chain_computes(groups: int, original_groups: int) -> None:
    spatial = nn.Conv2d(16, 32, (3, 2), groups=groups, bias=False).double()
    pointwise = nn.Conv2d(32, 20, 1, groups=original_groups, bias=False).double()
    x = torch.randn(2, 16, 7, 6, dtype=torch.float64)
    weight: Tensor = compose(spatial.weight, pointwise.weight, groups, original_groups)
    assert weight.shape == (20, 16 // original_groups, 3, 2)
    torch.testing.assert_close(
        F.conv2d(x, weight, groups=original_groups), pointwise(spatial(x)), rtol=1e-12, atol=1e-12
    )
