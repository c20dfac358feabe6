"""The ladder of levels: groups, channels between the factors, costs."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fxfactor import PreconditionError, capture, groups_at
from fxfactor.graph import sites
from fxfactor.plan.ladder import check_width, choose_shape, macs_per_output_pixel, mid_at


@given(st.integers(0, 12), st.integers(1, 300))
def test_groups_are_the_largest_divisor_up_to_two_to_the_level(level, channels):
    groups = groups_at(level, channels)
    assert channels % groups == 0
    assert groups <= 2**level
    assert not any(channels % more == 0 for more in range(groups + 1, min(2**level, channels) + 1))
    if 2**level >= channels:
        assert groups == groups_at("depthwise", channels) == channels


@given(st.integers(0, 8), st.integers(1, 6), st.integers(1, 20))
def test_a_grouped_convolution_gets_a_multiple_of_its_groups(level, original, factor):
    groups = groups_at(level, original * factor, original)
    assert groups % original == 0
    assert (original * factor) % groups == 0
    assert groups == original or groups <= 2**level


def test_costs_of_the_ladder():
    conv = nn.Conv2d(64, 64, 3)
    dense = macs_per_output_pixel(conv)
    assert dense == 9 * 64**2
    shares = [macs_per_output_pixel(conv, 2**level) / 64**2 for level in range(1, 5)]
    assert shares == [5.5, 3.25, 2.125, 1.5625]
    assert macs_per_output_pixel(conv, 64) == 64**2 + 9 * 64


@given(st.floats(1e-3, 8), st.integers(1, 64), st.integers(1, 64))
def test_mid_is_the_closest_multiple_of_the_groups(width, per_group, groups):
    channels = per_group * groups
    mid = mid_at(width, channels, groups)
    assert mid % groups == 0
    assert mid > 0
    assert mid == groups or abs(mid - width * channels) <= groups / 2 + 1e-6
    assert mid_at(1, channels, groups) == channels


@pytest.mark.parametrize("level", [-1, 1.0, True, None, "deep", "3"])
def test_wrong_levels_are_refused(level):
    with pytest.raises(PreconditionError, match='level must be an int of at least 0 or "depthwise", found'):
        groups_at(level, 64)


def test_factors_that_save_nothing_are_not_taken():
    """2×1 kernels in 2 groups: 8·8·2/2 + 8·8 multiplications are as many as the 8·8·2 of the whole."""
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, (2, 1)), nn.Conv2d(8, 8, (3, 1)))
    found = sites(capture(model.eval(), torch.zeros(1, 3, 8, 8)))
    assert (
        choose_shape(found["1"], 1, first=False)
        == "2 groups would not lower the MACs: 128 instead of 128 at each pixel"
    )
    assert choose_shape(found["2"], 1, first=False) == (2, 8)


@pytest.mark.parametrize("width", [0, -1, float("nan"), float("inf"), True, "2", None])
def test_a_width_is_a_number_above_0(width):
    with pytest.raises(PreconditionError, match="width must be a number above 0"):
        check_width(width)
