"""Factors of random convolution weights: exactness, optimality, quantization balance, refusals."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.errors import PreconditionError
from fxfactor.factors.fit import fitted_factors
from fxfactor.factors.least_squares import PatchMoments
from fxfactor.factors.lockstep import moments_of, patches
from fxfactor.factors.weights import Factors, join_blocks, split_blocks, svd_factors

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def random_weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run_chain(x: Tensor, factors: Factors, groups: int, original_groups: int = 1) -> Tensor:
    convolve = CONVOLVE[factors.spatial.dim() - 2]
    return convolve(convolve(x, factors.spatial, groups=groups), factors.pointwise, groups=original_groups)


def full_rank_mid(weight: Tensor, groups: int, original_groups: int = 1) -> int:
    d = weight[0].numel() * original_groups // groups
    return groups * min(weight.shape[0] // original_groups, d)


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


def layer_data(conv: nn.Module, noise: float, seed: int = 1) -> tuple[PatchMoments, PatchMoments]:
    """Moments of correlated inputs, with noise that stands for the errors of earlier layers, in two halves."""
    dimensions = len(conv.kernel_size)
    x = random_weight(32, conv.in_channels, *[9] * dimensions, seed=seed).cumsum(-1)
    seen = x + noise * x.std() * random_weight(*x.shape, seed=seed + 1)
    wanted = conv(x)
    halves = zip(seen.chunk(2), wanted.chunk(2), strict=True)
    first, second = (next(moments_of(a, b, conv)) for a, b in halves)
    return first, second


LAYERS = [
    (nn.Conv2d(8, 12, 3, padding=1, bias=False), 4),
    (nn.Conv2d(8, 12, (3, 2), stride=(2, 1), dilation=(1, 2), padding=(0, 1)), 2),
    (nn.Conv2d(12, 12, 3, padding=1, groups=2, padding_mode="reflect"), 6),
    (nn.Conv1d(12, 8, 5, padding=2), 12),
    (nn.Conv2d(12, 8, 3, padding="same"), 12),
]


def built(conv: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    conv.reset_parameters()
    return conv.double().requires_grad_(False)


@pytest.mark.parametrize(("conv", "groups"), LAYERS)
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_fit_never_loses_to_the_svd_on_its_data(conv, groups, noise):
    conv = built(conv)
    first, second = layer_data(conv, noise)
    start = svd_factors(conv.weight, groups, original_groups=conv.groups)
    for held_out in (None, second):
        fitted = fitted_factors(conv.weight, start, first, held_out, original_groups=conv.groups)
        data = first if held_out is None else first + second
        assert fitted.output_error == pytest.approx(data.output_error(fitted))
        assert fitted.output_error < data.output_error(start)
        assert fitted.relative_error >= start.relative_error  # the SVD is the best that the weight alone allows


@pytest.mark.parametrize(("conv", "groups"), LAYERS)
def test_fit_is_exact_at_full_rank(conv, groups):
    conv = built(conv)
    data, _ = layer_data(conv, noise=0.0)
    start = svd_factors(conv.weight, groups, full_rank_mid(conv.weight, groups, conv.groups), conv.groups)
    fitted = fitted_factors(conv.weight, start, data, original_groups=conv.groups)
    assert fitted.output_error < 1e-6
    assert fitted.relative_error < 1e-6


def test_fit_is_the_same_twice():
    conv = built(nn.Conv2d(8, 12, 3))
    first, second = layer_data(conv, 0.1)
    start = svd_factors(conv.weight, 4)
    a, b = (fitted_factors(conv.weight, start, first, second) for _ in range(2))
    assert torch.equal(a.spatial, b.spatial)
    assert torch.equal(a.pointwise, b.pointwise)


def test_fit_corrects_the_means():
    conv = built(nn.Conv2d(8, 12, 3))
    x = random_weight(8, 8, 9, 9) + 3
    (data,) = moments_of(x, conv(x), conv)
    fitted = fitted_factors(conv.weight, svd_factors(conv.weight, 4), data)
    outputs = run_chain(x, fitted, groups=4) + fitted.shift.view(1, -1, 1, 1)
    torch.testing.assert_close(outputs.mean((0, 2, 3)), conv(x).mean((0, 2, 3)))
    lost = (outputs - conv(x)).square().mean() / conv(x).var((0, 2, 3), correction=0).mean()
    assert float(lost.sqrt()) == pytest.approx(fitted.output_error, rel=1e-6)


def test_important_channels_are_fitted_better():
    conv = built(nn.Conv2d(8, 12, 3))
    data, _ = layer_data(conv, 0.1)
    start = svd_factors(conv.weight, 8)
    importance = torch.ones(12)
    importance[:4] = 100

    def lost(factors: Factors) -> float:
        part = replace(data, outputs=data.outputs[:, :4], cross=data.cross[:, :4], output_mean=data.output_mean[:, :4])
        return part.output_error(replace(factors, pointwise=factors.pointwise[:4]))

    weighted = fitted_factors(conv.weight, start, data, importance=importance)
    assert lost(weighted) < lost(fitted_factors(conv.weight, start, data))


def test_silent_channels_do_no_harm():
    """Inputs that are constant, outputs that are constant, and channels of no importance."""
    conv = built(nn.Conv2d(8, 12, 3))
    conv.weight[3] = 0
    x = random_weight(8, 8, 9, 9)
    x[:, 2] = 0.5
    (data,) = moments_of(x, conv(x), conv)
    fitted = fitted_factors(conv.weight, svd_factors(conv.weight, 8), data, importance=torch.zeros(12))
    assert torch.isfinite(fitted.spatial).all()
    assert torch.isfinite(fitted.pointwise).all()
    assert fitted.output_error < 1


def test_moments_of_parts_add_up():
    conv = built(nn.Conv2d(4, 6, 3, groups=2))
    x = random_weight(6, 4, 7, 7) + torch.arange(6).view(-1, 1, 1, 1)
    (whole,) = moments_of(x, conv(x), conv)
    first, second = (next(moments_of(part, conv(part), conv)) for part in (x[:2], x[2:]))
    for name in ("count", "input_mean", "output_mean", "inputs", "cross", "outputs"):
        torch.testing.assert_close(getattr(first + second, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    zero = (first + second).about_zero()
    flat = patches(x, conv)
    torch.testing.assert_close(zero.inputs, flat @ flat.mT / flat.shape[-1], rtol=1e-10, atol=1e-10)
