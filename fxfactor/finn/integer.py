"""From a QONNX file to the network in integers: one walk in the order of execution, in place of FINN's streamlining.

FINN's own streamlining moves scales and biases through the graph by rewriting it, one node at a time, until nothing
changes; which rewrites in which order depends on the topology, and some corrupt the graph where it forks. Here every
tensor is interpreted instead (see `fxfactor.finn.streams`): a convolution multiplies scales, a batch norm is another
scale and offset, a quantizer is thresholds. The walk is linear in the size of the network, handles forks, joins, splits
and concatenations alike, and where a tensor cannot be interpreted it knows which rule is broken and where.

Beyond FINN's own flow this takes: any activation function that never falls before a quantizer (it is absorbed into the
thresholds), average pooling (a depthwise convolution of ones), concatenations of branches with scales of their own,
quantized biases, and rounding down or up.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx
from onnx import numpy_helper

from fxfactor.finn import rules
from fxfactor.finn.builder import HARDWARE, GraphBuilder, positions
from fxfactor.finn.constants import (
    Broken,
    Value,
    Weights,
    attributes_of,
    depthwise_matrix,
    fold,
    matrix_of,
    on_one_pixel,
    quantizer_of,
    reals,
    scale_per_output,
    window_of,
)
from fxfactor.finn.functions import FUNCTIONS
from fxfactor.finn.naming import site_of
from fxfactor.finn.rules import Finding
from fxfactor.finn.streams import (
    Columns,
    Integers,
    Quantizer,
    Reals,
    Stream,
    Window,
    integer_datatype,
    is_uniform,
    make_quantizer,
    thresholds,
)

QUANTIZERS = ("Quant", "IntQuant", "BipolarQuant")
SIGMOIDS = ("Sigmoid", "HardSigmoid")


@dataclass(frozen=True)
class Interpretation:
    """The network in integers, or why there is none: `model` is None where a finding blocks."""

    model: onnx.ModelProto | None
    findings: tuple[Finding, ...]


def interpret(model: onnx.ModelProto) -> Interpretation:
    """Turn a QONNX model into the network in integers, or say which rules it breaks (all of them, not only the first)."""
    return _Walk(model.graph).run()


class _Walk:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.graph = graph
        self.builder = GraphBuilder()
        self.findings: list[Finding] = []
        self.values: dict[str, Value] = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        self.constants = set(self.values)
        self.uses = Counter(name for node in graph.node for name in node.input if name)
        self.uses.update(output.name for output in graph.output)
        self.origin = {name: node for node in graph.node for name in node.output}
        self.notes: dict[str, Any] = {}
        inputs = [value for value in graph.input if value.name not in self.values]
        self.input = inputs[0] if inputs else None
        self.is_single = len(inputs) == 1 and len(graph.output) == 1

    # ---- the walk ----

    def run(self) -> Interpretation:
        if not self.is_single:
            found = f"{len(self.graph.input)} inputs, {len(self.graph.output)} outputs"
            self._report("network", Broken(rules.ONE_OUTPUT, found, "export a network with one input and one output"))
            return Interpretation(None, tuple(self.findings))
        for node in self.graph.node:
            self._visit(node)
        output = self.values.get(self.graph.output[0].name)
        if not any(finding.blocks for finding in self.findings):
            try:
                return Interpretation(self._finish(output), tuple(self.findings))
            except Broken as broken:
                self._report("output", broken)
        return Interpretation(None, tuple(self.findings))

    def _visit(self, node: onnx.NodeProto) -> None:
        inputs = [self.values.get(name) if name else None for name in node.input]
        known = all(value is not None or not name for value, name in zip(inputs, node.input, strict=True))
        try:
            if self.input is not None and self.input.name in node.input:
                outputs: Iterable[Value] = (self._read_input(node, inputs),)
            elif known and not any(isinstance(value, Stream) for value in inputs):
                outputs = fold(node, inputs)
            elif known:
                outputs = HANDLERS.get(node.op_type, _Walk._unsupported)(self, node, inputs)
            elif node.op_type in QUANTIZERS and not isinstance(inputs[0], Stream):
                outputs = (self._restart(node, inputs),)
            else:
                outputs = [None] * len(node.output)
        except Broken as broken:
            self._report(self._site(node), broken)
            outputs = [None] * len(node.output)
        self.values.update((name, self._shared(name, value)) for name, value in zip(node.output, outputs, strict=False))

    def _shared(self, name: str, value: Value) -> Value:
        """Where a tensor forks, the signs of the weights behind it are no longer one branch's to change."""
        if isinstance(value, Stream) and value.columns is not None and self.uses[name] > 1:
            return replace(value, columns=None)
        return value

    def _report(self, site: str, broken: Broken, blocks: bool = True) -> None:
        self.findings.append(Finding(broken.rule, site, broken.found, broken.remedy, blocks))

    def _unsupported(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        remedy = rules.REMEDIES.get(node.op_type, "replace it by convolutions, ReLU, pooling and additions")
        raise Broken(rules.OPERATION, node.op_type, remedy)

    def _restart(self, node: onnx.NodeProto, inputs: list[Value]) -> Value:
        """After a broken rule: a quantizer says again what its output is, so that later rules are looked at too."""
        shape = self._declared_shape(node.output[0])
        if shape is None or any(not isinstance(value, np.ndarray) for value in inputs[1:]):
            return None
        quantizer = quantizer_of(node, inputs[1:], shape[0])
        name = f"after finding {len(self.findings)}"
        self.builder.shapes[name], self.builder.datatypes[name] = positions(shape), quantizer.datatype
        return _quantized(Stream(name, shape, "INT8", *_nothing(shape[0])), quantizer, name)

    def _declared_shape(self, tensor: str) -> tuple[int, ...] | None:
        for value in self.graph.value_info:
            if value.name == tensor:
                shape = tuple(size.dim_value for size in value.type.tensor_type.shape.dim)
                return shape[1:] if len(shape) in (2, 4) and all(shape) else None
        return None

    # ---- names ----

    def _site(self, node: onnx.NodeProto) -> str:
        """Module path of `node`, or a name for it; a split or concatenation is named after the branches between the two."""
        site = site_of(node, self.origin, self.constants)
        if not site and node.op_type in ("Split", "Concat"):
            if node.op_type == "Concat":
                branch = self.origin.get(node.input[0])
            else:
                branch = next((reader for reader in self.graph.node if node.output[0] in reader.input), None)
            site = "" if branch is None else site_of(branch, self.origin, self.constants).rpartition(".")[0]
        return site or node.name or node.op_type

    # ---- ends ----

    def _read_input(self, node: onnx.NodeProto, inputs: list[Value]) -> Value:
        assert self.input is not None
        shape = tuple(size.dim_value for size in self.input.type.tensor_type.shape.dim)
        if not all(shape) or shape[0] != 1 or len(shape) not in (2, 4):
            raise Broken(rules.SHAPES, f"input shape {shape}", "export with example inputs of shape (1, C, H, W)")
        if node.op_type not in QUANTIZERS or not all(isinstance(value, np.ndarray) for value in inputs[1:]):
            remedy = (
                "start the network with a QuantIdentity (fxfactor.transform does), or with pixel input for uint8 images"
            )
            raise Broken(rules.INPUT, f"{node.op_type} on the network's input", remedy)
        quantizer = quantizer_of(node, inputs[1:], shape[1])
        if len(quantizer.scale) != 1:
            raise Broken(rules.INPUT, f"{len(quantizer.scale)} scales", "use one scale for the whole input")
        if "global_in" in self.builder.shapes:
            raise Broken(rules.INPUT, "two quantizers on the input", "quantize the input once and use the result twice")
        tensor = self.builder.input(shape[1:], quantizer.datatype)
        self.notes["input"] = {
            "scale": float(quantizer.scale[0]),
            "lowest": quantizer.lowest,
            "highest": quantizer.highest,
            "rounding": quantizer.rounding,
            "datatype": quantizer.datatype,
            "shape": list(shape),
        }
        return _quantized(Stream(tensor, shape[1:], quantizer.datatype, *_nothing(shape[1])), quantizer, tensor)

    def _finish(self, output: Value) -> onnx.ModelProto:
        if not isinstance(output, Stream):
            raise Broken(rules.ONE_OUTPUT, "an output that does not depend on the input", "return the logits")
        _require_quantized(output, "end in linear logits, or quantize the output")
        if output.tensor == "global_in":
            raise Broken(rules.OPERATION, "a network of quantizers only", "give a network with layers")
        last = self.builder.nodes[-1]
        if last.op_type == "Flatten" and last.output[0] == output.tensor and output.order is None:
            self.builder.nodes.pop()  # FINN would leave it in software; (1, 1, 1, C) holds the same
            del self.builder.shapes[output.tensor], self.builder.datatypes[output.tensor]
            output = replace(output, tensor=last.input[0])
        self.notes["output"] = {
            "scale": output.scale.tolist(),
            "offset": output.offset.tolist(),
            "shape": [1, *output.shape],
            "order": None if output.order is None else output.order.tolist(),
        }
        return self.builder.finish(output.tensor, self.notes)

    # ---- layers ----

    def _convolution(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x, weights = self._operands(inputs)
        attributes = attributes_of(node)
        site = self._site(node)
        if len(x.shape) != 3 or weights.integers.ndim != 4:
            raise Broken(rules.SHAPES, f"a convolution over {weights.integers.ndim - 2} dimensions", "use Conv2d")
        groups = attributes.get("group", 1)
        outputs, _, *kernel = weights.integers.shape
        depthwise = groups == x.channels == outputs and groups > 1
        if groups > 1 and not depthwise:
            found = f"groups={groups} with {x.channels} input and {outputs} output channels"
            remedy = "export with target='finn' (LegalizeForFinn splits it into branches), or factorize to depthwise"
            raise Broken(rules.GROUPS, found, remedy)
        scale = scale_per_output(weights)
        if not depthwise and not is_uniform(x.scale):
            raise Broken(rules.ONE_SCALE, f"{len(np.unique(x.scale))} scales", _requantize_remedy(x))
        if attributes.get("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
            raise Broken(rules.PADDING, f"auto_pad={attributes['auto_pad']}", "export with explicit padding")
        window = window_of(attributes, tuple(kernel))
        pads = tuple(own + before for own, before in zip(window.pads, x.pads, strict=True))
        window = replace(window, pads=cast("tuple[int, int, int, int]", pads))
        weights, window = on_one_pixel(weights, window, x.shape[1:])
        if any(window.pads) and x.offset.any():
            raise Broken(rules.PADDING, "padding of a tensor with a bias", "put a quantizer before the convolution")
        tensor = x.tensor
        if depthwise or window != Window((1, 1)):
            tensor = self.builder.windows(site, tensor, window, depthwise)
        matrix = depthwise_matrix(weights.integers) if depthwise else matrix_of(weights.integers)
        y = self._multiplied(site, x, tensor, matrix, weights.datatype, window.kernel if depthwise else None)
        if depthwise:
            real_offset = x.offset * weights.real.sum((1, 2, 3))
            y = replace(y, scale=x.scale * scale, offset=real_offset)
        else:
            real_offset = (weights.real.sum((2, 3)) * x.offset).sum(1)
            y = replace(y, scale=x.scale[0] * scale, offset=real_offset)
        y = replace(y, shape=(outputs, *window.positions(*x.shape[1:])))
        return (_biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)

    def _linear(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x, weights = self._operands(inputs)
        attributes = attributes_of(node)
        if len(x.shape) != 1 or weights.integers.ndim != 2:
            raise Broken(rules.LINEAR_INPUT, f"shape {(1, *x.shape)}", "flatten before the linear layer")
        if not is_uniform(x.scale):
            raise Broken(rules.ONE_SCALE, f"{len(np.unique(x.scale))} scales", _requantize_remedy(x))
        if attributes.get("alpha", 1.0) != 1.0 or attributes.get("beta", 1.0) != 1.0 or attributes.get("transA", 0):
            raise Broken(rules.OPERATION, "Gemm with factors", "use a plain linear layer")
        integers, scale = weights.integers, np.broadcast_to(weights.scale, weights.integers.shape)
        if attributes.get("transB", 0):
            integers, scale = integers.T, scale.T
        if (scale != scale[:1]).any():
            raise Broken(rules.WEIGHTS, "a weight scale per input feature", "use one weight scale per output channel")
        if x.order is not None:
            integers = integers[x.order]
        y = self._multiplied(self._site(node), x, x.tensor, integers.copy(), weights.datatype, None)
        offset = scale[0] * (integers * x.offset[:, None]).sum(0)
        y = replace(y, shape=(integers.shape[1],), scale=x.scale[0] * scale[0], offset=offset)
        return (_biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)

    def _operands(self, inputs: list[Value]) -> tuple[Stream, Weights]:
        x, weights = inputs[0], inputs[1]
        if not isinstance(x, Stream) or isinstance(weights, Stream):
            raise Broken(rules.OPERATION, "a product of two activations", rules.REMEDIES["Mul"])
        if not isinstance(weights, Weights):
            raise Broken(rules.WEIGHTS, "float weights", "use the Brevitas layer (fxfactor.transform does)")
        _require_quantized(x, "put a quantizer before this layer", padded=True)
        return x, weights

    def _multiplied(
        self, site: str, x: Stream, tensor: str, matrix: Integers, datatype: str, kernel: tuple[int, int] | None
    ) -> Stream:
        """MatMul of `tensor` (windows of x) with `matrix`: the stream of accumulators, its scale still to be set."""
        output = self.builder.multiply(site, tensor, matrix, datatype, kernel)
        columns = matrix.shape[1]
        if kernel is not None:  # every column of a depthwise matrix sees one channel only
            low, high = x.low, x.high
        else:
            low, high = np.full(columns, x.low.min()), np.full(columns, x.high.max())
        low, high = np.minimum(low, 0), np.maximum(high, 0)
        rising, falling = np.maximum(matrix, 0).sum(0), np.minimum(matrix, 0).sum(0)
        least, most = rising * low + falling * high, rising * high + falling * low
        bounds = integer_datatype(int(least.min()), int(most.max()))
        name = self.builder.nodes[-1].input[1]
        return Stream(
            output, (columns,), bounds, least, most, *_nothing(columns)[2:], columns=(Columns(name, 0, columns),)
        )

    # ---- affine functions, activation functions, quantizers ----

    def _batch_norm(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        gamma, beta, mean, variance = (_channels(x, value) for value in inputs[1:5])
        factor = gamma / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
        return (_affine(x, factor, beta - mean * factor),)

    def _multiply(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x, constant, reversed_ = self._constant_operand(node, inputs)
        if node.op_type == "Div":
            if reversed_:
                raise Broken(rules.MONOTONE, "a constant divided by an activation", "use another function")
            constant = 1 / constant
        return (_affine(x, constant, np.zeros(1)),)

    def _add(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        if all(isinstance(value, Stream) for value in inputs):
            return (self._join(node, inputs),)
        x, constant, reversed_ = self._constant_operand(node, inputs)
        if node.op_type == "Sub":
            return (_affine(x, -np.ones(1), constant) if reversed_ else _affine(x, np.ones(1), -constant),)
        return (_affine(x, np.ones(1), constant),)

    def _constant_operand(self, node: onnx.NodeProto, inputs: list[Value]) -> tuple[Stream, Reals, bool]:
        left, right = inputs
        if isinstance(left, Stream) and isinstance(right, Stream):
            gates = [self.origin.get(name) for name in node.input]
            if any(gate is not None and gate.op_type in SIGMOIDS and gate.input[0] in node.input for gate in gates):
                raise Broken(rules.OPERATION, "SiLU, x · sigmoid(x)", rules.REMEDIES["HardSwish"])
            raise Broken(rules.OPERATION, f"{node.op_type} of two activations", rules.REMEDIES["Mul"])
        if isinstance(left, Stream):
            return left, _channels(left, right), False
        assert isinstance(right, Stream)
        return right, _channels(right, left), True

    def _join(self, node: onnx.NodeProto, inputs: list[Value]) -> Stream:
        a, b = inputs
        assert isinstance(a, Stream)
        assert isinstance(b, Stream)
        for x in (a, b):
            _require_quantized(x, rules.REMEDIES["Add"])
        if node.op_type == "Sub":
            raise Broken(rules.OPERATION, "the difference of two activations", "use an addition")
        if a.shape != b.shape:
            raise Broken(rules.JOIN, f"shapes {a.shape} and {b.shape}", "add tensors of one shape")
        if (a.scale != b.scale).any() or (a.order is None) != (b.order is None):
            found = f"scales {a.scale.flat[0]:.6g} and {b.scale.flat[0]:.6g}"
            raise Broken(rules.JOIN, found, rules.REMEDIES["Add"])
        low, high = a.low + b.low, a.high + b.high
        shape = self.builder.shapes[a.tensor]
        tensor = self.builder.node("Add", (a.tensor, b.tensor), self._site(node), shape, "INT32")
        datatype = integer_datatype(int(low.min()), int(high.max()))
        offset = a.offset + b.offset
        return replace(
            a, tensor=tensor, low=low, high=high, datatype=datatype, offset=offset, columns=None, quantized=False
        )

    def _function(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        constants = [None if value is None else reals(value) for value in inputs[1:]]
        function = FUNCTIONS[node.op_type](attributes_of(node), constants)
        if function is None:
            remedy = "use a ReLU in its place"
            raise Broken(rules.MONOTONE, f"{node.op_type} with a negative slope", remedy)
        return (replace(x, functions=(*x.functions, function)),)

    def _quantize(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        quantizer = quantizer_of(node, inputs[1:], x.channels)
        return (self._staircase(self._site(node), x, quantizer, None),)

    def _truncate(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        """QONNX Trunc: the integers x / scale lose their lowest bits. Source: qonnx custom_op/general/trunc.py."""
        x, *constants = inputs
        assert isinstance(x, Stream)
        if len(constants) != 5:
            raise Broken(rules.OPERATION, "Trunc of QONNX version 1", rules.REMEDIES["Trunc"])
        scale, zero_point, _, output_scale, bits = map(reals, constants)
        if zero_point.any() or scale.size != 1 or output_scale.size != 1:
            raise Broken(rules.ZERO_POINT, "a zero point or several scales in Trunc", rules.REMEDIES["Trunc"])
        attributes = attributes_of(node)
        step = np.exp2(np.round(np.log2(output_scale / scale))).reshape(1)
        rounding = attributes.get("rounding_mode", "FLOOR").upper()
        signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
        quantizer = make_quantizer(step, int(bits), signed, narrow, rounding)
        if rounding not in ("ROUND", "FLOOR", "CEIL"):
            raise Broken(rules.ROUNDING, rounding, "use rounding mode FLOOR")
        integers = replace(x, functions=(*x.functions, lambda real: np.round(real / scale)))
        return (self._staircase(self._site(node), integers, quantizer, output_scale.reshape(1)),)

    def _staircase(self, site: str, x: Stream, quantizer: Quantizer, output_scale: Reals | None) -> Stream:
        if any(x.pads):
            raise Broken(rules.PADDING, "padding before a quantizer", "pad inside the convolution (padding=)")
        if x.order is not None and len(quantizer.scale) > 1:
            quantizer = replace(quantizer, scale=quantizer.scale[x.order])
        x = self._rising(site, x)
        low = quantizer.levels(x.evaluate(x.low[:, None]))[:, 0].astype(np.int64)
        high = quantizer.levels(x.evaluate(x.high[:, None]))[:, 0].astype(np.int64)
        if low.min() >= 0:
            quantizer = quantizer.unsigned()
        tensor = self.builder.quantize(site, x, quantizer, thresholds(x, quantizer))
        result = replace(_quantized(x, quantizer, tensor), low=low, high=high)
        for number, window in enumerate(x.pools):
            result = self._pooled(f"{site}.pool{number}", result, window)
        return result if output_scale is None else replace(result, scale=np.full(x.channels, output_scale[0]))

    def _rising(self, site: str, x: Stream) -> Stream:
        """The same real values with scales >= 0: the signs go into the weights, or into a product with +-1."""
        negative = x.scale < 0
        if not negative.any():
            return x
        low, high = np.where(negative, -x.high, x.low), np.where(negative, -x.low, x.high)
        datatype = integer_datatype(int(low.min()), int(high.max()))
        if x.columns is not None:
            self.builder.negate(x.columns, negative)
            tensor = x.tensor
        else:
            signs = self.builder.constant(f"{site}.signs", np.where(negative, -1, 1), "INT2")
            tensor = self.builder.node("Mul", (x.tensor, signs), f"{site}.sign", self.builder.shapes[x.tensor], "INT32")
        return replace(x, tensor=tensor, scale=np.abs(x.scale), low=low, high=high, datatype=datatype)

    # ---- pooling, shapes, channels ----

    def _max_pool(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
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
        return (replace(self._pooled(self._site(node), x, window), shape=shape),)

    def _pooled(self, site: str, x: Stream, window: Window) -> Stream:
        if any(window.pads) and not self.builder.datatypes[x.tensor].startswith("UINT"):
            raise Broken(rules.SIGNED_PADDING, f"values down to {x.low.min()}", "pool after a ReLU with a QuantReLU")
        return replace(x, tensor=self.builder.max_pool(site, x.tensor, window), columns=None)

    def _average_pool(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        """A depthwise convolution with ones; the division by the window's size goes into the scale."""
        x = inputs[0]
        assert isinstance(x, Stream)
        attributes = attributes_of(node)
        window = window_of(attributes, tuple(attributes["kernel_shape"]))
        _require_quantized(x, "put a quantizer before the pooling")
        if window == Window(x.shape[1:]):  # type: ignore[arg-type]
            return self._global_average(node, inputs)
        if attributes.get("ceil_mode", 0) and window.rounding_up(*x.shape[1:]) != window:
            raise Broken(rules.AVERAGE, f"ceil_mode on {x.shape[1:]}", "use ceil_mode=False")
        if any(window.pads) and not attributes.get("count_include_pad", 0):
            found = f"padding {window.pads} that is not counted"
            raise Broken(rules.AVERAGE, found, "use count_include_pad=True, or no padding")
        if any(window.pads) and x.offset.any():
            raise Broken(rules.PADDING, "padding of a tensor with a bias", "put a quantizer before the pooling")
        site = self._site(node)
        tensor = self.builder.windows(site, x.tensor, window, depthwise=True)
        matrix = depthwise_matrix(np.ones((x.channels, 1, *window.kernel), np.int64))
        y = self._multiplied(site, x, tensor, matrix, "INT2", window.kernel)
        shape = (x.channels, *window.positions(*x.shape[1:]))
        return (replace(y, shape=shape, scale=x.scale / np.prod(window.kernel), offset=x.offset, columns=None),)

    def _global_average(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        attributes = attributes_of(node)
        if node.op_type == "ReduceMean":
            axes = inputs[1] if len(inputs) > 1 else attributes.get("axes", ())
            if sorted(int(axis) % 4 for axis in np.ravel(axes)) != [2, 3] or len(x.shape) != 3:  # type: ignore[arg-type]
                raise Broken(rules.OPERATION, f"a mean over axes {axes}", "take means over height and width only")
        _require_quantized(x, "put a quantizer before the pooling")
        flat = node.op_type == "ReduceMean" and not attributes.get("keepdims", 1)
        count = x.shape[1] * x.shape[2]
        low, high = x.low * count, x.high * count
        datatype = integer_datatype(int(low.min()), int(high.max()))
        tensor = self.builder.node(
            "GlobalAccPool",
            (x.tensor,),
            self._site(node),
            (1, 1, 1, x.channels),
            datatype,
            HARDWARE,
            backend="fpgadataflow",
            NumChannels=x.channels,
            PE=1,
            inputDataType=self.builder.datatypes[x.tensor],
            numInputVectors=list(self.builder.shapes[x.tensor][:-1]),
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
        return (self._flattened(node, pooled) if flat else pooled,)

    def _flatten(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        features = int(np.prod(x.shape))
        if node.op_type == "Flatten":
            target: tuple[int, ...] = (1, -1) if attributes_of(node).get("axis", 1) == 1 else ()
        elif node.op_type == "Reshape":
            target = tuple(int(size) for size in np.ravel(inputs[1]))  # type: ignore[arg-type]
        else:  # Squeeze of a pooled tensor
            target = (1, features) if len(x.shape) == 3 and x.shape[1:] == (1, 1) else ()
        if target in ((1, *x.shape), (0, *x.shape)):
            return (x,)
        if target not in ((1, -1), (1, features), (-1, features), (0, -1), (0, features)):
            raise Broken(
                rules.LINEAR_INPUT, f"{node.op_type} from {(1, *x.shape)} to {target}", "use torch.flatten(x, 1)"
            )
        return (x if len(x.shape) == 1 else self._flattened(node, x),)

    def _flattened(self, node: onnx.NodeProto, x: Stream) -> Stream:
        _require_quantized(x, "quantize before flattening", functions=x.shape[1:] != (1, 1))
        channels, height, width = x.shape
        area, features = height * width, channels * height * width
        site = f"{self._site(node)}.flat"
        tensor = self.builder.node(
            "Flatten", (x.tensor,), site, (1, features), self.builder.datatypes[x.tensor], axis=1
        )
        order = np.arange(features).reshape(channels, area).T.ravel()
        spread: dict[str, Any] = {name: np.tile(getattr(x, name), area) for name in ("low", "high", "scale", "offset")}
        columns = x.columns if area == 1 else None
        return replace(
            x, tensor=tensor, shape=(features,), columns=columns, order=order if area > 1 else None, **spread
        )

    def _pad(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        attributes = attributes_of(node)
        pads = [int(pad) for pad in np.ravel(inputs[1])] if len(inputs) > 1 else attributes.get("pads", [])  # type: ignore[arg-type]
        value = inputs[2] if len(inputs) > 2 else attributes.get("value")
        if attributes.get("mode", "constant") != "constant" or (value is not None and np.any(value)):  # type: ignore[arg-type]
            raise Broken(rules.PADDING, f"padding mode {attributes.get('mode')}", rules.REMEDIES["Pad"])
        if (
            len(pads) != 8
            or any(pads[0:2])
            or any(pads[4:6])
            or min(pads) < 0
            or x.functions
            or x.pools
            or x.offset.any()
        ):
            raise Broken(rules.PADDING, f"padding {pads} as an operation of its own", rules.REMEDIES["Pad"])
        new = tuple(a + b for a, b in zip((pads[2], pads[3], pads[6], pads[7]), x.pads, strict=True))
        return (replace(x, pads=cast("tuple[int, int, int, int]", new)),)

    def _concatenate(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        streams = [value for value in inputs if isinstance(value, Stream)]
        if len(streams) != len(inputs):
            raise Broken(rules.OPERATION, "a concatenation with a constant", rules.REMEDIES["Pad"])
        axis, rank = attributes_of(node)["axis"], len(streams[0].shape) + 1
        for x in streams:
            _require_quantized(x, "put a quantizer before the concatenation")
        if axis % rank != 1 or any(x.order is not None for x in streams):
            raise Broken(rules.OPERATION, f"a concatenation along axis {axis}", "concatenate along the channels")
        if len({x.tensor for x in streams}) < len(streams):
            raise Broken(
                rules.OPERATION, "a concatenation of a tensor with itself", "use a convolution with wider output"
            )
        parts: dict[str, Any] = {
            name: np.concatenate([getattr(x, name) for x in streams]) for name in ("low", "high", "scale", "offset")
        }
        channels = sum(x.channels for x in streams)
        datatype = integer_datatype(int(parts["low"].min()), int(parts["high"].max()))
        annotated = {self.builder.datatypes[x.tensor] for x in streams}
        tensor = self.builder.node(
            "Concat",
            [x.tensor for x in streams],
            self._site(node),
            (*self.builder.shapes[streams[0].tensor][:-1], channels),
            annotated.pop() if len(annotated) == 1 else datatype,
            axis=rank - 1,
        )
        columns: tuple[Columns, ...] | None = ()
        for x in streams:
            columns = None if columns is None or x.columns is None else (*columns, *x.columns)
        quantized = all(x.quantized for x in streams)
        shape = (channels, *streams[0].shape[1:])
        return (Stream(tensor, shape, datatype, **parts, quantized=quantized, columns=columns),)

    def _split(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        attributes = attributes_of(node)
        axis, rank = attributes.get("axis", 0), len(x.shape) + 1
        sizes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
        if sizes is None:
            sizes = [x.channels // len(node.output)] * len(node.output)
        sizes = [int(size) for size in np.ravel(sizes)]  # type: ignore[arg-type]
        _require_quantized(x, "split after a quantizer")
        if axis % rank != 1 or sum(sizes) != x.channels or x.order is not None:
            raise Broken(rules.SPLIT, f"sizes {sizes} along axis {axis}", "use torch.split(x, [n, ...], 1)")
        if len(sizes) > rules.MOST_BRANCHES:
            broken = Broken(
                rules.BRANCHES,
                f"{len(sizes)} branches",
                f"choose a level of at most {rules.MOST_BRANCHES.bit_length() - 1}, or depthwise, for the layer after it",
            )
            self._report(self._site(node), broken, blocks=False)
        return self._parts(self._site(node), x, sizes)

    def _parts(self, site: str, x: Stream, sizes: list[int]) -> Iterable[Value]:
        shape = self.builder.shapes[x.tensor][:-1]
        datatype = self.builder.datatypes[x.tensor]
        sizes_name = self.builder.constant(f"{site}.sizes", np.asarray(sizes, np.int64), "INT64")
        first = self.builder.node(
            "Split", (x.tensor, sizes_name), f"{site}.0", (*shape, sizes[0]), datatype, axis=len(shape)
        )
        names, split = [first], self.builder.nodes[-1]
        for index, size in enumerate(sizes[1:], 1):
            name = f"{first}.{index}"
            self.builder.shapes[name], self.builder.datatypes[name] = (*shape, size), datatype
            split.output.append(name)
            names.append(name)
        start, parts = 0, []
        for name, size in zip(names, sizes, strict=True):
            chosen = slice(start, start + size)
            arrays = {key: getattr(x, key)[chosen] for key in ("low", "high", "scale", "offset")}
            parts.append(replace(x, tensor=name, shape=(size, *x.shape[1:]), columns=None, **arrays))
            start += size
        return parts

    def _identity(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        return (inputs[0],)

    def _shape(self, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
        x = inputs[0]
        assert isinstance(x, Stream)
        return (np.array([1, *x.shape], np.int64),)


# ---- on values ----


def _nothing(channels: int) -> tuple[Integers, Integers, Reals, Reals]:
    """Bounds, scale and offset of a stream that are still to be set."""
    zeros = np.zeros(channels, np.int64)
    return zeros, zeros, np.ones(channels), np.zeros(channels)


def _quantized(x: Stream, quantizer: Quantizer, tensor: str) -> Stream:
    channels = x.channels
    return Stream(
        tensor,
        x.shape,
        quantizer.datatype,
        np.full(channels, quantizer.lowest),
        np.full(channels, quantizer.highest),
        np.broadcast_to(quantizer.scale, (channels,)).astype(np.float64),
        np.zeros(channels),
        quantized=True,
        order=x.order,
    )


def _channels(x: Stream, value: Value) -> Reals:
    """A constant operand as (1,) or (C,), in the order of the stream."""
    array = value.real if isinstance(value, Weights) else np.asarray(value, np.float64)
    if array.size == 1:
        return array.reshape(1)
    per_channel = array.size == x.channels and (
        array.ndim == 1 if len(x.shape) == 1 else array.ndim == 1 or array.shape[-3:] == (x.channels, 1, 1)
    )
    per_channel = per_channel or (len(x.shape) == 1 and array.shape == (1, x.channels))
    if not per_channel:
        found = f"a constant of shape {array.shape} on a tensor of shape {(1, *x.shape)}"
        raise Broken(rules.OPERATION, found, "use one constant, or one per channel")
    flat = array.ravel()
    return flat if x.order is None else flat[x.order]


def _affine(x: Stream, factor: Reals, constant: Reals) -> Stream:
    """x * factor + constant, both (1,) or (C,)."""
    if (x.functions or x.pools) and (factor < 0).any():
        found = "a negative factor after an activation function or max pooling"
        raise Broken(rules.MONOTONE, found, "put a quantizer between them")
    if x.functions:
        slope, shift = factor[:, None], constant[:, None]
        return replace(x, functions=(*x.functions, lambda real: real * slope + shift))
    scale, offset = x.scale * factor, x.offset * factor + constant
    unchanged = bool((factor == 1).all() and not constant.any())
    return replace(x, scale=scale, offset=offset, quantized=x.quantized and unchanged)


def _biased(x: Stream, bias: Value) -> Stream:
    return _affine(x, np.ones(1), _channels(x, bias))


def _requantize_remedy(x: Stream) -> str:
    if x.quantized:
        return "use one activation scale, or one shared quantizer for all branches of a concatenation"
    return "put a quantizer before this layer (a batch norm or per-channel weights give every channel its own scale)"


def _require_quantized(x: Stream, remedy: str, padded: bool = False, functions: bool = True) -> None:
    """Nothing may be left for a quantizer to do: no function, no max pooling, and no padding unless it is taken up."""
    if functions and x.functions:
        raise Broken(rules.QUANTIZED, "an activation function without a quantizer after it", remedy)
    if x.pools:
        raise Broken(rules.POOLING, "max pooling of values that are not quantized, then or later", remedy)
    if any(x.pads) and not padded:
        raise Broken(rules.PADDING, f"padding {x.pads} that no convolution takes up", rules.REMEDIES["Pad"])


Handler = Callable[[_Walk, onnx.NodeProto, list[Value]], Iterable[Value]]

HANDLERS: dict[str, Handler] = {
    "Add": _Walk._add,
    "AveragePool": _Walk._average_pool,
    "BatchNormalization": _Walk._batch_norm,
    "Concat": _Walk._concatenate,
    "Conv": _Walk._convolution,
    "Div": _Walk._multiply,
    "Dropout": _Walk._identity,
    "Flatten": _Walk._flatten,
    "Gemm": _Walk._linear,
    "GlobalAveragePool": _Walk._global_average,
    "Identity": _Walk._identity,
    "IntQuant": _Walk._quantize,
    "BipolarQuant": _Walk._quantize,
    "MatMul": _Walk._linear,
    "MaxPool": _Walk._max_pool,
    "Mul": _Walk._multiply,
    "Pad": _Walk._pad,
    "Quant": _Walk._quantize,
    "ReduceMean": _Walk._global_average,
    "Reshape": _Walk._flatten,
    "Shape": _Walk._shape,
    "Split": _Walk._split,
    "Squeeze": _Walk._flatten,
    "Sub": _Walk._add,
    "Trunc": _Walk._truncate,
    **dict.fromkeys(FUNCTIONS, _Walk._function),
}
"""ONNX operation -> how the walk interprets it."""
