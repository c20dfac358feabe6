"""Networks over one dimension (Conv1d, MaxPool1d) as networks over two, of which the second is 1: FINN has no others."""

from __future__ import annotations

import onnx

_WINDOWED = ("Conv", "MaxPool", "AveragePool")
_RANK = 3


def is_one_dimensional(graph: onnx.GraphProto) -> bool:
    """Whether the input is (1, C, L)."""
    constants = {tensor.name for tensor in graph.initializer}
    return any(value.name not in constants and _rank(value) == _RANK for value in graph.input)


def as_columns(model: onnx.ModelProto) -> onnx.ModelProto:
    """A copy in which (1, C, L) is (1, C, L, 1), and a kernel of k is one of k × 1; nothing is computed otherwise."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    graph = result.graph
    for value in (*graph.input, *graph.output, *graph.value_info):
        if _rank(value) == _RANK:
            value.type.tensor_type.shape.dim.add().dim_value = 1
    for tensor in graph.initializer:
        if len(tensor.dims) == _RANK:
            tensor.dims.append(1)
    for node in graph.node:
        for attribute in node.attribute if node.op_type in _WINDOWED else ():
            if attribute.name in ("kernel_shape", "strides", "dilations") and len(attribute.ints) == 1:
                attribute.ints.append(1)
            if attribute.name == "pads" and len(attribute.ints) == 2:
                before, after = attribute.ints
                attribute.ints[:] = [before, 0, after, 0]
    return result


def _rank(value: onnx.ValueInfoProto) -> int:
    return len(value.type.tensor_type.shape.dim)
