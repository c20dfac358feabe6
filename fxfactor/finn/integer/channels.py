"""Channels in another order: what exporters write as several nodes, found and written as the one operation that it is.

`torch.chunk` and indexing come as Slices, a channel shuffle (Zhang et al. 2018, arXiv 1707.01083) as Reshape, Transpose and
Reshape. Here the first become one Split and the second a node ChannelShuffle, which no exporter knows: the walk takes it as a
permutation that the layers behind it fold into their weights.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from fxfactor.finn.integer.onnx_constants import attributes_of

SHUFFLE = "ChannelShuffle"
"""Attribute `order`: channel of the result → channel of the input."""
_RANK = 4


def with_channel_operations(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model, or a copy in which shuffles and runs of slices are one node each; nothing is computed otherwise."""
    graph = model.graph
    if not any(node.op_type in ("Slice", "Transpose") for node in graph.node):
        return model
    found = _Patterns(graph)
    nodes = [*found.nodes()]
    if not found.count:
        return model
    result = onnx.ModelProto()
    result.CopyFrom(model)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    result.graph.initializer.extend(found.sizes)
    return result


class _Patterns:
    """What one graph holds of them."""

    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph, self.count = graph, 0
        self.sizes: list[onnx.TensorProto] = []
        self.constants = {tensor.name: tensor for tensor in graph.initializer}
        self.readers: dict[str, list[onnx.NodeProto]] = defaultdict(list)
        for node in graph.node:
            for name in node.input:
                self.readers[name].append(node)
        self.kept = {output.name for output in graph.output}
        self.shapes = {
            value.name: tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
            for value in (*graph.input, *graph.value_info, *graph.output)
        }

    def nodes(self) -> Iterable[onnx.NodeProto]:
        """All nodes, with one in the place of each pattern's first."""
        replaced: set[int] = set()
        for node in self.graph.node:
            if id(node) in replaced:
                continue
            found = self._shuffle(node) if node.op_type == "Reshape" else None
            found = self._split(node) if node.op_type == "Slice" else found
            if found is None:
                yield node
                continue
            self.count += 1
            old, new = found
            replaced.update(map(id, old))
            yield new

    def _shuffle(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], onnx.NodeProto] | None:
        nodes = [node]
        for kind in ("Transpose", "Reshape"):
            readers = self.readers[nodes[-1].output[0]]
            if len(readers) != 1 or readers[0].op_type != kind or nodes[-1].output[0] in self.kept:
                return None
            nodes.append(readers[0])
        whole, apart = self.shapes.get(node.input[0], ()), self.shapes.get(node.output[0], ())
        order = attributes_of(nodes[1]).get("perm", ())
        rank = len(apart)
        if len(whole) != _RANK or self.shapes.get(nodes[2].output[0]) != whole or rank <= _RANK or apart[0] != whole[0]:
            return None
        if apart[-2:] != whole[-2:] or [order[0], *order[-2:]] != [0, rank - 2, rank - 1]:
            return None
        channels = np.arange(whole[1]).reshape(apart[1:-2]).transpose([axis - 1 for axis in order[1:-2]]).ravel()
        return nodes, helper.make_node(
            SHUFFLE, [node.input[0]], [nodes[2].output[0]], name=node.name, order=channels.tolist()
        )

    def _split(self, node: onnx.NodeProto) -> tuple[list[onnx.NodeProto], onnx.NodeProto] | None:
        """Slices of one tensor that share out its channels."""
        channels = self.shapes.get(node.input[0], ())[1:2]
        slices = self.readers[node.input[0]]
        if not channels or any(each.op_type != "Slice" or each.input[0] != node.input[0] for each in slices):
            return None
        runs = [self._run(each, channels[0]) for each in slices]
        ordered = sorted((run, index) for index, run in enumerate(runs) if run is not None)
        ends = [0, *(run[1] for run, _ in ordered)]
        if len(ordered) < len(slices) or [run[0] for run, _ in ordered] != ends[:-1] or ends[-1] != channels[0]:
            return None
        sizes = numpy_helper.from_array(np.diff(ends).astype(np.int64), f"{node.name or node.output[0]}.sizes")
        self.sizes.append(sizes)
        outputs = [slices[index].output[0] for _, index in ordered]
        return slices, helper.make_node("Split", [node.input[0], sizes.name], outputs, name=node.name, axis=1)

    def _run(self, node: onnx.NodeProto, channels: int) -> tuple[int, int] | None:
        """First channel and the one after the last, where the Slice is a run of channels."""
        given: list[Any] = [None] * 4
        for index, name in enumerate(node.input[1:]):
            tensor = self.constants.get(name)
            if name and (tensor is None or np.prod(tensor.dims) != 1):
                return None
            given[index] = None if tensor is None else int(numpy_helper.to_array(tensor).item())
        first, last, axis, step = given
        if first is None or last is None or axis not in (1, 1 - _RANK) or step not in (None, 1):
            return None
        first, last, _ = slice(first, last).indices(channels)
        return first, last
