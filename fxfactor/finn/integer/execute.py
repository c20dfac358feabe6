"""Runs a network in integers on many images at once, with numpy alone: exact, and without FINN or onnxruntime.

Sums of products stay below 2^53, so float64 matrix products give the integers themselves.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from fxfactor.finn.integer.requantizing import Requantization
from fxfactor.finn.integer.streams import Reals

Tensors = dict[str, NDArray[Any]]


def execute(
    model: onnx.ModelProto, images: NDArray[Any], watch: Callable[[str, NDArray[Any]], None] | None = None
) -> NDArray[np.int64]:
    """The first output of the integer graph for integer images (N, H, W, C) or (N, C), as (N, ...); see `execute_all`."""
    return execute_all(model, images, watch)[0]


def execute_all(
    model: onnx.ModelProto, images: NDArray[Any], watch: Callable[[str, NDArray[Any]], None] | None = None
) -> list[NDArray[np.int64]]:
    """The outputs of the integer graph for integer images (N, H, W, C) or (N, C), each as (N, ...).

    `watch(name, value)` is called with every tensor that a node gives, before it is dropped.
    """
    values: Tensors = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    values[model.graph.input[0].name] = images.astype(np.float64)
    remaining = {name: sum(name in node.input for node in model.graph.node) for name in _outputs(model)}
    for node in model.graph.node:
        attributes = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        inputs = [values[name] for name in node.input]
        for name, value in zip(node.output, OPERATIONS[node.op_type](inputs, attributes), strict=True):
            values[name] = value
            if watch is not None:
                watch(name, value)
        for name in node.input:  # drop what nobody needs any more
            if name in remaining:
                remaining[name] -= 1
                if not remaining[name]:
                    del values[name]
    return [values[output.name].astype(np.int64) for output in model.graph.output]


def _outputs(model: onnx.ModelProto) -> list[str]:
    kept = {output.name for output in model.graph.output}
    return [name for node in model.graph.node for name in node.output if name not in kept]


def _windows(x: Reals, attributes: dict[str, Any]) -> Reals:
    """(N, H, W, C) -> (N, H', W', kernel height, kernel width, C), a view of the padded images."""
    (top, left, bottom, right), (kh, kw) = attributes["pads"], attributes["kernel"]
    (sh, sw), (dh, dw) = attributes["strides"], attributes["dilations"]
    padded = np.pad(x, ((0, 0), (top, bottom), (left, right), (0, 0)))
    view = np.lib.stride_tricks.sliding_window_view(padded, (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(1, 2))
    return np.moveaxis(view[:, ::sh, ::sw, :, ::dh, ::dw], 3, -1)


def _im2col(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    names = {"pads": "pad_amount", "kernel": "kernel_size", "strides": "stride", "dilations": "dilations"}
    windows = _windows(inputs[0], {name: attributes[key] for name, key in names.items()})
    return [windows.reshape(*windows.shape[:3], -1)]


def _max_pool(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    # padding with 0 is right, since only unsigned values are padded
    windows = _windows(inputs[0], {**attributes, "kernel": attributes["kernel_shape"]})
    return [windows.max(axis=(3, 4))]


def _matmul(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    x, matrix = inputs
    rows, columns = matrix.shape
    diagonal = matrix.reshape(-1, columns, columns) if rows % columns == 0 and columns > 1 else None
    if diagonal is not None and not (diagonal[:, ~np.eye(columns, dtype=bool)]).any():  # depthwise: most of it is 0
        taps = np.diagonal(diagonal, axis1=1, axis2=2)
        return [np.einsum("...kc,kc->...c", x.reshape(*x.shape[:-1], -1, columns), taps)]
    return [x @ matrix.astype(np.float64)]


def _grouped(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    x, matrix = inputs
    groups, positions = attributes["Groups"], int(np.prod(attributes["Kernel"]))
    windows = x.reshape(*x.shape[:-1], positions, groups, -1)
    weights = matrix.astype(np.float64).reshape(positions, windows.shape[-1], groups, -1)
    sums = np.einsum("...kgc,kcgo->...go", windows, weights, optimize=True)
    return [sums.reshape(*x.shape[:-1], -1)]


def _multi_threshold(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    x, steps = inputs
    flat = np.moveaxis(x, -1, 0)
    if len(steps) == 1:
        counts = np.searchsorted(steps[0], flat, side="right")
    else:
        counts = np.stack([np.searchsorted(row, values, side="right") for row, values in zip(steps, flat, strict=True)])
    return [np.moveaxis(counts, 0, -1) + attributes.get("out_bias", 0.0)]


def _requant(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    scales, biases = (np.asarray(attributes[name], np.int64) for name in ("Scales", "Biases"))
    line = Requantization(scales, biases, attributes["Shift"], attributes["Lowest"], attributes["Highest"])
    return [line(inputs[0].astype(np.int64)).astype(np.float64)]


def _upsample(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    down, across = attributes["HO"] // attributes["HI"], attributes["WO"] // attributes["WI"]
    return [inputs[0].repeat(down, 1).repeat(across, 2)]


def _spread(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    (x,), (down, across) = inputs, attributes["Stride"]
    count, height, width, channels = x.shape
    result = np.zeros((count, (height - 1) * down + 1, (width - 1) * across + 1, channels))
    result[:, ::down, ::across] = x
    return [result]


def _split(inputs: list[Reals], attributes: dict[str, Any]) -> list[Reals]:
    return np.split(inputs[0], np.cumsum(inputs[1])[:-1], axis=-1)


OPERATIONS: dict[str, Callable[[list[Any], dict[str, Any]], list[Any]]] = {
    "Add": lambda inputs, _: [inputs[0] + inputs[1]],
    "Concat": lambda inputs, _: [np.concatenate(inputs, axis=-1)],
    "FMPadding_Pixel": _spread,
    "Flatten": lambda inputs, _: [inputs[0].reshape(len(inputs[0]), -1)],
    "GlobalAccPool": lambda inputs, _: [inputs[0].sum(axis=(1, 2), keepdims=True)],
    "Im2Col": _im2col,
    "IntegerRequant": _requant,
    "MatMul": _matmul,
    "MVAUGrouped": _grouped,
    "MaxPoolNHWC": _max_pool,
    "Mul": lambda inputs, _: [inputs[0] * inputs[1]],
    "MultiThreshold": _multi_threshold,
    "Reshape": lambda inputs, _: [inputs[0].reshape(len(inputs[0]), *inputs[1][1:])],
    "Split": _split,
    "UpsampleNearestNeighbour": _upsample,
}
"""Operation of the integer graph -> what it computes from its inputs and attributes."""
