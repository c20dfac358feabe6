"""An exported ONNX model cleaned up and executed, each in a time that grows with the number of nodes.

`clean_up` does what `qonnx.util.cleanup` does (there every look-up walks a list and every step walks the graph again, so that
networks of a thousand nodes take minutes), with the same names in the end. Nodes are executed by qonnx.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import chain
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper, shape_inference

from fxfactor.errors import ExportError

Values = dict[str, Any]
"""Tensor -> array."""
_DOMAIN = "qonnx.custom_op.general"
_QUANTIZERS = ("Quant", "BipolarQuant", "Trunc")
"""Their first output is like their first input."""
_KEPT = ("Quant", "BipolarQuant", "QuantizeLinear", "DequantizeLinear")
"""Not computed, also where all inputs are constants: their bits are to be known."""
_COMMUTATIVE = ("Add", "Mul", "And", "Or", "Xor", "Sum")


def clean_up(model: onnx.ModelProto) -> None:
    """Make shapes known, compute what is constant, give each reader its own constants, sort nodes and name all, in place.

    Raises ExportError on branches, loops and circles, and where shapes cannot be inferred.
    """
    for node in model.graph.node:
        if node.op_type in _QUANTIZERS:
            node.domain = _DOMAIN
        if any(attribute.HasField("g") for attribute in node.attribute):
            raise ExportError(
                f"the exported graph has a branch or loop, {node.op_type} {node.name!r}, which qonnx does not execute; "
                "write forward so that shapes decide, not values"
            )
    _infer_shapes(model)
    while _fold_constants(model):
        _infer_shapes(model)
    _transpose_weights(model)
    _separate_constants(model.graph)
    _sort(model.graph)
    _remove_unused(model.graph)
    _rename(model.graph)


def execute(model: onnx.ModelProto, values: Values) -> Iterator[onnx.NodeProto]:
    """Execute node by node. `values`: the inputs; what each node gives is added, and may be changed before the next one."""
    values |= {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    tensors, opsets = _tensors(model.graph), _opsets(model)
    for node in model.graph.node:
        _execute_node(node, values, tensors, opsets)
        yield node


def _execute_node(
    node: onnx.NodeProto, values: Values, tensors: Mapping[str, onnx.ValueInfoProto], opsets: Mapping[str, int]
) -> None:
    """By qonnx, which is given the node's own tensors only, for it walks over all that it gets."""
    from qonnx.core.onnx_exec import execute_node
    from qonnx.util.basic import get_preferred_qonnx_opset

    own = [tensors[name] for name in dict.fromkeys((*node.input, *node.output)) if name]
    graph = onnx.helper.make_graph([], "node", [], [], value_info=own)
    values[""] = None  # an input that is left out
    for name in node.output:
        values[name] = np.empty(_shape(tensors[name]), np.float32)  # qonnx compares the shapes
    execute_node(node, values, graph, opsets.get(node.domain, get_preferred_qonnx_opset()))


def _opsets(model: onnx.ModelProto) -> dict[str, int]:
    return {each.domain: each.version for each in model.opset_import}


def _tensors(graph: onnx.GraphProto) -> dict[str, onnx.ValueInfoProto]:
    return {info.name: info for info in chain(graph.value_info, graph.input, graph.output)}


def _shape(info: onnx.ValueInfoProto) -> tuple[int, ...]:
    return tuple(size.dim_value for size in info.type.tensor_type.shape.dim)


def _infer_shapes(model: onnx.ModelProto) -> None:
    """Shapes of all tensors into the graph's value_info, and those of its outputs where they were open."""
    plain = onnx.ModelProto()
    plain.CopyFrom(model)
    for node in plain.graph.node:
        if node.domain == _DOMAIN and node.op_type in _QUANTIZERS:
            node.op_type, node.domain = "Identity", ""
            del node.input[1:]
            del node.attribute[:]
    try:
        inferred = shape_inference.infer_shapes(plain).graph
    except shape_inference.InferenceError as error:
        raise ExportError(
            f"the shapes in the graph cannot be inferred: {str(error).strip().splitlines()[0]}; required: operations of ONNX "
            "and QONNX's quantizers"
        ) from error
    constants = [
        onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
        for tensor in model.graph.initializer
    ]
    ends = {info.name for info in chain(model.graph.input, model.graph.output)}
    infos = {info.name: info for info in chain(inferred.value_info, constants) if info.name not in ends}
    del model.graph.value_info[:]
    model.graph.value_info.extend(infos.values())
    for mine, found in zip(model.graph.output, inferred.output, strict=True):
        mine.type.CopyFrom(found.type)


def _fold_constants(model: onnx.ModelProto) -> bool:
    """Compute nodes without variable inputs, and sizes that are known; tells whether there were any."""
    graph, opsets = model.graph, _opsets(model)
    tensors = _tensors(graph)
    values: Values = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    folded = []
    for node in graph.node:
        if node.op_type == "Shape" and node.input[0] in tensors and node.input[0] not in values:
            given: Values = {node.input[0]: np.empty(_shape(tensors[node.input[0]]), np.float32)}
        elif node.op_type not in _KEPT and all(not name or name in values for name in node.input):
            given = {name: values[name] for name in node.input if name}
        else:
            continue
        if not all(name in tensors for name in node.output):
            continue  # of unknown shape still
        _execute_node(node, given, tensors, opsets)
        values.update({name: given[name] for name in node.output})
        graph.initializer.extend(numpy_helper.from_array(given[name], name) for name in node.output)
        folded.append(node)
    for node in folded:
        graph.node.remove(node)
    return bool(folded)


def _transpose_weights(model: onnx.ModelProto) -> None:
    """Transpose quantized weights before their quantizer, not behind it: rare, so left to qonnx."""
    makers = {name: node for node in model.graph.node for name in node.output}
    behind = (makers.get(node.input[0]) for node in model.graph.node if node.op_type == "Transpose")
    if any(maker is not None and maker.op_type in _KEPT[:2] for maker in behind):
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.quant_constant_folding import FoldTransposeIntoQuantInit

        model.CopyFrom(ModelWrapper(model, make_deepcopy=True).transform(FoldTransposeIntoQuantInit()).model)


def _separate_constants(graph: onnx.GraphProto) -> None:
    """A constant for each input that reads one, behind the variables where the order of the inputs does not matter."""
    constants = {tensor.name: tensor for tensor in graph.initializer}
    tensors, read = _tensors(graph), set[str]()
    for node in graph.node:
        if node.op_type in _COMMUTATIVE:
            ordered = sorted(node.input, key=lambda name: name in constants)
            del node.input[:]
            node.input.extend(ordered)
        for index, name in enumerate(node.input):
            if name in read:
                node.input[index] = f"{name} of {node.output[0]}, {index}"
                for copied, container in ((constants[name], graph.initializer), (tensors[name], graph.value_info)):
                    copy: Any = type(copied).FromString(copied.SerializeToString())
                    copy.name = node.input[index]
                    container.append(copy)
            elif name in constants:
                read.add(name)


def _sort(graph: onnx.GraphProto) -> None:
    """Level by level, as qonnx sorts."""
    level: dict[str, int] = {}
    makers = {name: node for node in graph.node for name in node.output}
    waiting = list(graph.node)
    while waiting:
        later = []
        for node in waiting:
            needed = [name for name in node.input if name in makers]
            if any(name not in level for name in needed):
                later.append(node)
                continue
            mine = 1 + max((level[name] for name in needed), default=-1)
            level.update(dict.fromkeys(node.output, mine))
        if len(later) == len(waiting):
            raise ExportError(
                f"the exported graph runs in a circle at {later[0].name!r}; please report it with the model"
            )
        waiting = later
    nodes = [node for _, node in sorted(enumerate(graph.node), key=lambda each: level[each[1].output[0]])]
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)


def _remove_unused(graph: onnx.GraphProto) -> None:
    """Constants and shapes that nothing reads, and inputs that are constants."""
    used = {name for node in graph.node for name in chain(node.input, node.output)}
    constants = {tensor.name for tensor in graph.initializer}
    graph.value_info.extend(info for info in graph.input if info.name in constants)
    for items, wanted in (
        (graph.initializer, used),
        (graph.value_info, used),
        (graph.input, {info.name for info in graph.input} - constants),
    ):
        kept: list[Any] = [item for item in items if item.name in wanted]
        del items[:]
        items.extend(kept)


def _rename(graph: onnx.GraphProto) -> None:
    """Conv_0 and its Conv_0_out0 and Conv_0_param0, global_in and global_out, as qonnx names them."""
    constants = {tensor.name for tensor in graph.initializer}
    counts: dict[str, int] = {}
    names: dict[str, str] = {}
    for node in graph.node:
        number = counts.get(node.op_type, 0)
        counts[node.op_type] = number + 1
        node.name = f"{node.op_type}_{number}"
        names.update((name, f"{node.name}_out{index}") for index, name in enumerate(node.output))
        read = [name for name in node.input if name in constants]
        names.update((name, f"{node.name}_param{index}") for index, name in enumerate(read))
    for end, infos in (("global_in", graph.input), ("global_out", graph.output)):
        names.update((info.name, f"{end}_{index}" if index else end) for index, info in enumerate(infos))
    for node in graph.node:
        for held in (node.input, node.output):
            renamed = [names.get(name, name) for name in held]
            del held[:]
            held.extend(renamed)
    for item in chain(graph.initializer, graph.value_info, graph.input, graph.output):
        item.name = names.get(item.name, item.name)
