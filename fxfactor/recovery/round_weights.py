"""Weights rounded so that the outputs stay: every quantized layer in turn, on calibration images, without training.

The original network and the quantized one are walked in lockstep, as when factors are fitted
(`fxfactor.factors.fit_to_outputs`). At each layer the moments of what enters it in the quantized network, with the
errors of all layers and quantizers before it, and of what leaves it in the original are summed; the layer's best
weights are found by least squares, clipped where that loses least, and rounded one input after the other while the
inputs to come make up for the error. What is left in the means of the outputs goes into the bias or the batch norm
behind.

Nothing is added to the layer: the rounded values are written into its weight, and its own quantizer, whose scale comes
from the largest weight, gives back the same.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.factors.fit_to_outputs import receiver_of_shift, shift_outputs
from fxfactor.factors.least_squares import PatchMoments
from fxfactor.factors.lockstep import Lockstep, moments_of
from fxfactor.factors.sums import SumTarget
from fxfactor.factors.weights import split_originals
from fxfactor.graph.capture import as_graph
from fxfactor.graph.questions import TRANSPOSED, Site, batch_norm_behind, layers, sites
from fxfactor.graph.watching import evaluating, images_of
from fxfactor.pipeline import forget_judged
from fxfactor.progress import track
from fxfactor.quantization.brevitas_layers import is_quantized_layer, weight_bits_of

_CLIPS = torch.linspace(1.0, 0.3, 29).tolist()
"""Limits of the weights that are tried, as parts of the largest one."""

BLOCK = 128
"""Inputs that are rounded before all later weights make up for them; changes the time only."""


@dataclass(frozen=True)
class Rounded:
    """What was rounded at `path`, and which part of its outputs' standard deviation is missed, the ridge's noise included."""

    path: str
    nearest_error: float  # with every weight rounded to the nearest level below the largest one
    output_error: float


@checked
@torch.no_grad()
def round_weights(
    original: nn.Module,
    qmodel: GraphModule,
    batches: Iterable[Any],
    *,
    ridge: float = 0.1,
    memory_limit: int = 2 << 30,
) -> list[Rounded]:
    """Round the weights of all Brevitas layers of `qmodel` so that its outputs stay near the original's, in place.

    Before: `qmodel` is `original` (a model, or its graph) after passes, quantized and calibrated, not yet reconstructed
    or trained. After: weights that lie on the levels of their quantizers, for which E‖y − Q x̂ − shift‖² is small; y is
    the original's output (before a residual addition: the original sum less what the quantized shortcut brings), x̂
    what enters in the quantized network. A layer that has no counterpart (a spatial factor, a layer with another bias
    or batch norm than in the original) is rounded towards its own output. Activation ranges stay.

    batches: tensors of images, or tuples that start with one; gone through once, and kept. ridge: white noise on the
    inputs, as a part of their mean variance, that pulls the best weights to the present ones. memory_limit: as in
    `fit_to_outputs`.

    Rounding is that of GPTQ (Frantar et al. 2022, arXiv 2210.17323; Optimal Brain Surgeon), towards targets as in
    asymmetric reconstruction (Zhang et al. 2015, arXiv 1505.06798). A layer never gets worse than with every weight
    rounded to the nearest level. Cost: as `fit_to_outputs`. Transposed convolutions are left as they are. Raises
    PreconditionError without images, without quantized layers, and where `ridge` is not above 0.
    """
    if not 0 < ridge < math.inf:
        raise PreconditionError(f"round_weights(ridge=…) must be a number above 0, found {ridge!r}; 0.1 is the default")
    images = images_of(batches, "rounding")
    todo: dict[nn.Module, list[Node]] = {}
    for node, layer in layers(qmodel):
        if can_round(layer):
            todo.setdefault(layer, []).append(node)
    if not todo:
        raise PreconditionError(
            "rounding needs Brevitas convolutions or linear layers, found none; quantize first, with bits= or passes.Quantize"
        )
    original = as_graph(original, qmodel)
    forget_judged(qmodel)
    walks = Lockstep(original, images, memory_limit), Lockstep(qmodel, images, memory_limit)
    twins = _twins(sites(original), sites(qmodel))
    with evaluating(qmodel):
        return [
            _round_layer_of(nodes, layer, twins, walks, ridge) for layer, nodes in track(list(todo.items()), "rounding")
        ]


def can_round(layer: nn.Module) -> bool:
    """Whether `round_weights` rounds this layer: a Brevitas one that is not transposed."""
    return is_quantized_layer(layer) and not isinstance(layer, TRANSPOSED)


def _twins(before: dict[str, Site], after: dict[str, Site]) -> dict[Node, tuple[Site, Node]]:
    """The site and the call in the original whose outputs a layer of the quantized network should have there."""
    return {
        call[-1]: (before[name], wanted[0])
        for name, site in after.items()
        if name in before and not before[name].factorized and _behind(before[name]) == _behind(site)
        for call, wanted in zip(site.calls, before[name].calls, strict=True)
    }


def _behind(site: Site) -> tuple[bool, bool]:
    """Whether a bias and a batch norm follow the product: only where they agree are the outputs comparable."""
    return site.modules[-1].bias is not None, batch_norm_behind(site) is not None


def _round_layer_of(
    nodes: list[Node],
    layer: nn.Module,
    twins: dict[Node, tuple[Site, Node]],
    walks: tuple[Lockstep, Lockstep],
    ridge: float,
) -> Rounded:
    """Round a layer for all its calls together."""
    total: PatchMoments | None = None
    for node in nodes:
        for x, y in _wanted_at(node, layer, twins, walks):
            for part in _moments_of_layer(x, y, layer):
                total = part if total is None else total + part
    moments = cast(PatchMoments, total)
    first, *further = ((node,) for node in nodes)
    site, (twin, _) = Site(str(nodes[0].target), first, (layer,), tuple(further)), twins.get(nodes[0], (None, None))
    receiver = receiver_of_shift(site)
    about = moments if receiver is not None else moments.about_zero()
    errors = _round_layer(layer, about, ridge)
    if receiver is not None:
        rounded = split_originals(cast(Any, layer).quant_weight().value.double(), len(moments.input_mean))
        shift = moments.output_mean - (rounded @ moments.input_mean.unsqueeze(-1)).squeeze(-1)
        shift_outputs(receiver, receiver if twin is None else receiver_of_shift(twin), shift.flatten())
    walks[1].forget_behind(nodes[0])
    return Rounded(site.name, *errors)


def _wanted_at(
    node: Node, layer: nn.Module, twins: dict[Node, tuple[Site, Node]], walks: tuple[Lockstep, Lockstep]
) -> Iterator[tuple[Tensor, Tensor]]:
    """What enters the layer at one of its calls and what should leave it, batch by batch."""
    walk = walks[1]
    if node in twins:
        target = SumTarget(twins[node][1], (node,), walks)
        yield from (target.of(index) for index in target.batches)
        return
    for index in range(len(walk.images)):
        x = walk.input_of(index, node)
        yield x, _exact_output(layer, x)


def _exact_output(layer: nn.Module, x: Tensor) -> Tensor:
    """The output of the layer with its weights unrounded."""
    exact = cast(Any, layer)
    return cast(Tensor, exact.inner_forward_impl(x, exact.weight, exact.bias))


def _moments_of_layer(x: Tensor, y: Tensor, layer: nn.Module) -> Iterable[PatchMoments]:
    if not isinstance(layer, nn.Linear):
        return moments_of(x, y, cast(Any, layer))
    as_convolution = nn.Conv1d(layer.in_features, layer.out_features, 1, device="meta")
    return moments_of(x.reshape(-1, x.shape[-1], 1), y.reshape(-1, y.shape[-1], 1), as_convolution)


def _round_layer(layer: Any, moments: PatchMoments, ridge: float) -> tuple[float, float]:
    """Write the best rounded weights into `layer`; gives the error with the nearest levels and the one now."""
    groups = len(moments.inputs)
    present = split_originals(layer.weight.double(), groups)
    noisy = _alive(moments.pulled_to(present, ridge), present)
    nearest = _missed(split_originals(layer.quant_weight().value.double(), groups), noisy)
    target = torch.linalg.solve(noisy.inputs, noisy.cross.mT).mT
    limits = _best_limits(layer, target, noisy.inputs.diagonal(dim1=-2, dim2=-1))
    _put(layer, target.clamp(-limits, limits))
    new = _compensated(layer, target.clamp(-limits, limits), noisy.inputs)
    _put(layer, new if weight_bits_of(layer) != 1 else _at_best_scale(layer, new, noisy))
    missed = _missed(split_originals(layer.quant_weight().value.double(), groups), noisy)
    found, otherwise = split_originals(layer.weight.double(), groups), nearest
    if weight_bits_of(layer) == 1:
        present = _at_best_scale(layer, present, noisy)
        otherwise = _missed(present, noisy)
    gains = missed < otherwise if _has_channel_scales(layer) else (missed.sum() < otherwise.sum()).expand_as(missed)
    _put(layer, torch.where(gains.unsqueeze(-1), found, present))
    now = _missed(split_originals(layer.quant_weight().value.double(), groups), noisy)
    total = noisy.outputs.sum().clamp_min(torch.finfo(torch.float64).tiny)
    before, after = ((each.sum().clamp_min(0) / total).sqrt() for each in (nearest, now))
    return float(before), float(after)


def _alive(moments: PatchMoments, weight: Tensor) -> PatchMoments:
    """The same, with inputs that are always zero replaced by white noise seen by `weight`."""
    dead = (moments.inputs.diagonal(dim1=-2, dim2=-1).sum(-1) == 0).double().reshape(-1, 1, 1)
    eye = torch.eye(moments.inputs.shape[-1], dtype=torch.float64, device=moments.inputs.device)
    return replace(moments, inputs=moments.inputs + dead * eye, cross=moments.cross + dead * weight)


def _missed(weight: Tensor, moments: PatchMoments) -> Tensor:
    """E(y − w x̂)² of every output, (original_groups, outputs)."""
    return moments.outputs + ((weight @ moments.inputs - 2 * moments.cross) * weight).sum(-1)


def _has_channel_scales(layer: Any) -> bool:
    return bool(layer.quant_weight().scale.numel() == len(layer.weight))


def _put(layer: Any, weight: Tensor) -> None:
    layer.weight.copy_(weight.reshape(layer.weight.shape))


def _best_limits(layer: Any, target: Tensor, importance: Tensor) -> Tensor:
    """Where to clip the weights of every output channel, (original_groups, outputs, 1), by the layer's own quantizer.

    Least is the sum of squared errors of the weights, each weighted by the variance of its input.
    """
    alone = _has_channel_scales(layer)
    largest = target.abs().amax(-1, keepdim=True)
    largest = largest if alone else largest.max().expand_as(largest)
    limits, least = largest.clone(), torch.full_like(largest, torch.inf)
    for part in _CLIPS:
        _put(layer, target.clamp(-part * largest, part * largest))
        rounded = layer.quant_weight().value.double().reshape(target.shape)
        error = ((rounded - target).square() * importance.unsqueeze(1)).sum(-1, keepdim=True)
        error = error if alone else error.sum().expand_as(error)
        limits = torch.where(error < least, part * largest, limits)
        least = torch.minimum(error, least)
    return limits


def _at_best_scale(layer: Any, weight: Tensor, moments: PatchMoments) -> Tensor:
    """Weights of one bit with the same signs, and the magnitude for which the error is least."""
    signs = torch.where(weight < 0, -1.0, 1.0).to(weight)
    wanted, given = (
        (signs * moments.cross).sum(-1, keepdim=True),
        ((signs @ moments.inputs) * signs).sum(-1, keepdim=True),
    )
    if not _has_channel_scales(layer):
        wanted, given = wanted.sum().expand_as(wanted), given.sum().expand_as(given)
    return signs * (wanted / given).clamp_min(torch.finfo(torch.float32).tiny)


def _compensated(layer: Any, target: Tensor, covariance: Tensor) -> Tensor:
    """Round `target`, which the layer holds, input by input; what is lost at one the later ones make up for.

    Inputs of large variance come first. The largest weight of a channel stays, and is rounded by the layer itself: so the
    scale stays too, that of a quantizer with powers of two as well. Weights of one bit all have the magnitude of the scale.
    """
    quantized, one_bit = layer.quant_weight(), weight_bits_of(layer) == 1
    scale = quantized.scale.double().flatten().expand(len(layer.weight)).reshape(*target.shape[:2], 1)
    levels = (quantized.value.double().reshape(target.shape) / scale).round()
    top = levels.abs().amax(-1) if _has_channel_scales(layer) else levels.abs().max()
    largest = torch.zeros_like(levels)
    if not one_bit:
        largest.scatter_(-1, target.abs().argmax(-1, keepdim=True), 1.0)
    order = covariance.diagonal(dim1=-2, dim2=-1).argsort(dim=-1, descending=True, stable=True)
    columns = order.unsqueeze(1).expand_as(target)
    weight, levels, kept = (each.gather(-1, columns) for each in (target / scale, levels, largest))
    sorted_covariance = covariance.gather(1, order.unsqueeze(-1).expand_as(covariance)).gather(
        2, order.unsqueeze(1).expand_as(covariance)
    )
    inverse = torch.cholesky_inverse(torch.linalg.cholesky(sorted_covariance))
    upper = torch.linalg.cholesky(inverse, upper=True)
    for begin in range(0, target.shape[-1], BLOCK):
        end = min(begin + BLOCK, target.shape[-1])
        errors = torch.zeros_like(weight[..., begin:end])
        for i in range(begin, end):
            here = weight[..., i]
            nearest = torch.where(here < 0, -1.0, 1.0).to(here) if one_bit else here.round().clamp(-top, top)
            levels[..., i] = torch.where(kept[..., i] > 0, levels[..., i], nearest)
            errors[..., i - begin] = (weight[..., i] - levels[..., i]) / upper[:, i, i, None]
            weight[..., i + 1 : end] -= errors[..., i - begin, None] * upper[:, None, i, i + 1 : end]
        weight[..., end:] -= errors @ upper[:, begin:end, end:]
    rounded = torch.zeros_like(levels).scatter_(-1, columns, levels) * scale
    return torch.where(largest > 0, target, rounded)
