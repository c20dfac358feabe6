"""From a QONNX file to the network in integers: one walk in the order of execution, in place of FINN's streamlining.

FINN's own streamlining moves scales and biases through the graph by rewriting it, one node at a time, until nothing
changes; which rewrites in which order depends on the topology, and some corrupt the graph where it forks. Here every
tensor is interpreted instead (see `fxfactor.finn.integer.streams`): a convolution multiplies scales, a batch norm is another
scale and offset, a quantizer is thresholds. The walk is linear in the size of the network, handles forks, joins, splits
and concatenations alike, and where a tensor cannot be interpreted it knows which rule is broken and where.

Beyond FINN's own flow this takes: any activation function that never falls before a quantizer (it is absorbed into the
thresholds), average pooling (a depthwise convolution of ones), concatenations of branches with scales of their own,
quantized biases, and rounding down or up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fxfactor.finn import rules
from fxfactor.finn.integer import arithmetic, layers, pooling, quantizing, resampling, shapes
from fxfactor.finn.integer.builder import positions
from fxfactor.finn.integer.channels import with_channel_operations
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.forms import DEFAULT, Choices, GroupedConvolution, Staircase
from fxfactor.finn.integer.one_dimension import as_columns, is_one_dimensional
from fxfactor.finn.integer.onnx_constants import Broken, Value, fold, quantizer_of
from fxfactor.finn.integer.streams import Stream
from fxfactor.finn.integer.values import nothing, quantized, require_quantized
from fxfactor.finn.rules import Finding

QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant")

HANDLERS: dict[str, Handler] = {
    **layers.HANDLERS,
    **arithmetic.HANDLERS,
    **quantizing.HANDLERS,
    **pooling.HANDLERS,
    **resampling.HANDLERS,
    **shapes.HANDLERS,
}
"""ONNX operation -> how the walk interprets it."""


@dataclass(frozen=True)
class Interpretation:
    """The network in integers, or why there is none: `model` is None where a finding blocks.

    `grouped`: the grouped convolutions, `staircases`: the quantizers that one multiplication could take the place of (where
    the choices ask to look), both in the order of execution. `quantized`: what each quantizer of activations gives, by the
    name of its tensor in the QONNX model.
    """

    model: onnx.ModelProto | None
    findings: tuple[Finding, ...]
    grouped: tuple[GroupedConvolution, ...] = ()
    staircases: tuple[Staircase, ...] = ()
    quantized: Mapping[str, Stream] = field(default_factory=dict)


def interpret(model: onnx.ModelProto, choices: Choices = DEFAULT) -> Interpretation:
    """Turn a QONNX model into the network in integers, or say which rules it breaks (all of them, not only the first).

    `choices` say how grouped convolutions and quantizers are built.
    """
    flat = is_one_dimensional(model.graph)
    model = with_channel_operations(as_columns(model) if flat else model)
    return _Interpreter(model.graph, choices, flat).run()


class _Interpreter:
    def __init__(self, graph: onnx.GraphProto, choices: Choices, flat: bool) -> None:
        self.graph = graph
        self.flat = flat
        self.context = Context(graph, choices)
        self.values: dict[str, Value] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.uses = Counter(name for node in graph.node for name in node.input if name)
        self.uses.update(output.name for output in graph.output)
        self.notes: dict[str, Any] = {}
        inputs = [value for value in graph.input if value.name not in self.values]
        self.input = inputs[0] if inputs else None
        self.inputs = len(inputs)  # exporters list initializers among the inputs of the graph

    # ---- the walk ----

    def run(self) -> Interpretation:
        if self.inputs != 1 or not self.graph.output:
            found = f"{self.inputs} inputs, {len(self.graph.output)} outputs"
            self.context.report("network", Broken(rules.ONE_INPUT, found, "export a network with one input"))
            return Interpretation(None, tuple(self.context.findings))
        for node in self.graph.node:
            self._visit(node)
        outputs = [self.values.get(output.name) for output in self.graph.output]
        if not any(finding.blocks for finding in self.context.findings):
            try:
                return Interpretation(
                    self._finish(outputs),
                    tuple(self.context.findings),
                    tuple(self.context.grouped),
                    tuple(self.context.staircases),
                    self._quantized(),
                )
            except Broken as broken:
                self.context.report("output", broken)
        return Interpretation(None, tuple(self.context.findings))

    def _quantized(self) -> dict[str, Stream]:
        outputs = (
            (node.output[0], self.values[node.output[0]]) for node in self.graph.node if node.op_type in QUANTIZERS
        )
        return {name: value for name, value in outputs if isinstance(value, Stream)}

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [self.values.get(name) if name else None for name in node.input]
        known = all(value is not None or not name for value, name in zip(inputs, node.input, strict=True))
        try:
            if self.input is not None and self.input.name in node.input:
                outputs: Iterable[Value] = (self._read_input(node, inputs),)
            elif known and not any(isinstance(value, Stream) for value in inputs):
                outputs = fold(node, inputs)
            elif known:
                outputs = HANDLERS.get(node.op_type, _unsupported)(self.context, node, inputs)
            elif node.op_type in QUANTIZERS and not isinstance(inputs[0], Stream):
                outputs = (self._restart(node, inputs),)
            else:
                outputs = [None] * len(node.output)
        except Broken as broken:
            self.context.report(self.context.site(node), broken)
            outputs = [None] * len(node.output)
        self.values.update((name, self._shared(name, value)) for name, value in zip(node.output, outputs, strict=False))

    def _shared(self, name: str, value: Value) -> Value:
        """Where a tensor forks, the signs of the weights behind it are no longer one branch's to change."""
        if isinstance(value, Stream) and value.columns is not None and self.uses[name] > 1:
            return replace(value, columns=None)
        return value

    def _restart(self, node: onnx.NodeProto, inputs: list[Value]) -> Value:
        """After a broken rule: a quantizer says again what its output is, so that later rules are looked at too."""
        shape = self._declared_shape(node.output[0])
        if shape is None or any(not isinstance(value, np.ndarray) for value in inputs[1:]):
            return None
        quantizer = quantizer_of(node, inputs[1:], shape[0])
        name = f"after finding {len(self.context.findings)}"
        self.context.builder.shapes[name], self.context.builder.datatypes[name] = positions(shape), quantizer.datatype
        return quantized(Stream(name, shape, "INT8", *nothing(shape[0])), quantizer, name)

    def _declared_shape(self, tensor: str) -> tuple[int, ...] | None:
        for value in self.graph.value_info:
            if value.name == tensor:
                shape = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
                return shape[1:] if len(shape) in (2, 4) and all(shape) else None
        return None

    # ---- ends ----

    def _read_input(self, node: onnx.NodeProto, inputs: list[Value]) -> Value:
        assert self.input is not None
        shape = tuple(size.dim_value for size in self.input.type.tensor_type.shape.dim)
        if not all(shape) or shape[0] != 1 or len(shape) not in (2, 4):
            remedy = "export with example inputs of shape (1, C, H, W), (1, C, L), (1, C)"
            remedy = "FINN has layers over one and two dimensions" if len(shape) > 4 else remedy
            raise Broken(rules.SHAPES, f"input shape {shape}", remedy)
        if node.op_type not in QUANTIZERS or not all(isinstance(value, np.ndarray) for value in inputs[1:]):
            remedy = (
                "start the network with a QuantIdentity (fxfactor.transform does), or with pixel input for uint8 images"
            )
            raise Broken(rules.INPUT, f"{node.op_type} on the network's input", remedy)
        quantizer = quantizer_of(node, inputs[1:], shape[1])
        if len(quantizer.scale) != 1:
            raise Broken(rules.INPUT, f"{len(quantizer.scale)} scales", "use one scale for the whole input")
        if "global_in" in self.context.builder.shapes:
            raise Broken(rules.INPUT, "two quantizers on the input", "quantize the input once and use the result twice")
        tensor = self.context.builder.input(shape[1:], quantizer.datatype)
        self.notes["input"] = {
            "scale": float(quantizer.scale[0]),
            "lowest": quantizer.lowest,
            "highest": quantizer.highest,
            "rounding": quantizer.rounding,
            "datatype": quantizer.datatype,
            "shape": self._told(shape),
        }
        return quantized(Stream(tensor, shape[1:], quantizer.datatype, *nothing(shape[1])), quantizer, tensor)

    def _told(self, shape: tuple[int, ...]) -> list[int]:
        """A shape as the user's network has it."""
        return list(shape[:-1] if self.flat and len(shape) == 4 else shape)

    def _finish(self, outputs: list[Value]) -> onnx.ModelProto:
        finished = [self._finished(output) for output in outputs]
        names = [output.tensor for output in finished]
        read = {name for node in self.context.builder.nodes for name in node.input}
        if len(set(names)) < len(names) or read.intersection(names):
            found = "an output that is another one too, or that layers read"
            raise Broken(rules.ONE_INPUT, found, "give every output a layer of its own")
        self.notes["outputs"] = [
            {
                "scale": output.scale.tolist(),
                "offset": output.offset.tolist(),
                "shape": self._told((1, *output.shape)),
                "order": None if output.order is None else output.order.tolist(),
            }
            for output in finished
        ]
        self.notes["output"] = self.notes["outputs"][0]
        return self.context.builder.finish(names, self.notes)

    def _finished(self, output: Value) -> Stream:
        """The stream of an output, in hardware as far as it goes."""
        if not isinstance(output, Stream):
            raise Broken(rules.ONE_INPUT, "an output that does not depend on the input", "return the logits")
        require_quantized(output, "end in linear logits, or quantize the output")
        if output.tensor == "global_in":
            raise Broken(rules.OPERATION, "a network of quantizers only", "give a network with layers")
        builder = self.context.builder
        last = next(node for node in builder.nodes if output.tensor in node.output)
        if last.op_type == "Flatten" and builder.shapes[last.input[0]][1:3] == (1, 1):
            builder.nodes.remove(last)  # FINN would leave it in software; (1, 1, 1, C) holds the same
            del builder.shapes[output.tensor], builder.datatypes[output.tensor]
            output = replace(output, tensor=last.input[0])
        return output


def _unsupported(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    remedy = rules.REMEDIES.get(node.op_type, "replace it by convolutions, ReLU, pooling and additions")
    raise Broken(rules.OPERATION, node.op_type, remedy)
