"""Max pooling of integers, and average pooling as sums, the division by the count going into the scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.builder import HARDWARE
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.emitting import flattened, max_pooled, multiplied
from fxfactor.finn.integer.onnx_constants import Broken, Value, attributes_of, depthwise_matrix, window_of
from fxfactor.finn.integer.streams import Window, integer_datatype
from fxfactor.finn.integer.values import operand, require_quantized


def _max_pool(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    attributes = attributes_of(node)
    window = window_of(attributes, tuple(attributes["kernel_shape"]))
    if attributes.get("ceil_mode", 0):
        window = window.rounding_up(*x.shape[1:])
    remedy = "choose a stride at or below the kernel, no dilation, and padding inside the pooling"
    if any(s > k for s, k in zip(window.strides, window.kernel, strict=True)) or window.dilations != (1, 1):
        found = f"kernel {window.kernel}, stride {window.strides}, dilation {window.dilations}"
        raise Broken(rules.POOLING, found, remedy)
    if any(x.pads):
        raise Broken(rules.POOLING, f"padding {x.pads} before it", remedy)
    shape = (x.channels, *window.positions(*x.shape[1:]))
    if not x.quantized or x.pools:
        return (replace(x, shape=shape, pools=(*x.pools, window), columns=x.columns),)
    return (replace(max_pooled(context, context.site(node), x, window), shape=shape),)


def _average_pool(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    """A depthwise convolution with twos; the division by twice the window's size goes into the scale.

    FINN takes ones for binary weights, which its code generation refuses.
    """
    x = operand(inputs)
    attributes = attributes_of(node)
    window = window_of(attributes, tuple(attributes["kernel_shape"]))
    require_quantized(x, "put a quantizer before the pooling")
    if window == Window(x.shape[1:]):  # type: ignore[arg-type]
        return _global_average(context, node, inputs)
    if attributes.get("ceil_mode", 0) and window.rounding_up(*x.shape[1:]) != window:
        raise Broken(rules.AVERAGE, f"ceil_mode on {x.shape[1:]}", "use ceil_mode=False")
    if any(window.pads) and not attributes.get("count_include_pad", 0):
        found = f"padding {window.pads} that is not counted"
        raise Broken(rules.AVERAGE, found, "use count_include_pad=True, or no padding")
    if any(window.pads) and x.offset.any():
        raise Broken(rules.PADDING, "padding of a tensor with a bias", "put a quantizer before the pooling")
    site = context.site(node)
    tensor = context.builder.windows(site, x.tensor, window, depthwise=True)
    matrix = depthwise_matrix(np.full((x.channels, 1, *window.kernel), 2, np.int64))
    y = multiplied(context, site, x, tensor, matrix, "INT3", window.kernel)
    shape = (x.channels, *window.positions(*x.shape[1:]))
    return (
        replace(
            y, shape=shape, scale=x.scale / (2 * np.prod(window.kernel)), offset=x.offset, columns=None, order=x.order
        ),
    )


def _global_average(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    attributes = attributes_of(node)
    if node.op_type == "ReduceMean":
        axes = inputs[1] if len(inputs) > 1 else attributes.get("axes", ())
        if sorted(int(axis) % 4 for axis in np.ravel(axes)) != [2, 3] or len(x.shape) != 3:  # type: ignore[arg-type]
            raise Broken(rules.OPERATION, f"a mean over axes {axes}", "take means over height and width only")
    require_quantized(x, "put a quantizer before the pooling")
    flat = node.op_type == "ReduceMean" and not attributes.get("keepdims", 1)
    count = x.shape[1] * x.shape[2]
    low, high = x.low * count, x.high * count
    datatype = integer_datatype(int(low.min()), int(high.max()))
    tensor = context.builder.node(
        "GlobalAccPool",
        (x.tensor,),
        context.site(node),
        (1, 1, 1, x.channels),
        datatype,
        HARDWARE,
        backend="fpgadataflow",
        NumChannels=x.channels,
        PE=1,
        inputDataType=context.builder.datatypes[x.tensor],
        numInputVectors=list(context.builder.shapes[x.tensor][:-1]),
    )
    pooled = replace(
        x,
        tensor=tensor,
        shape=(x.channels, 1, 1),
        datatype=datatype,
        low=low,
        high=high,
        scale=x.scale / count,
        columns=None,
        quantized=False,
    )
    return (flattened(context, node, pooled) if flat else pooled,)


HANDLERS: dict[str, Handler] = {
    "AveragePool": _average_pool,
    "GlobalAveragePool": _global_average,
    "MaxPool": _max_pool,
    "ReduceMean": _global_average,
}
