"""Nodes that more than one kind of operation becomes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context
from fxfactor.finn.integer.onnx_constants import Broken
from fxfactor.finn.integer.streams import Columns, Integers, Stream, Window, integer_datatype
from fxfactor.finn.integer.values import nothing, require_quantized


def multiplied(
    context: Context, site: str, x: Stream, tensor: str, matrix: Integers, datatype: str, kernel: tuple[int, int] | None
) -> Stream:
    """MatMul of `tensor` (windows of x) with `matrix`: the stream of accumulators, its scale still to be set."""
    output = context.builder.multiply(site, tensor, matrix, datatype, kernel)
    columns = matrix.shape[1]
    if kernel is not None:  # every column of a depthwise matrix sees one channel only
        low, high = x.low, x.high
    else:
        low, high = np.full(columns, x.low.min()), np.full(columns, x.high.max())
    low, high = np.minimum(low, 0), np.maximum(high, 0)
    rising, falling = np.maximum(matrix, 0).sum(0), np.minimum(matrix, 0).sum(0)
    least, most = rising * low + falling * high, rising * high + falling * low
    bounds = integer_datatype(int(least.min()), int(most.max()))
    name = context.builder.nodes[-1].input[1]
    return Stream(output, (columns,), bounds, least, most, *nothing(columns)[2:], columns=(Columns(name, 0, columns),))


def max_pooled(context: Context, site: str, x: Stream, window: Window) -> Stream:
    """Max pooling of the integers of x; the shape is still to be set."""
    if any(window.pads) and not context.builder.datatypes[x.tensor].startswith("UINT"):
        raise Broken(rules.SIGNED_PADDING, f"values down to {x.low.min()}", "pool after a ReLU with a QuantReLU")
    return replace(x, tensor=context.builder.max_pool(site, x.tensor, window), columns=None)


def flattened(context: Context, node: onnx.NodeProto, x: Stream) -> Stream:
    """(1, H, W, C) -> (1, H · W · C), with `order` saying where torch has each of them."""
    require_quantized(x, "quantize before flattening", functions=x.shape[1:] != (1, 1))
    channels, height, width = x.shape
    area, features = height * width, channels * height * width
    site = f"{context.site(node)}.flat"
    tensor = context.builder.node(
        "Flatten", (x.tensor,), site, (1, features), context.builder.datatypes[x.tensor], axis=1
    )
    order = np.arange(features).reshape(channels, area).T.ravel()
    spread: dict[str, Any] = {name: np.tile(getattr(x, name), area) for name in ("low", "high", "scale", "offset")}
    columns = x.columns if area == 1 else None
    return replace(x, tensor=tensor, shape=(features,), columns=columns, order=order if area > 1 else None, **spread)
