"""Factors fitted to data: never behind the SVD, exact at full rank, means corrected."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from factors_helpers import built, full_rank_mid, random_weight, run_chain
from torch import nn

from fxfactor.factors.fit import fitted_factors
from fxfactor.factors.least_squares import PatchMoments
from fxfactor.factors.lockstep import moments_of
from fxfactor.factors.weights import Factors, svd_factors


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


def test_images_held_out_choose_how_far_the_factors_follow_the_data():
    """Few noisy positions: the factors stay near the weight. Many exact ones: they follow the data, however weak its parts."""
    conv = built(nn.Conv2d(8, 12, 3, bias=False))
    start = svd_factors(conv.weight, 4)

    def data(images: int, size: int, noise: float, seed: int, spread: float = 1.0) -> PatchMoments:
        x = random_weight(images, 8, size, size, seed=seed) * torch.logspace(0, -spread, 8).view(1, -1, 1, 1).double()
        return next(moments_of(x + noise * random_weight(*x.shape, seed=seed + 100), conv(x), conv))

    few, unseen = [data(4, 4, 0.5, seed, 0.0) for seed in (1, 2)], data(64, 9, 0.5, 3, 0.0)
    chosen, fixed = (fitted_factors(conv.weight, start, *each) for each in (few, [few[0] + few[1]]))
    assert unseen.output_error(chosen) < 0.6 * unseen.output_error(fixed)

    conv.weight.mul_(torch.logspace(0, 3, 8).view(1, -1, 1, 1).double())  # what is small in the input weighs much
    start = svd_factors(conv.weight, 4)
    many, unseen = [data(32, 9, 0.0, seed, 3.0) for seed in (1, 2)], data(64, 9, 0.0, 3, 3.0)
    original = conv.weight.reshape(1, 12, -1)
    chosen = fitted_factors(conv.weight, start, *many)
    near = fitted_factors(conv.weight, start, (many[0] + many[1]).pulled_to(original, 0.1))
    assert unseen.output_error(chosen) < 0.99 * unseen.output_error(near)
