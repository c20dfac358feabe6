"""The one call: capture, factorize, quantize, calibrate, round."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from typing import Any, get_args

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import capture
from fxfactor.graph.mixed_precision import Precision, require_precision
from fxfactor.graph.questions import convolutions, sites
from fxfactor.graph.watching import images_of
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import HISTORY, Change, Pipeline
from fxfactor.plan.ladder import Level, check_bits, check_join_bits, check_level, check_weight_bits
from fxfactor.plan.plan import Plan
from fxfactor.plan_passes import plan_passes
from fxfactor.quantization.calibrate import calibrate
from fxfactor.recovery.guarded import Recover, recover_on, recovery_for


@partial(checked, but=("model", "level", "bits", "width", "keep", "example_inputs"))
def transform(
    model: nn.Module,
    level: Level | None = None,
    bits: int | tuple[int | None, int | None] | None = None,
    *,
    width: float = 1,
    join_bits: int | None = None,
    plan: Plan | None = None,
    keep: Iterable[str] = (),
    example_inputs: Tensor | tuple[Any, ...] | None = None,
    calibration: Iterable[Any] | None = None,
    recover: Recover | None = None,
    steps: int = 1000,
    compare: bool = True,
    precision: Precision = "float32",
) -> GraphModule:
    """Split the convolutions of a CNN into depth-factorized subgraphs and substitute Brevitas quantized layers.

    Before: any nn.Module with convolutions, or with linear layers alone, which are quantized. After: a trainable
    torch.fx.GraphModule with the same inputs and outputs, in which `site` has become `site.spatial` (grouped k×k) and
    `site.pointwise` (1×1), all layers have `bits`-bit weights and all tensors between them `bits`-bit activations. `model`
    itself is not changed.

    level: an int ≥ 0 (0, the default, factorizes nothing) or "depthwise"; see `fxfactor.groups_at`.
    bits: 2 to 8, or (weight bits, activation bits), where weights may have one, −1 and 1 times a scale; None, the
    default, stays in floating point. The first layer and the classifier get 8 bits. width: channels between the
    factors, as a multiple of the input channels: 2 costs up to twice the MACs and keeps far more accuracy. join_bits:
    of tensors that enter additions, 8 where nothing is said: layers that read such a tensor get a copy in their own
    bits. plan: groups, mid and bits for each layer, instead of level, bits and width.
    keep: module paths that are not factorized. example_inputs: a tensor or tuple of arguments, where the input cannot be
    inferred and there is no calibration.
    calibration: batches of images; the factors are then fitted to the outputs on them and the activation ranges set
    from them. Without them the factors are fitted to the weights, and the batch norms' statistics give the ranges.
    recover: how much time to spend on the images then. "none"; "round", seconds: `fxfactor.round_weights`; "reconstruct",
    minutes: `steps` of `fxfactor.reconstruct` after it. Where nothing is said, weights of fewer than 8 bits are rounded. A
    quarter of the images is held out of these steps; one that brings the outputs no nearer to the original's there is taken back.

    compare: as for `fxfactor.capture`: with False a network whose graph differs from it in training is taken all the same.

    precision: "bfloat16" runs the networks in mixed precision while factors are fitted, for GPUs that have it; the fits
    themselves and the activation ranges are computed as ever.

    What was changed and what was left alone, and why, how near the outputs are to the original's, and whether the network is
    usable as it is: `fxfactor.summary(result)`.

    Raises PreconditionError on values out of range, unknown sites and a network with neither convolutions nor linear layers,
    CaptureError where the network cannot be captured.
    """
    if plan is not None and (level is not None or bits is not None or width != 1 or join_bits is not None):
        wide = "" if width == 1 else f", width={width!r}"
        wide += "" if join_bits is None else f", join_bits={join_bits!r}"
        raise PreconditionError(
            f"give a plan, or level and bits, not both; found level={level!r}, bits={bits!r}{wide} and a plan"
        )
    require_precision(precision)
    if recover is not None and recover not in get_args(Recover):
        raise PreconditionError(
            f'transform(recover=…) must be "none", "round" or "reconstruct", found {recover!r}; leave it out to decide by bits'
        )
    if steps < 1:
        raise PreconditionError(f"transform(steps=…), those of reconstruct, must be at least 1, found {steps}")
    if recover not in (None, "none") and calibration is None:
        raise PreconditionError(
            f"transform(recover={recover!r}) needs images: give calibration=loader, a few hundred of them, without labels"
        )
    level = 0 if level is None else level
    check_level(level)
    weight_bits, activation_bits = bits if isinstance(bits, tuple) and len(bits) == 2 else (bits, bits)
    check_bits(activation_bits, "bits")
    check_weight_bits(weight_bits, "bits")
    check_join_bits(join_bits, activation_bits)
    images = None if calibration is None else images_of(calibration, "calibration")
    if example_inputs is None and images:
        own = next(model.parameters(), images[0]) if isinstance(model, nn.Module) else images[0]
        example_inputs = images[0][:1].to(own)
    graph = capture(model, example_inputs, compare=compare)
    if not any(True for _ in convolutions(graph)):
        _require_something_to_quantize(graph, model, plan is not None or bits is not None)
    if not isinstance(keep, Iterable) or isinstance(keep, bytes):
        raise PreconditionError(f"keep must be a collection of module paths, found {keep!r}; leave it out to keep none")
    kept = (keep,) if isinstance(keep, str) else tuple(keep)
    if plan is not None:
        plan.require_fits(graph)
        passes = plan_passes(plan, images, kept, precision=precision)
    else:
        passes = (FactorizeDepth(level=level, keep=kept, calibration=images, width=width, precision=precision),)
        if weight_bits is not None or activation_bits is not None:
            passes += (Quantize(weight_bits, activation_bits, join_bits=join_bits),)
    result = Pipeline(*passes)(graph).graph
    if images is not None:
        calibrate(result, images)
        how = recovery_for(result, recover)
        history = result.meta.get(HISTORY, ())
        if any(isinstance(each, Change) for each in history):
            judged = tuple(recover_on(graph, result, images, how, steps=steps, precision=precision))
            result.meta[HISTORY] = (*history, *judged)
    return result.to(memory_format=torch.channels_last) if _is_channels_last(model) else result  # type: ignore[call-overload]


def _require_something_to_quantize(graph: GraphModule, model: nn.Module, quantizes: bool) -> None:
    """A network without convolutions has nothing to factorize; its linear layers are quantized."""
    name = type(model).__name__
    if not sites(graph):
        raise PreconditionError(
            f"fxfactor factorizes convolutions and quantizes linear layers, and {name} has none that its forward calls"
        )
    if not quantizes:
        raise PreconditionError(
            f"fxfactor factorizes convolutions, and {name} has linear layers only; give bits= to quantize them"
        )


def _is_channels_last(model: nn.Module) -> bool:
    """Whether a weight of the model lies in memory as channels_last does, and not as contiguous as well."""
    weights = [weight for weight in model.parameters() if weight.dim() == 4]
    return any(w.is_contiguous(memory_format=torch.channels_last) and not w.is_contiguous() for w in weights)
