"""Makes qonnx's graph look-ups fast; loaded by the worker, and only there.

qonnx looks tensors and nodes up by walking whole lists, and copies, sorts and re-infers the whole model around each of some
hundred small transformations. On ResNet-18 that is most of the run time, on networks of hundreds of branches it is hours.
The replacements give the same answers: an index is only a hint that is verified at every use, and an inference is skipped
only where there is nothing left to infer. What FINN computes with them is executed and compared after every step anyway.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def use_fast_lookups() -> None:
    """Replace the slow methods of qonnx' ModelWrapper and of three transformations, in this process."""
    from functools import cache

    from finn.transformation.fpgadataflow.minimize_accumulator_width import MinimizeAccumulatorWidth
    from qonnx.core import datatype
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.transformation.general import SortGraph
    from qonnx.transformation.infer_shapes import InferShapes

    datatype.resolve_datatype = cache(datatype.resolve_datatype)  # a type is parsed from its name at every question
    ModelWrapper.transform = _without_copies(ModelWrapper.transform)
    ModelWrapper.get_tensor_valueinfo = _value_info
    ModelWrapper.get_tensor_shape = _shape(ModelWrapper.get_tensor_shape)
    ModelWrapper.get_tensor_datatype = _datatype(ModelWrapper.get_tensor_datatype)
    ModelWrapper.set_tensor_datatype = _set_datatype(ModelWrapper.set_tensor_datatype)
    ModelWrapper.get_initializer = _initializer
    ModelWrapper.find_producer = _producer
    ModelWrapper.find_consumers = _consumers
    InferShapes.apply = _where(_lacks_shapes, InferShapes.apply)
    SortGraph.apply = _sort
    MinimizeAccumulatorWidth.apply = _minimize_in_order


def _without_copies(original: Callable[..., Any]) -> Callable[..., Any]:
    """The steps use the model they get back and never the one they gave, so the two may be one."""

    def transform(self: Any, transformation: Any, make_deepcopy: bool = False, *args: Any, **kwargs: Any) -> Any:
        return original(self, transformation, False, *args, **kwargs)

    return transform


def _where(needed: Callable[[Any], bool], original: Callable[..., Any]) -> Callable[..., Any]:
    def apply(self: Any, model: Any) -> Any:
        return original(self, model) if needed(model) else (model, False)

    return apply


def _hint(model: Any, kind: str, items: Any, name: str, key: str) -> Any:
    """The item of a protobuf list whose field `key` is `name`, if the index knows it and is right; else None."""
    position = _hints(model, kind).get(name)
    if position is not None and position < len(items) and getattr(items[position], key) == name:
        return items[position]
    return None


def _find(model: Any, kind: str, items: Any, name: str, key: str) -> Any:
    """The item of a protobuf list whose field `key` is `name`, or None where there is none."""
    item = _hint(model, kind, items, name, key)
    if item is not None:
        return item
    hints = _hints(model, kind)
    hints.clear()
    hints.update((getattr(item, key), index) for index, item in enumerate(items))
    position = hints.get(name)
    return None if position is None else items[position]


def _hints(model: Any, kind: str) -> dict[str, int]:
    return model.__dict__.setdefault("_hints", {}).setdefault(kind, {})


def _value_info(self: Any, tensor_name: str) -> Any:
    graph = self._model_proto.graph
    for ends in (graph.input, graph.output):
        for value in ends:
            if value.name == tensor_name:
                return value
    return _find(self, "value_info", graph.value_info, tensor_name, "name")


def _shape(original: Callable[..., Any]) -> Callable[..., Any]:
    def get_tensor_shape(self: Any, tensor_name: str, fix_missing_init_shape: bool = False) -> Any:
        value = _value_info(self, tensor_name)
        if value is None:
            return original(self, tensor_name, fix_missing_init_shape)
        return [size.dim_value for size in value.type.tensor_type.shape.dim]

    return get_tensor_shape


def _annotated(model: Any, tensor_name: str) -> Any:
    annotation = _find(model, "annotation", model.graph.quantization_annotation, tensor_name, "tensor_name")
    entries = [] if annotation is None else annotation.quant_parameter_tensor_names
    return next((entry for entry in entries if entry.key == "finn_datatype"), None)


def _datatype(original: Callable[..., Any]) -> Callable[..., Any]:
    from qonnx.core.datatype import DataType

    def get_tensor_datatype(self: Any, tensor_name: str) -> Any:
        entry = _annotated(self, tensor_name)
        return original(self, tensor_name) if entry is None else DataType[entry.value]

    return get_tensor_datatype


def _set_datatype(original: Callable[..., Any]) -> Callable[..., Any]:
    def set_tensor_datatype(self: Any, tensor_name: str, datatype: Any) -> None:
        entry = _annotated(self, tensor_name)
        if entry is None or datatype is None:
            original(self, tensor_name, datatype)
        elif entry.value != datatype.name:
            entry.value = datatype.name

    return set_tensor_datatype


def _initializer(self: Any, tensor_name: str, return_dtype: bool = False) -> Any:
    from onnx import numpy_helper

    tensor = None
    if _known_producer(self, tensor_name) is None:  # what a node gives is no initializer: the most frequent question
        tensor = _find(self, "initializer", self._model_proto.graph.initializer, tensor_name, "name")
    value = None if tensor is None else numpy_helper.to_array(tensor)
    if not return_dtype:
        return value
    return (None, None) if tensor is None else (value, tensor.data_type)


def _known_producer(model: Any, tensor_name: str) -> Any:
    nodes = model._model_proto.graph.node
    position = _hints(model, "producer").get(tensor_name)
    if position is not None and position < len(nodes) and tensor_name in nodes[position].output:
        return nodes[position]
    return None


def _producer(self: Any, tensor_name: str) -> Any:
    node = _known_producer(self, tensor_name)
    graph = self._model_proto.graph
    if node is not None or _hint(self, "initializer", graph.initializer, tensor_name, "name") is not None:
        return node
    hints = _hints(self, "producer")
    hints.clear()
    hints.update((name, index) for index, node in enumerate(graph.node) for name in node.output)
    position = hints.get(tensor_name)
    return None if position is None else graph.node[position]


def _minimize_in_order(self: Any, model: Any) -> Any:
    """FINN infers the data types of the whole graph after each layer; in the order of execution one walk is enough."""
    from finn.util.fpgadataflow import is_fpgadataflow_node
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.transformation.infer_datatypes import _infer_node_datatype

    for index in range(len(model.graph.node)):
        _infer_node_datatype(model, model.graph.node[index], False)
        node = model.graph.node[index]
        layer: Any = getCustomOp(node) if is_fpgadataflow_node(node) else None
        if hasattr(layer, "minimize_accumulator_width"):
            layer.minimize_accumulator_width(model, datatype_only=self.datatype_only)
            _infer_node_datatype(model, model.graph.node[index], False)
    return model, False


def _consumers(self: Any, tensor_name: str) -> Any:
    return [
        node
        for node in self._model_proto.graph.node
        if tensor_name in node.input
        for name in node.input
        if name == tensor_name
    ]


def _lacks_shapes(model: Any) -> bool:
    graph = model.graph
    shaped = {value.name for values in (graph.input, graph.output, graph.value_info) for value in values
              if value.type.tensor_type.HasField("shape")}  # fmt: skip
    return not all(name in shaped for node in graph.node for name in node.output if name)


def _sort(self: Any, model: Any) -> Any:
    """qonnx' order, level by level: FINN numbers layers by it, and a folding configuration names them so.

    As there, a node that needs nothing is dropped. Nodes are only moved where the order is another one.
    """
    from toposort import toposort_flatten

    graph = model.graph
    nodes = list(graph.node)
    if len(nodes) == 1:
        return model, False
    makers = {name: index for index, node in enumerate(nodes) for name in node.output}
    given = {value.name for values in (graph.input, graph.initializer) for value in values}
    needs = {index: {makers[name] for name in node.input if name in makers} for index, node in enumerate(nodes)}
    order = toposort_flatten(
        {index: before for index, before in needs.items() if before or given.intersection(nodes[index].input)}
    )
    if order != list(range(len(nodes))):
        copies = [type(node).FromString(node.SerializeToString()) for node in nodes]
        del graph.node[:]
        graph.node.extend(copies[index] for index in order)
    return model, False
