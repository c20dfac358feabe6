"""Alternating least squares for two factors whose product should have given outputs; tensors only, float64.

`Moments` say all of the data that the fit needs. U (original_groups, outputs, mid') is the pointwise factor, V
(original_groups, groups', rank, e) the spatial one, by original group.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from fxfactor.factors.weights import Factors


_CONJUGATE_GRADIENT_STEPS = 12
_LARGEST_DIRECT_SYSTEM = 5000


@dataclass(frozen=True)
class PatchMoments:
    """What least squares needs to know of the inputs x̂ and the outputs y wanted for them, at all positions; float64.

    x̂ is the patch (d,) that a kernel meets in the network factorized so far, d = C_in/original_groups · ∏kernel; y is
    the output (C_out,) of the original network at the same position. A leading dimension counts the original groups.
    """

    count: float  # positions
    input_mean: Tensor  # (original_groups, d)
    output_mean: Tensor  # (original_groups, C_out/original_groups)
    inputs: Tensor  # S = E[(x̂ − E x̂)(x̂ − E x̂)ᵀ], (original_groups, d, d)
    cross: Tensor  # T = E[(y − E y)(x̂ − E x̂)ᵀ], (original_groups, C_out/original_groups, d)
    outputs: Tensor  # E[(y − E y)²], (original_groups, C_out/original_groups)

    def __add__(self, other: PatchMoments) -> PatchMoments:
        """The moments of both sets of positions together (Chan, Golub and LeVeque 1979)."""
        count = self.count + other.count
        share = other.count / count
        dx, dy = other.input_mean - self.input_mean, other.output_mean - self.output_mean
        between = share * (1 - share)

        def mix(mine: Tensor, yours: Tensor) -> Tensor:
            return mine + share * (yours - mine)

        return PatchMoments(
            count,
            self.input_mean + share * dx,
            self.output_mean + share * dy,
            mix(self.inputs, other.inputs) + between * dx[..., :, None] * dx[..., None, :],
            mix(self.cross, other.cross) + between * dy[..., :, None] * dx[..., None, :],
            mix(self.outputs, other.outputs) + between * dy.square(),
        )

    def about_zero(self) -> PatchMoments:
        """The same moments about zero instead of the means, for outputs whose means cannot be corrected."""
        x, y = self.input_mean, self.output_mean
        return PatchMoments(
            self.count,
            torch.zeros_like(x),
            torch.zeros_like(y),
            self.inputs + x[..., :, None] * x[..., None, :],
            self.cross + y[..., :, None] * x[..., None, :],
            self.outputs + y.square(),
        )

    def pulled_to(self, weight: Tensor, strength: float) -> PatchMoments:
        """With as much white noise added to the inputs as is `strength` of their mean variance, seen by `weight` too.

        Ridge regression that shrinks towards the weight (original_groups, C_out/original_groups, d), not towards zero:
        the stronger it is, the closer the best factors come to the truncated SVD of the weight.
        """
        noise = strength * self.inputs.diagonal(dim1=-2, dim2=-1).mean(-1).reshape(-1, 1, 1)
        eye = torch.eye(self.inputs.shape[-1], dtype=self.inputs.dtype, device=self.inputs.device)
        return replace(
            self,
            inputs=self.inputs + noise * eye,
            cross=self.cross + noise * weight,
            outputs=self.outputs + noise.squeeze(-1) * weight.square().sum(-1),
        )

    def output_error(self, factors: Factors) -> float:
        """√(E‖y − U V x̂ − shift‖² / E‖y − E y‖²) with the best shift; 0 where the outputs are constant."""
        lost, total = missed(*by_original_group(factors, self), self), float(self.outputs.sum())
        return (max(lost, 0.0) / total) ** 0.5 if total > 0 else 0.0


@dataclass(frozen=True)
class Fit:
    """Factors by original group: U (original_groups, outputs, mid') and V (original_groups, groups', rank, e)."""

    pointwise: Tensor
    spatial: Tensor
    error: float  # E‖y − U V x̂‖² under the moments it was fitted to


def by_original_group(factors: Factors, moments: PatchMoments) -> tuple[Tensor, Tensor]:
    """U (original_groups, outputs, mid') and V (original_groups, groups', rank, e) in float64."""
    original_groups, d = moments.input_mean.shape
    width = factors.spatial[0].numel()
    spatial = factors.spatial.double().reshape(original_groups, d // width, -1, width)
    return factors.pointwise.double().reshape(*moments.output_mean.shape, -1), spatial


def scaled(moments: PatchMoments, scale: Tensor) -> PatchMoments:
    """The moments of outputs that are multiplied by `scale`."""
    return replace(
        moments,
        output_mean=moments.output_mean * scale,
        cross=moments.cross * scale[..., None],
        outputs=moments.outputs * scale.square(),
    )


def alternate(spatial: Tensor, moments: PatchMoments, rounds: int) -> Fit:
    """Least squares for U and V in turn, until a round gains less than 0.1 % of the error."""
    total = float(moments.outputs.sum())
    pointwise = _best_pointwise(spatial, moments)
    errors = [missed(pointwise, spatial, moments)]
    for _ in range(rounds):
        spatial = _better_spatial(pointwise, spatial, moments)
        pointwise = _best_pointwise(spatial, moments)
        errors.append(missed(pointwise, spatial, moments))
        if errors[-2] - errors[-1] <= 1e-3 * errors[-2]:
            break
    assert all(new <= old + 1e-9 * total for old, new in pairwise(errors)), errors
    return Fit(pointwise, spatial, errors[-1])


def covariance_with_middle(spatial: Tensor, moments: PatchMoments) -> tuple[Tensor, Tensor]:
    """V S Vᵀ (original_groups, mid', mid') and T Vᵀ (original_groups, outputs, mid')."""
    columns = spatial.shape[1], spatial.shape[3]
    inner = torch.einsum("gmne,gnre->gmnr", _through(spatial, moments).unflatten(-1, columns), spatial)
    cross = torch.einsum("gone,gnre->gonr", moments.cross.unflatten(-1, columns), spatial)
    return inner.flatten(2), cross.flatten(2)


def _through(spatial: Tensor, moments: PatchMoments) -> Tensor:
    """V S, (original_groups, mid', d), without the zeros of V."""
    rows = moments.inputs.unflatten(1, (spatial.shape[1], spatial.shape[3]))
    return torch.einsum("gnre,gnef->gnrf", spatial, rows).flatten(1, 2)


def missed(pointwise: Tensor, spatial: Tensor, moments: PatchMoments) -> float:
    """E‖y − U V x̂‖² = E‖y‖² − 2 ⟨U, T Vᵀ⟩ + ⟨UᵀU, V S Vᵀ⟩."""
    inner, cross = covariance_with_middle(spatial, moments)
    return float(moments.outputs.sum() - 2 * (pointwise * cross).sum() + ((pointwise.mT @ pointwise) * inner).sum())


def _best_pointwise(spatial: Tensor, moments: PatchMoments) -> Tensor:
    """U = T Vᵀ (V S Vᵀ)⁺, after the middle channels are brought to unit variance."""
    inner, cross = covariance_with_middle(spatial, moments)
    deviation = inner.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt()
    unit = torch.where(deviation > 1e-12 * deviation.amax(), 1 / deviation, 0.0)
    inverse = torch.linalg.pinv(inner * unit[..., None] * unit[..., None, :], rtol=1e-12, hermitian=True)
    return (cross * unit[..., None, :]) @ inverse * unit[..., None, :]


def _better_spatial(pointwise: Tensor, spatial: Tensor, moments: PatchMoments) -> Tensor:
    """V nearer to mask∘(UᵀU V S) = mask∘(UᵀT), whose left side is a positive operator on the blocks of V."""
    groups, _, width = spatial.shape[1:]
    gram = pointwise.mT @ pointwise
    rows = gram.unflatten(1, spatial.shape[1:3])

    def apply(v: Tensor) -> Tensor:
        return torch.einsum("gnrm,gmne->gnre", rows, _through(v, moments).unflatten(-1, (groups, width)))

    outputs = pointwise.unflatten(-1, spatial.shape[1:3])
    right = torch.einsum("gonr,gone->gnre", outputs, moments.cross.unflatten(-1, (groups, width)))
    residual = right - apply(spatial)
    if spatial.shape[2] * moments.inputs.shape[-1] <= _LARGEST_DIRECT_SYSTEM and width < groups:
        return spatial + _solve_directly(gram, residual, moments)
    inputs = moments.inputs.diagonal(dim1=-2, dim2=-1).unflatten(-1, (groups, 1, width))
    diagonal = gram.diagonal(dim1=-2, dim2=-1).unflatten(-1, (groups, -1, 1)) * inputs
    return spatial + _conjugate_gradients(apply, residual, diagonal)


def _solve_directly(gram: Tensor, residual: Tensor, moments: PatchMoments) -> Tensor:
    """The step that makes the residual vanish: entry (i, a), (j, b) of the system is (UᵀU)_ij S_ab of their groups."""
    groups, rank, width = residual.shape[1:]
    inputs = moments.inputs.unflatten(2, (groups, 1, width)).unflatten(1, (groups, 1, width))
    pairs = gram.unflatten(2, (groups, rank, 1)).unflatten(1, (groups, rank, 1))
    system = (inputs * pairs).reshape(len(gram), residual[0].numel(), residual[0].numel())
    diagonal = system.diagonal(dim1=-2, dim2=-1)
    diagonal += 1e-10 * diagonal.mean(-1, keepdim=True)
    step = torch.cholesky_solve(residual.flatten(1).unsqueeze(-1), torch.linalg.cholesky(system))
    return step.reshape(residual.shape)


def _conjugate_gradients(apply: Callable[[Tensor], Tensor], residual: Tensor, diagonal: Tensor) -> Tensor:
    """A few steps on apply(x) = residual from x = 0, preconditioned by the diagonal (Shewchuk 1994, section B3)."""
    precondition = torch.where(diagonal > 0, 1 / diagonal, 0.0)
    solution = torch.zeros_like(residual)
    direction = precondition * residual
    energy = (residual * direction).sum()
    least = 1e-20 * energy
    for _ in range(_CONJUGATE_GRADIENT_STEPS):
        if energy <= least:
            break
        image = apply(direction)
        length = energy / (direction * image).sum()
        solution = solution + length * direction
        residual = residual - length * image
        new = (residual * precondition * residual).sum()
        direction = precondition * residual + new / energy * direction
        energy = new
    return solution
