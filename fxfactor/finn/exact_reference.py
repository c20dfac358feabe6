"""What a quantized network gives when its sums are exact: the reference that hardware can be equal to."""

from __future__ import annotations

import copy
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter
from torch.nn import functional as F

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.questions import TRANSPOSED, is_quantizer, placeholders, shape_of
from fxfactor.quantization.brevitas_layers import is_quantized_layer, is_signed, quantizer_bits
from fxfactor.quantization.levels import integer_range, round_to_levels


@checked
@torch.no_grad()
def reference(qmodel: GraphModule, images: Tensor) -> Any:
    """Outputs (float64; a tuple where there are several) of what `fxfactor.transform` gave, in eval mode.

    Scales are those that PyTorch computes in float32.
    In float32 the order of a sum decides the last bit, and where a value lies next to a rounding threshold that bit decides
    a whole level: on ResNet-50 a few of a million activations per image. Integers know no such noise. So layers and
    activations are evaluated in float64 here, while weights, scales and batch norm parameters keep the float32 values
    that are exported. Give the result to `fxfactor.finn.estimate(verify=(images, reference(qmodel, images)))`.

    Raises PreconditionError where `images` are none, or have other channels than the network's.
    """
    shape = shape_of(placeholders(qmodel)[0])
    if not len(images) or images.dim() != len(shape) or images.shape[1] != shape[1]:
        raise PreconditionError(
            f"required: images of shape (N, {', '.join(map(str, shape[1:]))}); found: {tuple(images.shape)}; give some that "
            "the network takes"
        )
    graph = copy.deepcopy(qmodel).eval().cpu().float()
    run = _Float64(graph)
    outputs = [run.run(image[None].cpu().double()) for image in images]
    if isinstance(outputs[0], Tensor):
        return torch.cat(outputs)
    return tuple(torch.cat(each) for each in zip(*outputs, strict=True))


_CONVOLVE: dict[type[nn.Module], Any] = {
    nn.Conv1d: F.conv1d,
    nn.Conv2d: F.conv2d,
    nn.Conv3d: F.conv3d,
    nn.ConvTranspose1d: F.conv_transpose1d,
    nn.ConvTranspose2d: F.conv_transpose2d,
    nn.ConvTranspose3d: F.conv_transpose3d,
}


class _Float64(Interpreter):
    """Evaluates a graph in float64 with the float32 scales of its quantizers."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.doubles: dict[str, nn.Module] = {}

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        module = self.fetch_attr(target)
        if is_quantizer(module):
            return _quantize(module, args[0])
        if target not in self.doubles:
            self.doubles[target] = _layer(module) if is_quantized_layer(module) else _double(module)
        return self.doubles[target](*args, **kwargs)


def _quantize(quantizer: Any, x: Tensor) -> Tensor:
    scale = quantizer.act_quant.scale().double()
    bits, signed = quantizer_bits(quantizer), is_signed(quantizer)
    narrow = bool(quantizer.act_quant.is_narrow_range)
    return round_to_levels(x, scale, *integer_range(bits, signed, narrow))


def _layer(layer: Any) -> nn.Module:
    """The plain layer in float64 whose weights are integers times float32 scales."""
    quantized = layer.quant_weight()
    weight = quantized.int().double() * quantized.scale.double()
    bias = None if layer.bias is None else layer.bias.double()
    if isinstance(layer, nn.Linear):
        return _Call(lambda x: F.linear(x, weight, bias))
    settings = {name: getattr(layer, name) for name in ("stride", "padding", "dilation", "groups")}
    if isinstance(layer, TRANSPOSED):
        settings["output_padding"] = layer.output_padding
    function = next(function for kind, function in _CONVOLVE.items() if isinstance(layer, kind))
    return _Call(lambda x: function(x, weight, bias, **settings))


def _double(module: nn.Module) -> nn.Module:
    double = copy.deepcopy(module).double()
    for each in double.modules():
        if hasattr(each, "eps"):
            setattr(each, "eps", float(np.float32(cast(float, each.eps))))  # noqa: B010 (mypy takes it for a tensor)  # as ONNX stores it
    return double


class _Call(nn.Module):
    def __init__(self, function: Any) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        """Whatever the function gives."""
        return cast(Tensor, self.function(x))
