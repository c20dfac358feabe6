"""Factors from the weight alone: the SVD, its mathematics, what is refused."""

from __future__ import annotations

import pytest
import torch
from factors_helpers import CONVOLVE, full_rank_mid, random_weight, run_chain
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.errors import PreconditionError
from fxfactor.factors.weights import Factors, join_blocks, split_blocks, svd_factors


@st.composite
def settings_of_a_layer(draw: st.DrawFn) -> tuple[tuple[int, ...], int, int]:
    original_groups = draw(st.integers(1, 3))
    per_group = draw(st.integers(1, 3))
    channels_in = draw(st.integers(1, 3)) * per_group
    channels_out = draw(st.integers(1, 6)) * original_groups
    kernel = draw(st.lists(st.integers(1, 4), min_size=1, max_size=3))
    return (channels_out, channels_in, *kernel), original_groups * per_group, original_groups


@settings(deadline=None, max_examples=60)
@given(settings_of_a_layer(), st.integers(0, 2))
def test_full_rank_factors_compute_the_same_convolution(layer, surplus):
    shape, groups, original_groups = layer
    weight = random_weight(*shape)
    mid = full_rank_mid(weight, groups, original_groups) + surplus * groups
    factors = svd_factors(weight, groups, mid, original_groups)
    x = random_weight(2, shape[1] * original_groups, *(k + 2 for k in shape[2:]), seed=1)
    expected = CONVOLVE[len(shape) - 2](x, weight, groups=original_groups)
    torch.testing.assert_close(
        run_chain(x, factors, groups, original_groups), expected, rtol=1e-12, atol=1e-12 * float(expected.abs().max())
    )
    assert factors.relative_error < 1e-12
    assert factors.spatial.shape == (mid, shape[1] * original_groups // groups, *shape[2:])
    assert factors.pointwise.shape == (shape[0], mid // original_groups, *[1] * (len(shape) - 2))


def test_mid_defaults_to_the_input_channels():
    assert svd_factors(random_weight(6, 8, 3, 3), groups=4).spatial.shape == (8, 2, 3, 3)
    assert svd_factors(random_weight(6, 4, 3, 3), groups=4, original_groups=2).spatial.shape == (8, 2, 3, 3)


@pytest.mark.parametrize(("shape", "groups", "mid"), [((12, 8, 3, 3), 2, 8), ((40, 6, 3), 3, 6), ((5, 4, 2, 3), 4, 8)])
def test_truncation_is_as_good_as_the_svd(shape, groups, mid):
    weight = random_weight(*shape)
    factors = svd_factors(weight, groups, mid)
    lost = torch.linalg.svdvals(split_blocks(weight, groups))[:, mid // groups :].square().sum().sqrt()
    assert factors.relative_error == pytest.approx(float(lost / torch.linalg.vector_norm(weight)), rel=1e-10)


def test_blocks_are_cut_and_joined_without_change():
    weight = random_weight(6, 4, 3, 2)
    blocks = split_blocks(weight, groups=4, original_groups=2)
    assert blocks.shape == (4, 3, 12)
    torch.testing.assert_close(blocks[3], weight[3:, 2:].reshape(3, 12), rtol=0, atol=0)
    torch.testing.assert_close(join_blocks(blocks, 2).reshape(weight.shape), weight, rtol=0, atol=0)


def test_components_are_split_evenly_between_the_factors():
    factors = svd_factors(random_weight(12, 8, 3, 3), groups=2)
    filters = factors.spatial.flatten(1).norm(dim=1)
    torch.testing.assert_close(factors.pointwise.flatten(1).norm(dim=0), filters, rtol=1e-10, atol=0)


def quantize(x: Tensor, dims: tuple[int, ...], bits: int = 4) -> Tensor:
    step = x.abs().amax(dims, keepdim=True) / (2 ** (bits - 1) - 1)
    return (x / step).round() * step


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_the_even_split_loses_least_to_quantization(share):
    """Against all of σ in the pointwise factor (share 0) or all of it in the spatial one (share 1)."""
    decay = torch.logspace(0, -2, 16, dtype=torch.float64)
    weight = torch.einsum("or,r,rd->od", random_weight(16, 16), decay, random_weight(16, 72, seed=1)).reshape(
        16, 8, 3, 3
    )
    x = random_weight(4, 8, 12, 12, seed=2)
    even = svd_factors(weight, groups=1, mid=16)
    sigma = even.spatial.flatten(1).norm(dim=1).square()
    scale = sigma ** (share - 0.5)
    other = Factors(even.spatial * scale.view(-1, 1, 1, 1), even.pointwise / scale.view(1, -1, 1, 1), 0.0)

    def loss(factors: Factors) -> float:
        middle = quantize(F.conv2d(x, quantize(factors.spatial, (1, 2, 3))), (0, 1, 2, 3))
        return float((F.conv2d(middle, quantize(factors.pointwise, (1, 2, 3))) - F.conv2d(x, weight)).norm())

    assert loss(even) < loss(other)


@pytest.mark.parametrize("weight", [torch.zeros(4, 4, 3, 3), random_weight(1, 4, 3, 3).expand(4, 4, 3, 3)])
def test_weak_components_keep_a_filter_with_a_scale(weight):
    factors = svd_factors(weight, groups=2)
    assert (factors.spatial.flatten(1).abs().amax(1) > 0).all()
    assert torch.isfinite(factors.pointwise).all()
    assert factors.relative_error < 1e-6


def test_factors_have_the_weights_type_and_no_gradient():
    conv = nn.Conv2d(8, 6, 3).bfloat16()
    factors = svd_factors(conv.weight, groups=1, mid=8)
    assert factors.spatial.dtype is factors.pointwise.dtype is torch.bfloat16
    assert not factors.spatial.requires_grad
    assert 1e-4 < factors.relative_error < 1e-2  # full rank: the error of casting is measured too


def test_same_weight_gives_the_same_factors_twice():
    first, second = (svd_factors(random_weight(16, 16, 3, 3), groups=4) for _ in range(2))
    assert torch.equal(first.spatial, second.spatial)
    assert torch.equal(first.pointwise, second.pointwise)


@pytest.mark.parametrize(
    ("shape", "arguments", "message"),
    [
        ((4, 8), {"groups": 2}, r"3 to 5 dimensions .* found \(4, 8\)"),
        ((4, 8, 3), {"groups": 3}, "divide the 8 input channels .* found 3"),
        ((4, 8, 3), {"groups": 0}, "divide the 8 input channels .* found 0"),
        ((4, 8, 3), {"groups": 2, "original_groups": 4}, "multiple of original_groups=4, found 2"),
        ((4, 8, 3), {"groups": 3, "original_groups": 3}, "divisor of the 4 output channels, found 3"),
        ((4, 8, 3), {"groups": 4, "mid": 6}, "multiple of groups=4, found 6: take 8"),
    ],
)
def test_impossible_settings_are_refused(shape, arguments, message):
    with pytest.raises(PreconditionError, match=message):
        svd_factors(random_weight(*shape), **arguments)


def test_weight_that_is_not_finite_is_refused():
    weight = random_weight(4, 4, 3)
    weight[0, 0, 0] = torch.nan
    with pytest.raises(PreconditionError, match="1 entries that are not finite"):
        svd_factors(weight, groups=2)
