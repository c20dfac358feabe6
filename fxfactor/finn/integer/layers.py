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
from fxfactor.finn.integer.grouped import grouped_convolution
from fxfactor.finn.integer.onnx_constants import (
    Broken,
    Value,
    Weights,
    attributes_of,
    matrix_of,
    on_one_pixel,
    scale_per_output,
    window_of,
)
from fxfactor.finn.integer.streams import Stream, Window, is_uniform
from fxfactor.finn.integer.values import biased, requantize_remedy, require_quantized


def _convolution(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x, weights = operands(inputs)
    attributes = attributes_of(node)
    site = context.site(node)
    if len(x.shape) != 3 or weights.integers.ndim != 4:
        raise Broken(rules.SHAPES, f"a convolution over {weights.integers.ndim - 2} dimensions", "use Conv2d")
    groups, kernel = attributes.get("group", 1), weights.integers.shape[2:]
    if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        raise Broken(rules.PADDING, f"auto_pad={attributes['auto_pad']}", "export with explicit padding")
    window = window_of(attributes, tuple(kernel))
    pads = tuple(own + before for own, before in zip(window.pads, x.pads, strict=True))
    window = replace(window, pads=cast("tuple[int, int, int, int]", pads))
    weights, window = on_one_pixel(weights, window, x.shape[1:])
    _require_one_scale_in_each_group(x, groups)
    if any(window.pads) and x.offset.any():
        raise Broken(rules.PADDING, "padding of a tensor with a bias", "put a quantizer before the convolution")
    if groups > 1:
        y = grouped_convolution(context, node.output[0], site, x, weights, window, groups)
    else:
        y = dense_convolution(context, site, x, weights, window)
    return (biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)


def _require_one_scale_in_each_group(x: Stream, groups: int) -> None:
    scale = x.scale.reshape(groups, -1)
    if (scale != scale[:, :1]).any():
        raise Broken(rules.ONE_SCALE, f"{len(np.unique(scale))} scales", requantize_remedy(x))


def dense_convolution(context: Context, site: str, x: Stream, weights: Weights, window: Window) -> Stream:
    """The accumulators of a convolution of one group, with what they stand for."""
    tensor = x.tensor if window == Window((1, 1)) else context.builder.windows(site, x.tensor, window, depthwise=False)
    integers, real = weights.integers, weights.real
    if x.order is not None:
        integers, real = integers[:, x.order], real[:, x.order]
    y = multiplied(context, site, x, tensor, matrix_of(integers), weights.datatype, None)
    shape = (integers.shape[0], *window.positions(*x.shape[1:]))
    offset = (real.sum((2, 3)) * x.offset).sum(1)
    return replace(y, shape=shape, scale=x.scale[0] * scale_per_output(weights), offset=offset)


def _linear(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x, weights = operands(inputs)
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


def operands(inputs: list[Value]) -> tuple[Stream, Weights]:
    """What is multiplied with what."""
    x, weights = inputs[0], inputs[1]
    if isinstance(x, Stream) and isinstance(weights, Stream):
        raise Broken(rules.OPERATION, "a product of two activations", rules.REMEDIES["MatMul"])
    if not isinstance(x, Stream):
        found = "a constant matrix times an activation, as adaptive pooling to an uneven size gives"
        raise Broken(rules.OPERATION, found, rules.REMEDIES["AdaptiveAveragePool"])
    if not isinstance(weights, Weights):
        raise Broken(rules.WEIGHTS, "float weights", "use the Brevitas layer (fxfactor.transform does)")
    require_quantized(x, "put a quantizer before this layer", padded=True)
    return x, weights


HANDLERS: dict[str, Handler] = {
    "Conv": _convolution,
    "Gemm": _linear,
    "MatMul": _linear,
}
