"""Moments of patches and the least-squares steps on them."""

from __future__ import annotations

import pytest
import torch
from factors_helpers import built, random_weight
from torch import nn

from fxfactor.factors.least_squares import alternate, by_original_group, scaled
from fxfactor.factors.lockstep import moments_of, patches
from fxfactor.factors.weights import svd_factors


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


def test_moments_of_scaled_outputs():
    conv = built(nn.Conv2d(4, 6, 3, groups=2))
    x, scale = random_weight(6, 4, 7, 7), torch.linspace(-2, 3, 6)
    (plain,) = moments_of(x, conv(x), conv)
    (wanted,) = moments_of(x, conv(x) * scale.view(-1, 1, 1), conv)
    found = scaled(plain, scale.double().view(2, 3))
    for name in ("count", "input_mean", "output_mean", "inputs", "cross", "outputs"):
        torch.testing.assert_close(getattr(found, name), getattr(wanted, name), rtol=1e-5, atol=1e-6)


def test_a_half_step_goes_most_of_the_way_to_the_least_squares_solution():
    """Correlated inputs, for which a step along the gradient alone goes less than half of it."""
    conv = built(nn.Conv2d(8, 12, 3, bias=False))
    x = random_weight(32, 8, 9, 9).cumsum(-1).cumsum(-2)
    (data,) = moments_of(x + 0.1 * x.std() * random_weight(*x.shape, seed=5), conv(x), conv)
    data = data.pulled_to(conv.weight.reshape(1, 12, -1), 1e-4)
    _, spatial = by_original_group(svd_factors(conv.weight, 2), data)
    groups, rank, width = spatial.shape[1:]
    before = alternate(spatial, data, rounds=0)
    # the least-squares solution for the spatial factor, written out: (U_gr ⊗ S) v = Uᵀ T
    pointwise = before.pointwise[0]
    gram = (pointwise.T @ pointwise).view(groups, rank, groups, rank)
    inputs = data.inputs[0].view(groups, width, groups, width)
    system = torch.einsum("nrms,nemf->nremsf", gram, inputs).reshape(groups * rank * width, -1)
    right = torch.einsum("onr,one->nre", pointwise.view(12, groups, rank), data.cross[0].view(12, groups, width))
    exact = torch.linalg.solve(system, right.flatten()).view_as(spatial)
    best = alternate(exact, data, rounds=0).error
    gained = before.error - alternate(spatial, data, rounds=1).error
    assert gained > 0.9 * (before.error - best)


def test_depthwise_factors_are_solved_in_one_step():
    """One group for each channel: after a step, no change of the spatial factor lowers the error."""
    conv = built(nn.Conv2d(12, 6, 3, bias=False))
    x = random_weight(16, 12, 7, 7).cumsum(-1)
    (data,) = moments_of(x, conv(x), conv)
    data = data.pulled_to(conv.weight.reshape(1, 6, -1), 1e-3)
    _, spatial = by_original_group(svd_factors(conv.weight, 12), data)
    begin = alternate(spatial, data, rounds=0)
    groups, rank, width = spatial.shape[1:]
    pointwise = begin.pointwise[0]
    gram = (pointwise.T @ pointwise).view(groups, rank, groups, rank)
    system = torch.einsum("nrms,nemf->nremsf", gram, data.inputs[0].view(groups, width, groups, width))
    right = torch.einsum("onr,one->nre", pointwise.view(6, groups, rank), data.cross[0].view(6, groups, width))
    size = groups * rank * width
    exact = torch.linalg.lstsq(system.reshape(size, size), right.reshape(size, 1)).solution.view_as(spatial)
    assert alternate(spatial, data, rounds=1).error == pytest.approx(alternate(exact, data, rounds=0).error, rel=1e-4)
