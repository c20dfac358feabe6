"""One walk over the calibration images: fit the factors of every site, in order, to what the original network computes.

The original graph and the factorized one are walked in lockstep. At each site the moments of what enters it in the
factorized network (with the errors of all sites before it) and of what leaves it in the original are summed over the
images; the new factors are put in place; the walk goes on through them. Patches of a few images at a time are laid out,
never those of the whole set; sums are float64.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.factors.fit import fitted_factors
from fxfactor.factors.least_squares import PatchMoments
from fxfactor.factors.lockstep import Lockstep, moments_of
from fxfactor.factors.sums import OriginalTarget, SumTarget
from fxfactor.factors.weights import Factors, svd_factors
from fxfactor.graph.mixed_precision import Precision
from fxfactor.graph.questions import BatchNorm, Convolution, Site, batch_norm_behind, sites
from fxfactor.graph.watching import images_of
from fxfactor.progress import track


@dataclass(frozen=True)
class Fitted:
    """What was fitted at `site`, and how much of the standard deviation of its outputs is still missed."""

    site: str
    factors: Factors
    svd_error: float  # the same for the truncated SVD of the weight, its outputs' means corrected too
    output_error: float


@torch.no_grad()
def fit_to_outputs(
    original: GraphModule,
    graph: GraphModule,
    batches: Iterable[Any],
    memory_limit: int = 2 << 30,
    done: Collection[str] = (),
    precision: Precision = "float32",
) -> list[Fitted]:
    """Fit all factors of `graph` to the outputs that `original` has on calibration images, in place.

    Before: `graph` is `original` with `site.spatial` → `site.pointwise` in the place of some convolutions, with factors
    of any kind. After: factors that make each site's outputs those of the original, given the inputs that the factorized
    network has there. A shift of the outputs' means goes into the bias of the pointwise factor, or into the running mean
    of the batch norm behind it; where there is neither, the means are fitted like everything else. Before a residual
    addition the target is the original sum less what the factorized shortcut brings (`fxfactor.factors.sums`). A site with
    several calls is fitted to all of them together; where a call comes behind factors that are not fitted yet, its own from
    an earlier call among them, to what enters it in the original.

    batches: tensors of images, or tuples that start with one; gone through once, and kept. A quarter of them is held
    out to choose the ridge, all are fitted to. memory_limit: bytes of activations that are kept from one site to the
    next for each of the two networks; beyond it a batch is run anew from its start for every site. done: sites that are
    left as they are, since they have been fitted before. precision: with "bfloat16" both networks run in mixed precision; moments
    are summed and solved as ever.

    Cost: one run of both networks, d² multiplications per output position and site, d = C_in·∏kernel/groups, and the
    fit itself (`fitted_factors`). ResNet-20, 256 images: 9 s on one core. Raises PreconditionError without images.
    """
    images = images_of(batches, "fitting to outputs")
    if len(images) < 4:
        images = [part for batch in images for part in batch.chunk(4)]
    original_walk, walk = (Lockstep(each, images, memory_limit, precision) for each in (original, graph))
    before = sites(original)
    new = {name: site for name, site in sites(graph).items() if site.factorized and not before[name].factorized}
    found = [(name, site) for name, site in new.items() if name not in done]
    factors = {node for site in new.values() for call in site.calls for node in call}
    unfitted = {node for _, site in found for call in site.calls for node in call}
    fitted = []
    for name, site in track(found, "fitting to outputs"):
        targets = _targets(before[name], site, (original_walk, walk), factors, unfitted)
        fitted.append(_fit_site(name, before[name], site, targets))
        walk.forget_behind(site.nodes[0])
        unfitted.difference_update(node for call in site.calls for node in call)
    return fitted


def _targets(
    before: Site,
    site: Site,
    walks: tuple[Lockstep, Lockstep],
    factors: Collection[Node],
    unfitted: Collection[Node],
) -> list[SumTarget | OriginalTarget]:
    """What the site should compute, at every call."""
    return [
        OriginalTarget(node, walks[0]) if walks[1].needs(call[0], unfitted) else SumTarget(node, call, walks, factors)
        for (node,), call in zip(before.calls, site.calls, strict=True)
    ]


def _fit_site(name: str, before: Site, site: Site, targets: list[SumTarget | OriginalTarget]) -> Fitted:
    conv = cast(Convolution, before.modules[0])
    spatial, pointwise = site.modules
    moments, held_out = _collect(conv, targets)
    receiver = receiver_of_shift(site)
    if receiver is None:
        moments, held_out = moments.about_zero(), held_out and held_out.about_zero()
    start = svd_factors(conv.weight, spatial.groups, spatial.out_channels, conv.groups)
    importance = importance_of(site)
    factors = fitted_factors(conv.weight, start, moments, held_out, importance, conv.groups)
    everything = moments if held_out is None else moments + held_out
    spatial.weight.copy_(factors.spatial)
    pointwise.weight.copy_(factors.pointwise)
    if receiver is not None:
        shift_outputs(receiver, receiver_of_shift(before), cast(Tensor, factors.shift))
    return Fitted(name, factors, everything.output_error(start), cast(float, factors.output_error))


def shift_outputs(receiver: nn.Module, original: nn.Module | None, shift: Tensor) -> None:
    """Let the bias, or the batch norm in the place of the `original` one, add `shift` to the outputs."""
    if isinstance(receiver, BatchNorm):
        mean = cast(Tensor, cast(nn.Module, original).running_mean)
        cast(Tensor, receiver.running_mean).copy_(mean - shift)
    else:
        cast(Tensor, receiver.bias).copy_(shift)


def receiver_of_shift(site: Site) -> nn.Module | None:
    """What can add a constant to the outputs of a site: the pointwise factor's bias or the batch norm behind it."""
    pointwise = site.modules[-1]
    norm = batch_norm_behind(site)
    return pointwise if pointwise.bias is not None else norm


def importance_of(site: Site) -> Tensor | None:
    """γ²/(σ² + ε) of the batch norm behind: what a unit of squared error becomes there. None where there is none."""
    norm = batch_norm_behind(site)
    if norm is None:
        return None
    scale = torch.rsqrt(cast(Tensor, norm.running_var).double() + cast(float, norm.eps))
    return scale.square() if norm.weight is None else (scale * cast(Tensor, norm.weight)).square()


def _collect(conv: Convolution, targets: list[SumTarget | OriginalTarget]) -> tuple[PatchMoments, PatchMoments | None]:
    """Moments at a site over three quarters of the batches and over the last one (None for fewer than 4 batches)."""
    sums: list[PatchMoments | None] = [None, None]
    for target in targets:
        for index in target.batches:
            for part in moments_of(*target.of(index), conv):
                held = index % 4 == 3
                total = sums[held]
                sums[held] = part if total is None else total + part
    return cast(PatchMoments, sums[0]), sums[1]
