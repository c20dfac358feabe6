"""What we know about Brevitas layers: how one is made from a plain layer, and how bits and ranges are read and set.

Weights: symmetric integers of narrow range, one scale per output channel, or one in all (`has_one_weight_scale`), the largest
weight at the last level; of one bit −1 and 1, and the scale is the mean of the magnitudes (XNOR-Net, arXiv 1603.05279).
Activations: zero point 0, one scale per tensor, a trained parameter: its range is ±T for signed and 0…T for unsigned
quantizers, in the unit of the tensor.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from brevitas import nn as qnn
from brevitas.core.quant import BinaryQuant
from brevitas.inject.enum import QuantType, ScalingImplType, StatsOp
from brevitas.quant import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from brevitas.quant.base import ParamMinMaxInitScaling
from brevitas.quant.scaled_int import Int8ActPerTensorFloat, Uint8ActPerTensorFloat
from torch import Tensor, nn

from fxfactor.graph.questions import TRANSPOSED, is_quantizer

_QUANTIZED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Conv1d: qnn.QuantConv1d,
    nn.Conv2d: qnn.QuantConv2d,
    nn.Conv3d: qnn.QuantConv3d,
    nn.ConvTranspose1d: qnn.QuantConvTranspose1d,
    nn.ConvTranspose2d: qnn.QuantConvTranspose2d,
    nn.ConvTranspose3d: qnn.QuantConvTranspose3d,
    nn.Linear: qnn.QuantLinear,
}


class BipolarWeightPerTensor(Int8WeightPerTensorFloat):
    """Weights −s and s, with s the mean magnitude of all."""

    quant_type = QuantType.BINARY
    scaling_stats_op = StatsOp.AVE


class BipolarWeightPerChannel(Int8WeightPerChannelFloat):
    """Weights −s and s, with s the mean magnitude of each output channel."""

    quant_type = QuantType.BINARY
    scaling_stats_op = StatsOp.AVE


_PER_CHANNEL: dict[bool, type] = {False: Int8WeightPerChannelFloat, True: BipolarWeightPerChannel}
_PER_TENSOR: dict[bool, type] = {False: Int8WeightPerTensorFloat, True: BipolarWeightPerTensor}
"""Weight quantizers: of several bits, and of one."""


class SignedActivation(ParamMinMaxInitScaling, Int8ActPerTensorFloat):
    """Signed activations of full range −2^(b−1)…2^(b−1)−1; the scale is a parameter that starts from min_val, max_val."""

    scaling_impl_type = ScalingImplType.PARAMETER


class UnsignedActivation(ParamMinMaxInitScaling, Uint8ActPerTensorFloat):
    """Unsigned activations 0…2^b−1; the scale is a parameter that starts from max_val."""

    scaling_impl_type = ScalingImplType.PARAMETER
    min_val = 0.0


def is_quantized_layer(module: nn.Module | None) -> bool:
    """Whether `module` is a Brevitas convolution or linear layer."""
    return isinstance(module, tuple(_QUANTIZED.values()))


def has_one_weight_scale(layer: nn.Module) -> bool:
    """Whether all weights share a scale: in transposed convolutions of several groups, where Brevitas mistakes the channels."""
    return isinstance(layer, TRANSPOSED) and layer.groups > 1


def quantize_layer(layer: nn.Module, bits: int) -> nn.Module:
    """The Brevitas layer that stands for a convolution or linear layer, with the same weights and bias.

    Before: nn.Conv2d, weight (C_out, C_in/groups, k, k). After: QuantConv2d, the same tensors; the weight is quantized to
    `bits` bits at every call (for the scales see the module), the bias stays in floating point.
    """
    kind = next(plain for plain in _QUANTIZED if isinstance(layer, plain))
    settings: dict[str, Any]
    if isinstance(layer, nn.Linear):
        settings = {"in_features": layer.in_features, "out_features": layer.out_features}
    else:
        names = [
            "in_channels",
            "out_channels",
            "kernel_size",
            "stride",
            "padding",
            "dilation",
            "groups",
            "padding_mode",
        ]
        names += ["output_padding"] if kind.__name__.startswith("ConvTranspose") else []
        settings = {name: getattr(layer, name) for name in names}
    weight, bias = cast(Tensor, layer.weight), cast("Tensor | None", layer.bias)
    result = cast(Any, _QUANTIZED[kind])(
        **settings, bias=bias is not None, weight_bit_width=bits, device=weight.device, dtype=weight.dtype,
        weight_quant=(_PER_TENSOR if has_one_weight_scale(layer) else _PER_CHANNEL)[bits == 1],
    )  # fmt: skip
    # .data, since Brevitas' scale refers to the parameter object that its constructor made
    result.weight.data = weight.detach()
    result.weight.requires_grad_(weight.requires_grad)
    if bias is not None:
        result.bias.data = bias.detach()
        result.bias.requires_grad_(bias.requires_grad)
    result.train(layer.training)
    return result


def make_quantizer(
    bits: int, limit: float, signed: bool, after_relu: bool = False, at_most: float | None = None
) -> nn.Module:
    """An activation quantizer for the range ±limit, or 0…limit: QuantReLU after a ReLU, else QuantIdentity.

    `at_most` is where the activation it stands for clips anyway (6 for ReLU6); no range is ever set beyond it.
    """
    limit = limit if at_most is None else min(limit, at_most)
    low = {"min_val": -limit} if signed else {}
    quantizer = SignedActivation if signed else UnsignedActivation
    kind = qnn.QuantReLU if after_relu and not signed else qnn.QuantIdentity
    result = kind(act_quant=quantizer, bit_width=bits, max_val=limit, **low)
    result.at_most = at_most
    return result


def _tensor_quant(quantizer: nn.Module) -> Any:
    return cast(Any, quantizer).act_quant.fused_activation_quant_proxy.tensor_quant


def quantizer_bits(quantizer: nn.Module) -> int:
    """Bits of an activation quantizer."""
    return int(_tensor_quant(quantizer).msb_clamp_bit_width_impl())


def is_signed(quantizer: nn.Module) -> bool:
    """Whether an activation quantizer has negative levels."""
    return bool(cast(Any, quantizer).act_quant.is_signed)


def get_limit(quantizer: nn.Module) -> float:
    """T of the range ±T or 0…T of an activation quantizer."""
    return float(_tensor_quant(quantizer).scaling_impl.value.detach().abs())


def set_limit(quantizer: nn.Module, limit: float) -> None:
    """Set T of the range ±T or 0…T of an activation quantizer, in place."""
    at_most = cast("float | None", getattr(quantizer, "at_most", None))
    with torch.no_grad():
        _tensor_quant(quantizer).scaling_impl.value.fill_(limit if at_most is None else min(limit, at_most))


def weight_bits_of(layer: nn.Module) -> int | None:
    """Weight bits of a Brevitas layer; None for a plain one."""
    if not is_quantized_layer(layer):
        return None
    quantizer = cast(Any, layer).weight_quant.tensor_quant
    return 1 if isinstance(quantizer, BinaryQuant) else int(quantizer.msb_clamp_bit_width_impl())


def bits_of(quantizer: nn.Module | None) -> int | None:
    """Bits of an activation quantizer; None where there is none."""
    return quantizer_bits(quantizer) if quantizer is not None and is_quantizer(quantizer) else None
