"""Nodes that more than one kind of operation becomes."""

from __future__ import annotations

from collections.abc import Sequence
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
    return accumulators(output, matrix, np.minimum(low, 0), np.maximum(high, 0), context.builder.columns_of_last())


def accumulators(
    output: str, matrix: Integers, low: Integers, high: Integers, columns: tuple[Columns, ...] | None
) -> Stream:
    """What is known of products with `matrix` (rows, channels) of integers between `low` and `high`, given per channel."""
    rising, falling = np.maximum(matrix, 0).sum(0), np.minimum(matrix, 0).sum(0)
    least, most = rising * low + falling * high, rising * high + falling * low
    channels = matrix.shape[1]
    bounds = integer_datatype(int(least.min()), int(most.max()))
    return Stream(output, (channels,), bounds, least, most, *nothing(channels)[2:], columns=columns)


def joined(context: Context, site: str, streams: Sequence[Stream]) -> Stream:
    """Concatenation of the channels of streams of one height and width; the shape has still to be set."""
    builder = context.builder
    parts: dict[str, Any] = {
        name: np.concatenate([getattr(x, name) for x in streams]) for name in ("low", "high", "scale", "offset")
    }
    channels = sum(x.channels for x in streams)
    datatype = integer_datatype(int(parts["low"].min()), int(parts["high"].max()))
    annotated = {builder.datatypes[x.tensor] for x in streams}
    shape = builder.shapes[streams[0].tensor]
    tensor = builder.node(
        "Concat",
        [x.tensor for x in streams],
        site,
        (*shape[:-1], channels),
        annotated.pop() if len(annotated) == 1 else datatype,
        axis=len(shape) - 1,
    )
    columns: tuple[Columns, ...] | None = ()
    for x in streams:
        columns = None if columns is None or x.columns is None else (*columns, *x.columns)
    quantized = all(x.quantized for x in streams)
    return Stream(tensor, (channels,), datatype, **parts, quantized=quantized, columns=columns)


def split_channels(context: Context, name: str, tensor: str, sizes: Sequence[int]) -> list[str]:
    """Split the last axis of a tensor into parts of these sizes; gives their names, `name`.0 and so on."""
    builder = context.builder
    shape, datatype = builder.shapes[tensor][:-1], builder.datatypes[tensor]
    sizes_name = builder.constant(f"{name}.sizes", np.asarray(sizes, np.int64), "INT64")
    first = builder.node("Split", (tensor, sizes_name), f"{name}.0", (*shape, sizes[0]), datatype, axis=len(shape))
    names, split = [first], builder.nodes[-1]
    for index, size in enumerate(sizes[1:], 1):
        part = f"{first}.{index}"
        builder.shapes[part], builder.datatypes[part] = (*shape, size), datatype
        split.output.append(part)
        names.append(part)
    return names


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
    channel = np.arange(channels) if x.order is None else x.order
    order = (channel[:, None] * area + np.arange(area)).T.ravel()
    spread: dict[str, Any] = {name: np.tile(getattr(x, name), area) for name in ("low", "high", "scale", "offset")}
    columns = x.columns if area == 1 else None
    return replace(x, tensor=tensor, shape=(features,), columns=columns, order=order if area > 1 else x.order, **spread)
