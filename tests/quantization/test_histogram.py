"""Histograms and the range that loses least."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fxfactor.quantization.histogram import BINS, Histogram, best_limit


def histogram_of(*batches: Tensor) -> Histogram:
    histogram = Histogram()
    for batch in batches:
        histogram.add(batch)
    return histogram


def error(values: Tensor, limit: float, bits: int, signed: bool) -> float:
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    scale = limit / (2 ** (bits - 1) if signed else high)
    return float(((values / scale).round().clamp(low, high) * scale - values).square().mean())


@settings(deadline=None)
@given(st.lists(st.floats(-1e6, 1e6, allow_nan=False), min_size=1, max_size=50), st.integers(1, 49))
def test_every_value_is_counted_near_where_it_is(values, split):
    x = torch.tensor(values, dtype=torch.float64)
    histogram = histogram_of(*(part for part in (x[:split], x[split:]) if len(part)))
    assert histogram.counts.sum() == len(x)
    assert histogram.limit >= float(x.abs().max())
    width = 2 * histogram.limit / BINS
    mean = float((histogram.centers * histogram.counts).sum() / len(x))
    # a bin is widened by merging two, which moves what stands for a value by at most one width in all
    assert abs(mean - float(x.mean())) <= width + 1e-9


def test_batches_make_no_difference():
    values = torch.randn(1000)
    assert torch.equal(histogram_of(*values.split(100)).counts, histogram_of(values).counts)


def test_merging_is_counting_both():
    first, second = torch.randn(500), 10 * torch.randn(500)
    merged = histogram_of(first)
    merged.merge(histogram_of(second))
    assert torch.equal(merged.counts, histogram_of(first, second).counts)


def test_weights_count_as_often():
    histogram = Histogram()
    histogram.add(torch.tensor([1.0, -2.0]), torch.tensor([3.0, 0.5]))
    assert sorted(histogram.counts[histogram.counts > 0].tolist()) == [0.5, 3.0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_values_that_are_not_finite_are_refused(value):
    with pytest.raises(ValueError, match="values must be finite"):
        histogram_of(torch.tensor([0.0, value]))


def test_zeros_alone_have_no_range():
    assert best_limit(histogram_of(torch.zeros(5)), 4, signed=True) == 1.0
    assert best_limit(Histogram(), 4, signed=False) == 1.0
    assert best_limit(histogram_of(-torch.rand(5)), 4, signed=False) == 1.0


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 1e4])
def test_no_other_range_loses_less(bits, signed, scale):
    values = scale * torch.randn(20000, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    values = values if signed else values.relu()
    limit = best_limit(histogram_of(values), bits, signed)
    best = error(values, limit, bits, signed)
    for factor in (0.5, 0.8, 1.25, 2.0):
        assert best <= error(values, factor * limit, bits, signed) * 1.01


def test_few_bits_clip_and_many_do_not():
    values = torch.randn(20000, generator=torch.Generator().manual_seed(0))
    limits = [best_limit(histogram_of(values), bits, signed=True) for bits in (2, 4, 8)]
    assert limits[0] < limits[1] < limits[2] <= float(values.abs().max()) * 1.01


def test_an_outlier_is_cut_off():
    values = torch.cat([torch.randn(100_000), torch.tensor([50.0])])
    assert best_limit(histogram_of(values), 4, signed=True) < 10
