"""Thresholds are the quantizer itself: over every integer, for random scales, functions and roundings."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from fxfactor.finn.integer.onnx_constants import Broken
from fxfactor.finn.integer.streams import Stream, Window, integer_datatype, make_quantizer, thresholds
from fxfactor.finn.integer.values import per_channel


def stream(channels: int, low: int, high: int, seed: int, **settings: object) -> Stream:
    draw = np.random.default_rng(seed)
    bounds = (np.full(channels, low), np.full(channels, high))
    return Stream(
        "x",
        (channels, 1, 1),
        "INT32",
        *bounds,
        draw.uniform(1e-3, 0.1, channels),
        draw.normal(0, 1, channels),
        **settings,
    )  # type: ignore[arg-type]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("rounding", ["ROUND", "FLOOR", "CEIL"])
@pytest.mark.parametrize(
    ("bits", "signed", "narrow"), [(4, False, False), (4, True, False), (3, True, True), (1, False, False)]
)
def test_thresholds_count_to_the_level(bits: int, signed: bool, narrow: bool, rounding: str, seed: int) -> None:
    x = stream(6, -300, 400, seed, functions=(np.tanh, lambda real: np.maximum(real, -0.7)))
    quantizer = make_quantizer(np.array([0.06]), bits, signed, narrow, rounding)
    steps = thresholds(x, quantizer)
    integers = np.broadcast_to(np.arange(-300, 401), (6, 701))
    counted = (integers[:, :, None] >= steps[:, None, :]).sum(2) + quantizer.least
    assert (counted == quantizer.levels(x.evaluate(integers))).all()


def test_ties_go_to_the_even_level_as_in_torch() -> None:
    ones = np.ones(1)
    x = Stream("x", (1,), "INT8", -20 * ones.astype(int), 20 * ones.astype(int), 0.25 * ones, 0 * ones)
    steps = thresholds(x, make_quantizer(0.5 * ones, 4, True, False))
    integers = torch.arange(-20, 21)
    wanted = torch.clamp(torch.round(integers * 0.25 / 0.5), -8, 7)
    assert ((integers.numpy()[:, None] >= steps).sum(1) - 8 == wanted.numpy()).all()


def test_one_row_where_all_channels_are_alike() -> None:
    ones = np.ones(4)
    low, high = np.array([-9, -8, -7, -6]), np.array([9, 8, 7, 6])
    x = Stream("x", (4,), "INT8", low, high, 0.5 * ones, 0 * ones)
    assert thresholds(x, make_quantizer(np.array([0.3]), 3, True, False)).shape == (1, 7)


@pytest.mark.parametrize("size", [(7, 9), (8, 5), (6, 6), (13, 4)])
@pytest.mark.parametrize(("kernel", "stride", "padding"), [(3, 2, 0), (3, 2, 1), (2, 2, 0), (3, 3, 1), (2, 2, 1)])
def test_rounding_up_is_torchs_ceil_mode(size: tuple[int, int], kernel: int, stride: int, padding: int) -> None:
    window = Window((kernel, kernel), (stride, stride), (padding,) * 4).rounding_up(*size)
    wanted = F.max_pool2d(torch.zeros(1, 1, *size), kernel, stride, padding, ceil_mode=True).shape[2:]
    assert window.positions(*size) == tuple(wanted)


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [
        (0, 1, "UINT2"),
        (0, 15, "UINT4"),
        (0, 16, "UINT5"),
        (-8, 7, "INT4"),
        (-9, 0, "INT5"),
        (-1, 8, "INT5"),
        (-1, 0, "INT2"),
    ],
)
def test_smallest_datatype(low: int, high: int, name: str) -> None:
    assert integer_datatype(low, high) == name


def test_a_constant_is_one_number_or_one_for_each_channel() -> None:
    x = stream(3, 0, 5, 0)
    assert per_channel(x, np.full((1, 3, 1, 1), 2.0)).tolist() == [2.0] * 3
    assert per_channel(x, np.array(2.0)).tolist() == [2.0]
    with pytest.raises(Broken) as refused:
        per_channel(x, np.ones((1, 2, 1, 1)))
    assert refused.value.found == "a constant of shape (1, 2, 1, 1) on a tensor of shape (1, 3, 1, 1)"
