"""Convolutions and linear layers: products of integers with integers, and of scales with scales."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.emitting import multiplied
from fxfactor.finn.integer.onnx_constants import (
    Broken,
    Value,
    Weights,
    attributes_of,
    depthwise_matrix,
    matrix_of,
    on_one_pixel,
    scale_per_output,
    window_of,
)
from fxfactor.finn.integer.streams import Stream, Window, is_uniform
from fxfactor.finn.integer.values import biased, requantize_remedy, require_quantized


def _convolution(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x, weights = _operands(inputs)
    attributes = attributes_of(node)
    site = context.site(node)
    if len(x.shape) != 3 or weights.integers.ndim != 4:
        raise Broken(rules.SHAPES, f"a convolution over {weights.integers.ndim - 2} dimensions", "use Conv2d")
    groups = attributes.get("group", 1)
    outputs, _, *kernel = weights.integers.shape
    depthwise = groups == x.channels == outputs and groups > 1
    if groups > 1 and not depthwise:
        found = f"groups={groups} with {x.channels} input and {outputs} output channels"
        remedy = "export with target='finn' (LegalizeForFinn splits it into branches), or factorize to depthwise"
        raise Broken(rules.GROUPS, found, remedy)
    scale = scale_per_output(weights)
    if not depthwise and not is_uniform(x.scale):
        raise Broken(rules.ONE_SCALE, f"{len(np.unique(x.scale))} scales", requantize_remedy(x))
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Broken(rules.PADDING, f"auto_pad={attributes['auto_pad']}", "export with explicit padding")
    window = window_of(attributes, tuple(kernel))
    pads = tuple(own + before for own, before in zip(window.pads, x.pads, strict=True))
    window = replace(window, pads=cast("tuple[int, int, int, int]", pads))
    weights, window = on_one_pixel(weights, window, x.shape[1:])
    if any(window.pads) and x.offset.any():
        raise Broken(rules.PADDING, "padding of a tensor with a bias", "put a quantizer before the convolution")
    tensor = x.tensor
    if depthwise or window != Window((1, 1)):
        tensor = context.builder.windows(site, tensor, window, depthwise)
    matrix = depthwise_matrix(weights.integers) if depthwise else matrix_of(weights.integers)
    y = multiplied(context, site, x, tensor, matrix, weights.datatype, window.kernel if depthwise else None)
    if depthwise:
        real_offset = x.offset * weights.real.sum((1, 2, 3))
        y = replace(y, scale=x.scale * scale, offset=real_offset)
    else:
        real_offset = (weights.real.sum((2, 3)) * x.offset).sum(1)
        y = replace(y, scale=x.scale[0] * scale, offset=real_offset)
    y = replace(y, shape=(outputs, *window.positions(*x.shape[1:])))
    return (biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)


def _linear(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x, weights = _operands(inputs)
    attributes = attributes_of(node)
    if len(x.shape) != 1 or weights.integers.ndim != 2:
        raise Broken(rules.LINEAR_INPUT, f"shape {(1, *x.shape)}", "flatten before the linear layer")
    if not is_uniform(x.scale):
        raise Broken(rules.ONE_SCALE, f"{len(np.unique(x.scale))} scales", requantize_remedy(x))
    if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
        raise Broken(rules.OPERATION, "Gemm with factors", "use a plain linear layer")
    integers, scale = weights.integers, np.broadcast_to(weights.scale, weights.integers.shape)
    if attributes.get("transB", 0):
        integers, scale = integers.T, scale.T
    if (scale != scale[:1]).any():
        raise Broken(rules.WEIGHTS, "a weight scale per input feature", "use one weight scale per output channel")
    if x.order is not None:
        integers = integers[x.order]
    y = multiplied(context, context.site(node), x, x.tensor, integers.copy(), weights.datatype, None)
    offset = scale[0] * (integers * x.offset[:, None]).sum(0)
    y = replace(y, shape=(integers.shape[1],), scale=x.scale[0] * scale[0], offset=offset)
    return (biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)


def _operands(inputs: list[Value]) -> tuple[Stream, Weights]:
    x, weights = inputs[0], inputs[1]
    if not isinstance(x, Stream) or isinstance(weights, Stream):
        raise Broken(rules.OPERATION, "a product of two activations", rules.REMEDIES["Mul"])
    if not isinstance(weights, Weights):
        raise Broken(rules.WEIGHTS, "float weights", "use the Brevitas layer (fxfactor.transform does)")
    require_quantized(x, "put a quantizer before this layer", padded=True)
    return x, weights


HANDLERS: dict[str, Handler] = {
    "Conv": _convolution,
    "Gemm": _linear,
    "MatMul": _linear,
}
