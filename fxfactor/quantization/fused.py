"""Brevitas' quantizers with a hand-written gradient, for as long as a network is trained.

In eager mode a quantizer of Brevitas is some twenty operations forward and backward on a tensor, and those of the
activations take more time than the convolutions. Here an activation quantizer is four operations forward and three
backward, with the ReLU of a QuantReLU among them, and keeps no tensor but its input and output; a weight quantizer is
about ten and five. Values and gradients are the same up to rounding: those of LSQ for activations (Esser et al. 2020,
arXiv 1902.08153), those of straight-through rounding for weights. PyTorch's own kernel,
_fake_quantize_learnable_per_tensor_affine, is no faster on a CPU than Brevitas.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import torch
from brevitas import nn as qnn
from brevitas.core.function_wrapper import Identity, OverOutputChannelView, RoundSte, TensorClamp, TensorClampSte
from brevitas.core.quant import IntQuant
from brevitas.core.restrict_val import FloatRestrictValue
from brevitas.core.scaling import ParameterScaling, StatsFromParameterScaling
from brevitas.core.stats import AbsMax
from brevitas.core.zero_point import ZeroZeroPoint
from torch import Tensor, nn

from fxfactor.arguments import checked
from fxfactor.graph.questions import is_quantizer
from fxfactor.quantization.brevitas_layers import is_quantized_layer

SMALLEST = 1e-10  # of a range, as in Brevitas


class _RoundActivations(torch.autograd.Function):
    """scale · clamp(round(x / scale), low, high) with scale = |limit| / levels; gradients end where it clamps.

    With `rectified` (and low = 0) the gradient ends at x ≤ 0, as it does when a ReLU comes first.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, limit: Tensor, levels: int, low: int, high: int, rectified: bool) -> Tensor:
        scale = limit.abs().clamp_min_(SMALLEST).div_(levels)
        rounded = x.div(scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, rounded, limit, scale)
        ctx.settings = levels, 0.0 if rectified else low - 0.5, high + 0.5
        return rounded

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = gradients
        x, rounded, limit, scale = ctx.saved_tensors
        levels, lowest, highest = ctx.settings
        if x.device.type == "cpu":  # one pass and no mask in memory: the gradient where lowest < x / scale < highest
            width = float(scale)
            passed = torch.ops.aten.hardtanh_backward(gradient, x, lowest * width, highest * width)
        else:  # the same without waiting for the device
            passed = gradient * ((x > lowest * scale) & (x < highest * scale))
        of_limit = (_dot(gradient, rounded) - _dot(passed, x)) / (scale * levels) * limit.sign()
        return passed, of_limit.reshape(limit.shape), None, None, None, None


class _RoundWeights(torch.autograd.Function):
    """scale · round(weight / scale), scale = largest |weight| of an output channel / high, so that nothing is clamped."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor, high: int) -> Tensor:
        rows = weight.flatten(1)
        largest, at = rows.abs().max(1, keepdim=True)
        scale = largest.clamp_min_(SMALLEST).div_(high)
        levels = rows / scale
        rounded = levels.round().clamp_(-high, high)
        ctx.save_for_backward(rounded - levels, rows.gather(1, at).sign_(), at)
        ctx.high = high
        return rounded.mul_(scale).view(weight.shape)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        error, sign, at = ctx.saved_tensors
        rows = gradients[0].flatten(1)
        of_largest = (rows * error).sum(1, keepdim=True).div_(ctx.high).mul_(sign)
        return rows.scatter_add(1, at, of_largest).view(gradients[0].shape), None


def _dot(a: Tensor, b: Tensor) -> Tensor:
    """Σ a·b over all elements, in the order of memory where both are channels_last."""
    if a.dim() == 4 and a.is_contiguous(memory_format=torch.channels_last):
        a, b = a.permute(0, 2, 3, 1), b.permute(0, 2, 3, 1)
    return torch.dot(a.reshape(-1), b.reshape(-1))


@checked
@contextmanager
def fused_quantizers(graph: nn.Module) -> Iterator[None]:
    """Let all quantizers in `graph` that can be fused be so meanwhile; parameters and state stay the same.

    >>> with fxfactor.fused.fused_quantizers(qmodel):  # doctest: +SKIP
    ...     train(qmodel)  # your own loop
    """
    fused: list[nn.Module] = []
    try:
        for module in graph.modules():
            forward = _fused_forward(module)
            if forward is not None and "forward" not in module.__dict__:
                module.__dict__["forward"] = forward
                fused.append(module)
        yield
    finally:
        for module in fused:
            del module.__dict__["forward"]


def _fused_forward(module: nn.Module) -> Callable[[Tensor], Tensor] | None:
    """What computes the same as `module.forward` does; None where that is not one of the forms known here."""
    if is_quantizer(module):
        quantizer = _tensor_quant(module)
        if not _can_fuse_activations(quantizer):
            return None
        bits = quantizer.msb_clamp_bit_width_impl()
        low, high = int(quantizer.int_quant.min_int(bits)), int(quantizer.int_quant.max_int(bits))
        levels = int(quantizer.int_scaling_impl(bits))
        return partial(_activations, module, levels, low, high, isinstance(module, qnn.QuantReLU))
    last = highest_level(module) if is_quantized_layer(module) else None
    return None if last is None else partial(_layer, module, last)


def highest_level(layer: nn.Module) -> int | None:
    """The last level of the weights of a Brevitas layer that can be fused: 7 at 4 bits. None where it can't."""
    if not _can_fuse_weights(layer):
        return None
    quantizer = cast(Any, layer).weight_quant.tensor_quant
    return int(quantizer.int_quant.max_int(quantizer.msb_clamp_bit_width_impl()))


def _tensor_quant(quantizer: nn.Module) -> Any:
    return cast(Any, quantizer).act_quant.fused_activation_quant_proxy.tensor_quant


def _activations(quantizer: nn.Module, levels: int, low: int, high: int, rectified: bool, x: Tensor) -> Tensor:
    limit = _tensor_quant(quantizer).scaling_impl.value  # looked up each time: load_state_dict makes another
    return cast(Tensor, _RoundActivations.apply(x, limit, levels, low, high, rectified))


def _layer(layer: Any, high: int, x: Tensor) -> Tensor:
    return with_weight(layer, x, cast(Tensor, _RoundWeights.apply(layer.weight, high)))


def with_weight(layer: nn.Module, x: Tensor, weight: Tensor) -> Tensor:
    """The output of a Brevitas layer with `weight` as it is in place of its own, rounded."""
    return cast(Tensor, cast(Any, layer).inner_forward_impl(x, weight, layer.bias))


def _can_fuse_activations(quantizer: Any) -> bool:
    """Whether this is plain rounding and clamping around zero with one scale, not compiled by BREVITAS_JIT."""
    inner, scaling = quantizer.int_quant, quantizer.scaling_impl
    return (
        type(inner) is IntQuant
        and isinstance(inner.float_to_int_impl, RoundSte)
        and isinstance(inner.tensor_clamp_impl, TensorClamp)
        and isinstance(quantizer.zero_point_impl, ZeroZeroPoint)
        and isinstance(scaling, ParameterScaling)
        and isinstance(scaling.restrict_clamp_scaling.restrict_value_impl, FloatRestrictValue)
        and scaling.value.numel() == 1
    )


def _can_fuse_weights(layer: Any) -> bool:
    """Whether only the weight is quantized, to symmetric integers by the largest of each output channel."""
    others = (layer.input_quant, layer.output_quant, layer.bias_quant)
    if any(other.is_quant_enabled for other in others) or not layer.weight_quant.is_quant_enabled:
        return False
    quantizer = layer.weight_quant.tensor_quant
    inner, scaling = (
        cast(Any, getattr(quantizer, "int_quant", None)),
        quantizer.scaling_impl,
    )  # no int_quant with one bit
    if type(inner) is not IntQuant or not isinstance(scaling, StatsFromParameterScaling):
        return False
    tracked = scaling.parameter_list_stats.first_tracked_param.view_shape_impl
    return (
        inner.signed
        and inner.narrow_range
        and isinstance(inner.float_to_int_impl, RoundSte)
        and isinstance(inner.tensor_clamp_impl, TensorClampSte)
        and isinstance(quantizer.zero_point_impl, ZeroZeroPoint)
        and isinstance(tracked, OverOutputChannelView)
        and isinstance(tracked.permute_impl, Identity)
        and isinstance(scaling.parameter_list_stats.stats.stats_impl, AbsMax)
        and isinstance(scaling.stats_scaling_impl.affine_rescaling, Identity)
        and isinstance(scaling.stats_scaling_impl.restrict_clamp_scaling.restrict_value_impl, FloatRestrictValue)
    )
