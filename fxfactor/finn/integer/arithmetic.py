"""Batch norms, constants and additions: other scales and offsets, and sums of integers of one scale."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.onnx_constants import Broken, Value, attributes_of
from fxfactor.finn.integer.streams import Reals, Stream, integer_datatype
from fxfactor.finn.integer.values import affine, operand, per_channel, require_quantized

SIGMOIDS = ("Sigmoid", "HardSigmoid")


def _batch_norm(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    gamma, beta, mean, variance = (per_channel(x, value) for value in inputs[1:5])
    factor = gamma / np.sqrt(variance + attributes_of(node).get("epsilon", 1e-5))
    return (affine(x, factor, beta - mean * factor),)


def _multiply(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x, constant, reversed_ = _constant_operand(context, node, inputs)
    if node.op_type == "Div":
        if reversed_:
            raise Broken(rules.MONOTONE, "a constant divided by an activation", "use another function")
        constant = 1 / constant
    return (affine(x, constant, np.zeros(1)),)


def _add(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    if all(isinstance(value, Stream) for value in inputs):
        return (_join(context, node, inputs),)
    x, constant, reversed_ = _constant_operand(context, node, inputs)
    if node.op_type == "Sub":
        return (affine(x, -np.ones(1), constant) if reversed_ else affine(x, np.ones(1), -constant),)
    return (affine(x, np.ones(1), constant),)


def _constant_operand(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> tuple[Stream, Reals, bool]:
    left, right = inputs
    if isinstance(left, Stream) and isinstance(right, Stream):
        gates = [context.origin.get(name) for name in node.input]
        if any(gate is not None and gate.op_type in SIGMOIDS and gate.input[0] in node.input for gate in gates):
            raise Broken(rules.OPERATION, "SiLU, x · sigmoid(x)", rules.REMEDIES["HardSwish"])
        if any(gate is not None and _is_mish(context, gate, node) for gate in gates):
            raise Broken(rules.OPERATION, "Mish, x · tanh(softplus(x))", rules.REMEDIES["HardSwish"])
        raise Broken(rules.OPERATION, f"{node.op_type} of two activations", rules.REMEDIES["Mul"])
    if isinstance(left, Stream):
        return left, per_channel(left, right), False
    assert isinstance(right, Stream)
    return right, per_channel(right, left), True


def _is_mish(context: Context, gate: onnx.NodeProto, node: onnx.NodeProto) -> bool:
    inner = context.origin.get(gate.input[0]) if gate.op_type == "Tanh" else None
    return inner is not None and inner.op_type == "Softplus" and inner.input[0] in node.input


def _join(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Stream:
    a, b = inputs
    assert isinstance(a, Stream)
    assert isinstance(b, Stream)
    for x in (a, b):
        require_quantized(x, rules.REMEDIES["Add"])
    if node.op_type == "Sub":
        raise Broken(rules.OPERATION, "the difference of two activations", "use an addition")
    if a.shape != b.shape:
        raise Broken(rules.JOIN, f"shapes {a.shape} and {b.shape}", "add tensors of one shape")
    left, right = (np.arange(x.channels) if x.order is None else x.order for x in (a, b))
    if not np.array_equal(left, right):
        raise Broken(rules.GROUPED_ORDER, "an addition of channels in different orders", 'give grouped="block"')
    if (a.scale != b.scale).any():
        found = f"scales {a.scale.flat[0]:.6g} and {b.scale.flat[0]:.6g}"
        raise Broken(rules.JOIN, found, rules.REMEDIES["Add"])
    low, high = a.low + b.low, a.high + b.high
    shape = context.builder.shapes[a.tensor]
    tensor = context.builder.node("Add", (a.tensor, b.tensor), context.site(node), shape, "INT32")
    datatype = integer_datatype(int(low.min()), int(high.max()))
    offset = a.offset + b.offset
    return replace(
        a, tensor=tensor, low=low, high=high, datatype=datatype, offset=offset, columns=None, quantized=False
    )


HANDLERS: dict[str, Handler] = {
    "Add": _add,
    "BatchNormalization": _batch_norm,
    "Div": _multiply,
    "Mul": _multiply,
    "Sub": _add,
}
