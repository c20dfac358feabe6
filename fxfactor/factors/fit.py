"""Factors fitted to the outputs of a convolution, given the moments of what enters and leaves it."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from fxfactor.factors.least_squares import (
    Fit,
    PatchMoments,
    alternate,
    by_original_group,
    covariance_with_middle,
    missed,
    scaled,
)
from fxfactor.factors.weights import (
    _WEAKEST_FILTER,
    Factors,
    _assemble,
    join_blocks,
    split_blocks,
    split_originals,
    svd_factors,
)

__all__ = ["Factors", "PatchMoments", "fitted_factors", "join_blocks", "split_blocks", "split_originals", "svd_factors"]


def fitted_factors(
    weight: Tensor,
    start: Factors,
    moments: PatchMoments,
    held_out: PatchMoments | None = None,
    importance: Tensor | None = None,
    original_groups: int = 1,
    rounds: int = 15,
) -> Factors:
    """Fit factors to the outputs that a convolution should have, given the inputs that its replacement will get.

    Before: `start`, from `svd_factors` or a coarser fit. After: factors of the same shapes that minimise
    E‖y − U V x̂ − shift‖², V masked to its groups, the channels of y weighted by `importance` (C_out,). In turn

        U = T Vᵀ (V S Vᵀ)⁺              exact, and
        mask∘(UᵀU V S) = mask∘(UᵀT)     for V: by conjugate gradients from where V stands, or in one solve where every
                                        group is one channel (depthwise: the system is d×d)

    so the error falls from half-step to half-step, up to rounding; that is asserted. White noise on the inputs keeps
    the factors near the weight where the data says nothing (`Moments.pulled_to`). With `held_out`, moments of other
    images, its strength is the one of 0.1 … 1e-5 that predicts those best, and the final fit uses all; without it 1e-4.
    The fit never loses to `start` = `svd_factors(...)` on the data it is fitted to: the SVD is best at the noise.

    Cost per round: a few products (mid, d)·(d, d)/groups, in float64. Minimised as in Zhang et al. 2015 (arXiv
    1505.06798, asymmetric reconstruction: X of the original, X̂ of the network so far), with grouped factors.
    """
    scale = _output_scale(importance, moments)
    original = split_originals(weight.detach().to(torch.float64), original_groups) * scale[..., None]
    _, begin = by_original_group(start, moments)
    fit = _fit_best_ridge(begin, original, moments, held_out, scale, rounds)
    everything = moments if held_out is None else moments + held_out
    pointwise, spatial = _balance_middle(fit.pointwise / scale[..., None], fit.spatial, everything)
    blocks = pointwise.unflatten(-1, spatial.shape[1:3]).transpose(1, 2).flatten(0, 1), spatial.flatten(0, 1)
    factors = _assemble(weight.detach().to(torch.float64), *blocks, weight.dtype, original_groups)
    return _with_output_error(factors, everything)


_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_RIDGE_UNSEEN = 1e-4


def _fit_best_ridge(
    begin: Tensor, weight: Tensor, moments: PatchMoments, held_out: PatchMoments | None, scale: Tensor, rounds: int
) -> Fit:
    """Fit to all moments, with the noise that predicts the held-out ones best."""
    strength = _RIDGE_UNSEEN
    if held_out is not None:
        fit, unseen = scaled(moments, scale), scaled(held_out, scale)
        trials = {each: alternate(begin, fit.pulled_to(weight, each), 3) for each in _RIDGES}
        strength = min(_RIDGES, key=lambda each: missed(trials[each].pointwise, trials[each].spatial, unseen))
        moments = moments + held_out
    return alternate(begin, scaled(moments, scale).pulled_to(weight, strength), rounds)


def _output_scale(importance: Tensor | None, moments: PatchMoments) -> Tensor:
    """Root of the importance of every output channel, (original_groups, outputs), none below 1 % of the largest."""
    if importance is None:
        return torch.ones_like(moments.outputs)
    root = importance.detach().to(torch.float64).sqrt().reshape(moments.outputs.shape)
    return root.clamp_min(1e-2 * root.max()) if root.max() > 0 else torch.ones_like(root)


def _balance_middle(pointwise: Tensor, spatial: Tensor, moments: PatchMoments) -> tuple[Tensor, Tensor]:
    """Rescale every middle channel so that its magnitude on the data is that of its pointwise column."""
    about_zero = moments.about_zero()
    variance = covariance_with_middle(spatial, about_zero)[0].diagonal(dim1=-2, dim2=-1)
    magnitude = variance.clamp_min(0).sqrt()
    root = (magnitude * torch.linalg.vector_norm(pointwise, dim=-2)).sqrt()
    wanted = root.clamp_min(_WEAKEST_FILTER * root.max())
    factor = torch.where(magnitude > 1e-9 * magnitude.max(), wanted / magnitude, 1.0)
    return pointwise / factor[..., None, :], spatial * factor.unflatten(-1, spatial.shape[1:3])[..., None]


def _with_output_error(factors: Factors, moments: PatchMoments) -> Factors:
    """Add what the factors, in the type they have now, lose on the data, and the shift that makes the means agree."""
    pointwise, spatial = by_original_group(factors, moments)
    middle = torch.einsum("gnre,gne->gnr", spatial, moments.input_mean.unflatten(-1, (spatial.shape[1], -1)))
    shift = moments.output_mean - (pointwise @ middle.flatten(1).unsqueeze(-1)).squeeze(-1)
    shift = shift.flatten().to(factors.spatial.dtype)
    return replace(factors, output_error=moments.output_error(factors), shift=shift)
