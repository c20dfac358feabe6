"""Weight in, factors out: a k×k convolution becomes a grouped k×k convolution and a pointwise one.

Tensors only; no module and no graph is seen here. All arithmetic is float64, whatever the weight's own type.

For a weight (C_out, C_in/original_groups, *kernel) and `groups` groups in the spatial factor, block b of the weight is
the matrix W_b (C_out/original_groups, C_in/groups · ∏kernel) that meets the inputs of group b. The spatial factor V
(mid, C_in/groups, *kernel) gives each group mid/groups rows V_b, the pointwise factor U
(C_out, mid/original_groups, 1, …) as many columns U_b, and U_b V_b approximates W_b: `pointwise ∘ spatial` approximates
the convolution.

`svd_factors` looks at the weight alone. `fitted_factors` makes the outputs agree on images, given their `Moments`: the
truncated SVD of ResNet-20's weights at level 3 gives 20 % on CIFAR-10, factors fitted to its outputs 75 %.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn.functional import pad

from fxfactor.errors import PreconditionError
from fxfactor.least_squares import Fit, Moments, alternate, by_original_group, covariance_with_middle, missed, scaled

__all__ = ["Factors", "Moments", "fitted_factors", "join_blocks", "split_blocks", "split_originals", "svd_factors"]

# A component weaker than this fraction of the strongest keeps a spatial filter of this relative size, and a pointwise
# column that makes up for it: a filter of zeros has no quantization scale and, under a column of zeros, no gradient.
_WEAKEST_FILTER = 1e-2


@dataclass(frozen=True)
class Factors:
    """The weights of the two convolutions, and how far their product is from the weight they replace."""

    spatial: Tensor  # (mid, C_in/groups, *kernel)
    pointwise: Tensor  # (C_out, mid/original_groups, 1, ...)
    relative_error: float  # ‖W − U V‖_F / ‖W‖_F
    output_error: float | None = None  # root of the part of the outputs' variance that is missed, where data was fitted
    shift: Tensor | None = None  # (C_out,), to be added to the outputs so that their means agree, where data was fitted


def svd_factors(weight: Tensor, groups: int, mid: int | None = None, original_groups: int = 1) -> Factors:
    """Split a convolution's weight into a grouped spatial and a pointwise factor, best in the Frobenius norm.

    Before: weight (C_out, C_in/original_groups, *kernel), one to three spatial dimensions.
    After:  spatial (mid, C_in/groups, *kernel) and pointwise (C_out, mid/original_groups, 1, …), in the weight's type.

    Every block W_b is cut to its mid/groups strongest singular components, W_b ≈ Q diag(σ) Pᵀ, which no other factors
    of that rank beat (Eckart and Young 1936). With mid/groups at or above the rank of the blocks the product is the
    weight, up to rounding. Component j is split evenly, V_j = √σ_j·p_jᵀ and U_j = √σ_j·q_j, for quantization's sake:
    a channel of the spatial weight has its own scale, so s_j = ‖V_j‖ is free there, but the tensor between the factors
    has one step for all channels, ∝ max s, and a row of U one step for all its columns, ∝ max σ/s. The noise that
    reaches the output, max(s)²·Σ(σ_j/s_j)² + max(σ/s)²·Σ s_j², is least at s_j ∝ √σ_j, with one constant throughout.

    The eigenvectors of the smaller Gram matrix serve as Q or P, and the other side is W projected on them: 2 to 7 times
    faster than an SVD, and exact at full rank since the projection then loses nothing.

    Cost: one eigendecomposition of n×n per group, n = min(C_out/original_groups, C_in/groups·∏kernel); 0.15 s for
    512×512×3×3 on one core. Raises PreconditionError for settings that no pair of convolutions can have.
    """
    mid = weight.shape[1] * original_groups if mid is None else mid
    _require_possible(weight, groups, mid, original_groups)
    exact = weight.detach().to(torch.float64)
    pointwise, spatial = _truncated_svd(split_blocks(exact, groups, original_groups), mid // groups)
    return _assemble(exact, pointwise, spatial, weight.dtype, original_groups)


def fitted_factors(
    weight: Tensor,
    start: Factors,
    moments: Moments,
    held_out: Moments | None = None,
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


def split_blocks(weight: Tensor, groups: int, original_groups: int = 1) -> Tensor:
    """Cut a weight (C_out, C_in/original_groups, *kernel) into its blocks W_b: (groups, C_out/original_groups, d)."""
    per_group = groups // original_groups
    outputs = weight.shape[0] // original_groups
    blocks = weight.reshape(original_groups, outputs, per_group, -1)
    return blocks.transpose(1, 2).reshape(groups, outputs, -1)


def join_blocks(blocks: Tensor, original_groups: int = 1) -> Tensor:
    """Undo `split_blocks`: (groups, C_out/original_groups, d) becomes (C_out, groups/original_groups · d)."""
    groups, outputs, columns = blocks.shape
    parts = blocks.reshape(original_groups, groups // original_groups, outputs, columns).transpose(1, 2)
    return parts.reshape(original_groups * outputs, -1)


def split_originals(weight: Tensor, original_groups: int = 1) -> Tensor:
    """The weight of every original group as a matrix: (original_groups, C_out/original_groups, d)."""
    return weight.reshape(original_groups, weight.shape[0] // original_groups, -1)


_RIDGES = (1e-1, 1e-2, 1e-3, 1e-4, 1e-5)
_RIDGE_UNSEEN = 1e-4


def _fit_best_ridge(
    begin: Tensor, weight: Tensor, moments: Moments, held_out: Moments | None, scale: Tensor, rounds: int
) -> Fit:
    """Fit to all moments, with the noise that predicts the held-out ones best."""
    strength = _RIDGE_UNSEEN
    if held_out is not None:
        fit, unseen = scaled(moments, scale), scaled(held_out, scale)
        trials = {each: alternate(begin, fit.pulled_to(weight, each), 3) for each in _RIDGES}
        strength = min(_RIDGES, key=lambda each: missed(trials[each].pointwise, trials[each].spatial, unseen))
        moments = moments + held_out
    return alternate(begin, scaled(moments, scale).pulled_to(weight, strength), rounds)


def _output_scale(importance: Tensor | None, moments: Moments) -> Tensor:
    """Root of the importance of every output channel, (original_groups, outputs), none below 1 % of the largest."""
    if importance is None:
        return torch.ones_like(moments.outputs)
    root = importance.detach().to(torch.float64).sqrt().reshape(moments.outputs.shape)
    return root.clamp_min(1e-2 * root.max()) if root.max() > 0 else torch.ones_like(root)


def _balance_middle(pointwise: Tensor, spatial: Tensor, moments: Moments) -> tuple[Tensor, Tensor]:
    """Rescale every middle channel so that its magnitude on the data is that of its pointwise column."""
    about_zero = moments.about_zero()
    variance = covariance_with_middle(spatial, about_zero)[0].diagonal(dim1=-2, dim2=-1)
    magnitude = variance.clamp_min(0).sqrt()
    root = (magnitude * torch.linalg.vector_norm(pointwise, dim=-2)).sqrt()
    wanted = root.clamp_min(_WEAKEST_FILTER * root.max())
    factor = torch.where(magnitude > 1e-9 * magnitude.max(), wanted / magnitude, 1.0)
    return pointwise / factor[..., None, :], spatial * factor.unflatten(-1, spatial.shape[1:3])[..., None]


def _with_output_error(factors: Factors, moments: Moments) -> Factors:
    """Add what the factors, in the type they have now, lose on the data, and the shift that makes the means agree."""
    pointwise, spatial = by_original_group(factors, moments)
    middle = torch.einsum("gnre,gne->gnr", spatial, moments.input_mean.unflatten(-1, (spatial.shape[1], -1)))
    shift = moments.output_mean - (pointwise @ middle.flatten(1).unsqueeze(-1)).squeeze(-1)
    shift = shift.flatten().to(factors.spatial.dtype)
    return replace(factors, output_error=moments.output_error(factors), shift=shift)


def _truncated_svd(blocks: Tensor, rank: int) -> tuple[Tensor, Tensor]:
    """The best factors of every block, balanced: U_b (groups, outputs, rank) and V_b (groups, rank, d)."""
    wide = blocks.shape[1] <= blocks.shape[2]
    flat = blocks if wide else blocks.mT
    basis = torch.linalg.eigh(flat @ flat.mT).eigenvectors.flip(-1)[..., :rank]
    projected = basis.mT @ flat
    missing = rank - basis.shape[-1]  # a block has no more components than its rank: the rest stay empty
    basis = pad(basis, (0, missing))
    projected = pad(projected, (0, 0, 0, missing))
    return _balance(basis, projected) if wide else _balance(projected.mT, basis.mT)


def _balance(pointwise: Tensor, spatial: Tensor) -> tuple[Tensor, Tensor]:
    """Rescale every component so that its spatial filter has norm √σ; the product stays as it is."""
    filters = torch.linalg.vector_norm(spatial, dim=-1, keepdim=True)
    root = (filters * torch.linalg.vector_norm(pointwise, dim=-2).unsqueeze(-1)).sqrt()
    strongest = root.max()
    norms = root.clamp_min(_WEAKEST_FILTER * torch.where(strongest > 0, strongest, 1.0))
    unit = torch.where(filters > 0, spatial / filters, _unit_rows(spatial))
    return pointwise * (filters / norms).mT, unit * norms


def _unit_rows(like: Tensor) -> Tensor:
    """Unit vectors in turn, for filters that have no direction of their own."""
    rows, columns = like.shape[-2:]
    return torch.eye(columns, dtype=like.dtype, device=like.device)[torch.arange(rows, device=like.device) % columns]


def _assemble(weight: Tensor, pointwise: Tensor, spatial: Tensor, dtype: torch.dtype, original_groups: int) -> Factors:
    """Shape the blocks as convolution weights of `dtype`, and measure what is left of the weight after that."""
    pointwise, spatial = pointwise.to(dtype), spatial.to(dtype)
    groups, rank, _ = spatial.shape
    product = pointwise.to(weight.dtype) @ spatial.to(weight.dtype)
    error = torch.linalg.vector_norm(split_blocks(weight, groups, original_groups) - product)
    norm = torch.linalg.vector_norm(weight)
    return Factors(
        spatial=spatial.reshape(groups * rank, -1, *weight.shape[2:]),
        pointwise=join_blocks(pointwise, original_groups).reshape(weight.shape[0], -1, *[1] * (weight.dim() - 2)),
        relative_error=float(error / norm) if norm > 0 else 0.0,
    )


def _require_possible(weight: Tensor, groups: int, mid: int, original_groups: int) -> None:
    """Raise PreconditionError unless a grouped and a pointwise convolution can stand for this weight."""
    shape = tuple(weight.shape)
    if not 3 <= weight.dim() <= 5:
        raise PreconditionError(
            f"a convolution's weight has 3 to 5 dimensions (C_out, C_in/groups, *kernel), found {shape}: "
            "give linear layers as they are, only convolutions are factorized"
        )
    if original_groups < 1 or shape[0] % original_groups:
        raise PreconditionError(
            f"original_groups must be a positive divisor of the {shape[0]} output channels, found {original_groups}: "
            "pass the `groups` of the convolution that the weight belongs to"
        )
    channels = shape[1] * original_groups
    if groups < 1 or channels % groups or groups % original_groups:
        raise PreconditionError(
            f"groups must divide the {channels} input channels and be a multiple of original_groups="
            f"{original_groups}, found {groups}: take a multiple of {original_groups} that divides {channels}"
        )
    if mid < 1 or mid % groups:
        raise PreconditionError(
            f"mid must be a positive multiple of groups={groups}, found {mid}: "
            f"take {max(1, round(mid / groups)) * groups}"
        )
    if not weight.is_floating_point() or not torch.isfinite(weight).all():
        raise PreconditionError(
            f"the weight {shape} must be real and finite, found {weight.dtype} with "
            f"{int((~torch.isfinite(weight)).sum())} entries that are not finite: repair or retrain the layer first"
        )
