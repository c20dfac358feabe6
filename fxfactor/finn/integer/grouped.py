"""Grouped convolutions in integers, in one of three forms that compute the same.

- block: windows → MVAUGrouped, one matrix unit for all groups (`fxfactor/finn/process/grouped_mvau.py`). Any G, any number of
  output channels, depthwise too.
- split: one window generator for all channels, then the windows are split into the groups', each multiplied by a matrix unit of
  its own, and the outputs concatenated. FINN's own layers only.
- branches: the channels are split, and each group is a convolution of its own. A depthwise convolution of r outputs per
  channel is r of FINN's depthwise units side by side; its channels leave in the order (output of the channel, channel), which
  the layers behind it take into account (`Stream.order`).
"""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import numpy as np

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context
from fxfactor.finn.integer.emitting import accumulators, joined, split_channels
from fxfactor.finn.integer.forms import Form, GroupedConvolution
from fxfactor.finn.integer.onnx_constants import Broken, Weights, depthwise_matrix, matrix_of, scale_per_output
from fxfactor.finn.integer.streams import Integers, Stream, Window


def grouped_convolution(
    context: Context, tensor: str, site: str, x: Stream, weights: Weights, window: Window, groups: int
) -> Stream:
    """The accumulators of a grouped convolution of x, with what they stand for, in the form that the context chooses."""
    if x.order is not None and groups < x.channels:
        remedy = (
            "after a channel shuffle use a convolution of one group or as many groups as channels; where a depthwise one stands "
            'before it, give grouped="block"'
        )
        raise Broken(rules.GROUPED_ORDER, "channels in another order", remedy)
    outputs, per_group = weights.integers.shape[0], x.channels // groups
    scale = x.scale.reshape(groups, per_group)
    weights = _in_order_of(x, weights)
    low, high = (_per_output(values, groups, outputs) for values in (_least(x, groups), _most(x, groups)))
    layer = _described(context, tensor, site, x, weights, window, groups, low, high)
    form = context.choices.form(layer)
    context.grouped.append(layer)
    emit = _block if form == "block" else _depthwise if layer.is_depthwise else _split if form == "split" else _branches
    y = emit(context, layer, x, weights, low, high)
    real_offset = np.einsum("gicm,gc->gi", weights.real.reshape(groups, -1, per_group, np.prod(window.kernel)),
                            x.offset.reshape(groups, per_group)).ravel()  # fmt: skip
    y = replace(
        y,
        shape=(outputs, *window.positions(*layer.size)),
        scale=_per_output(scale[:, 0], groups, outputs) * scale_per_output(weights),
        offset=real_offset,
        order=None if x.order is None else _order_of_outputs(x.order, outputs // groups),
    )
    return _permuted(y, outputs // groups) if emit is _depthwise and outputs > groups else y


def _in_order_of(x: Stream, weights: Weights) -> Weights:
    """The weights of a depthwise convolution with its channels as they lie in x."""
    if x.order is None:
        return weights
    rows = _order_of_outputs(x.order, weights.integers.shape[0] // x.channels)
    scale = np.broadcast_to(weights.scale, weights.integers.shape)[rows]
    return replace(weights, integers=weights.integers[rows], scale=scale)


def _order_of_outputs(order: Integers, multiplier: int) -> Integers:
    """Where the outputs c · r + j of channels c lie that are in another order: position → place in torch's tensor."""
    return cast(Integers, (order[:, None] * multiplier + np.arange(multiplier)).ravel())


def _permuted(y: Stream, multiplier: int) -> Stream:
    """What is known of outputs (channel, its outputs), for a tensor that holds them as (output of the channel, channel)."""
    position = np.arange(y.channels).reshape(-1, multiplier).T.ravel()
    arrays = {name: getattr(y, name)[position] for name in ("scale", "offset")}
    return replace(y, order=position if y.order is None else y.order[position], **arrays)


def _least(x: Stream, groups: int) -> Integers:
    return cast(Integers, np.minimum(x.low.reshape(groups, -1).min(1), 0))


def _most(x: Stream, groups: int) -> Integers:
    return cast(Integers, np.maximum(x.high.reshape(groups, -1).max(1), 0))


def _per_output(values: np.ndarray, groups: int, outputs: int) -> np.ndarray:
    """One value for each group → one for each output channel."""
    return np.repeat(values, outputs // groups)


def _described(
    context: Context,
    tensor: str,
    site: str,
    x: Stream,
    weights: Weights,
    window: Window,
    groups: int,
    low: Integers,
    high: Integers,
) -> GroupedConvolution:
    outputs, integers = weights.integers.shape[0], weights.integers
    bits = 2 if weights.datatype == "BIPOLAR" else int(weights.datatype.removeprefix("INT"))
    forms: list[Form] = ["block"]
    is_depthwise, first = groups == x.channels, x.tensor == "global_in"
    if not is_depthwise and not (first and window == Window((1, 1))):
        forms.append("split")
    if not first or (is_depthwise and outputs == groups):  # FINN leaves a split or a fork of the input in software
        forms.append("branches")
    bounds = accumulators("", matrix_of(integers), low, high, ())
    return GroupedConvolution(
        site,
        tensor,
        x.channels,
        outputs,
        groups,
        window,
        cast("tuple[int, int]", x.shape[1:]),
        bits,
        bool(integers.min() > -(2 ** (bits - 1))),
        context.builder.datatypes[x.tensor],
        int(bounds.datatype.lstrip("UINT")),
        tuple(forms),
    )


def _block(
    context: Context, layer: GroupedConvolution, x: Stream, weights: Weights, low: Integers, high: Integers
) -> Stream:
    tensor, window = x.tensor, layer.window
    if window != Window((1, 1)):
        tensor = context.builder.windows(layer.site, tensor, window, depthwise=window.kernel != (1, 1))
    matrix = matrix_of(weights.integers)
    datatype = "INT2" if weights.datatype == "BIPOLAR" else weights.datatype
    output = context.builder.multiply_groups(layer.site, tensor, matrix, datatype, layer.groups, window.kernel)
    return accumulators(output, matrix, low, high, context.builder.columns_of_last())


def _split(
    context: Context, layer: GroupedConvolution, x: Stream, weights: Weights, low: Integers, high: Integers
) -> Stream:
    window, builder = layer.window, context.builder
    if window == Window((1, 1)):
        return _branches(context, layer, x, weights, low, high)
    tensor = builder.windows(layer.site, x.tensor, window, depthwise=False)
    _, rows, columns, width = builder.shapes[tensor]
    positions = width // layer.channels
    tensor = builder.reshape(f"{layer.site}#apart", tensor, (1, rows, columns * positions, layer.channels))
    per_group = layer.channels // layer.groups
    parts = split_channels(context, f"{layer.site}#part", tensor, [per_group] * layer.groups)
    shape = (1, rows, columns, positions * per_group)
    windows = [builder.reshape(f"{layer.site}#together", part, shape) for part in parts]
    return _multiplied_one_by_one(context, layer, windows, weights, low, high)


def _branches(
    context: Context, layer: GroupedConvolution, x: Stream, weights: Weights, low: Integers, high: Integers
) -> Stream:
    sizes = [layer.channels // layer.groups] * layer.groups
    tensors = split_channels(context, f"{layer.site}#part", x.tensor, sizes)
    if layer.window != Window((1, 1)):
        name = f"{layer.site}#branch"
        tensors = [context.builder.windows(name, tensor, layer.window, depthwise=False) for tensor in tensors]
    return _multiplied_one_by_one(context, layer, tensors, weights, low, high)


def _multiplied_one_by_one(
    context: Context, layer: GroupedConvolution, tensors: list[str], weights: Weights, low: Integers, high: Integers
) -> Stream:
    """A matrix unit for each group, and their outputs concatenated."""
    results = []
    for group, tensor in zip(np.split(np.arange(layer.outputs), layer.groups), tensors, strict=True):
        matrix = matrix_of(weights.integers[group])
        output = context.builder.multiply(f"{layer.site}#branch", tensor, matrix, weights.datatype, None)
        results.append(accumulators(output, matrix, low[group], high[group], context.builder.columns_of_last()))
    return joined(context, layer.site, results)


def _depthwise(
    context: Context, layer: GroupedConvolution, x: Stream, weights: Weights, low: Integers, high: Integers
) -> Stream:
    """FINN's depthwise units, one for each output of a channel."""
    multiplier = layer.outputs // layer.groups
    name = layer.site if multiplier == 1 else f"{layer.site}#branch"
    results = []
    for index in range(multiplier):
        chosen = slice(index, None, multiplier)
        tensor = context.builder.windows(name, x.tensor, layer.window, depthwise=True)
        matrix = depthwise_matrix(weights.integers[chosen])
        output = context.builder.multiply(name, tensor, matrix, weights.datatype, layer.window.kernel)
        results.append(accumulators(output, matrix, low[chosen], high[chosen], context.builder.columns_of_last()))
    return results[0] if multiplier == 1 else joined(context, layer.site, results)
