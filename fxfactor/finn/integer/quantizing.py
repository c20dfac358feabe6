"""Activation functions, which wait for a quantizer, and quantizers, which are thresholds on the integers or a product."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.emitting import max_pooled
from fxfactor.finn.integer.forms import Staircase
from fxfactor.finn.integer.functions import FUNCTIONS
from fxfactor.finn.integer.onnx_constants import Broken, Value, attributes_of, quantizer_of, reals
from fxfactor.finn.integer.requantizing import requantization
from fxfactor.finn.integer.streams import Quantizer, Reals, Stream, integer_datatype, make_quantizer, thresholds
from fxfactor.finn.integer.values import operand, quantized


def _function(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    constants = [None if value is None else reals(value) for value in inputs[1:]]
    if x.order is not None:  # a slope for each channel
        constants = [
            each.ravel()[x.order] if each is not None and each.size == x.channels else each for each in constants
        ]
    function = FUNCTIONS[node.op_type](attributes_of(node), constants)
    if function is None:
        remedy = "use a ReLU in its place"
        raise Broken(rules.MONOTONE, f"{node.op_type} with a negative slope", remedy)
    return (replace(x, functions=(*x.functions, function)),)


def _quantize(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    quantizer = quantizer_of(node, inputs[1:], x.channels)
    return (_staircase(context, node, x, quantizer, None),)


def _truncate(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
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
    return (_staircase(context, node, integers, quantizer, output_scale.reshape(1)),)


def _staircase(
    context: Context, node: onnx.NodeProto, x: Stream, quantizer: Quantizer, output_scale: Reals | None
) -> Stream:
    site, output = context.site(node), node.output[0]
    if any(x.pads):
        raise Broken(rules.PADDING, "padding before a quantizer", "pad inside the convolution (padding=)")
    if x.order is not None and len(quantizer.scale) > 1:
        quantizer = replace(quantizer, scale=quantizer.scale[x.order])
    x = _rising(context, site, x)
    low = quantizer.levels(x.evaluate(x.low[:, None]))[:, 0].astype(np.int64)
    high = quantizer.levels(x.evaluate(x.high[:, None]))[:, 0].astype(np.int64)
    if low.min() >= 0:
        quantizer = quantizer.unsigned()
    tensor = _written(context, site, x, quantizer, output)
    result = replace(quantized(x, quantizer, tensor), low=low, high=high)
    for number, window in enumerate(x.pools):
        result = max_pooled(context, f"{site}.pool{number}", result, window)
    return result if output_scale is None else replace(result, scale=np.full(x.channels, output_scale[0]))


def _written(context: Context, site: str, x: Stream, quantizer: Quantizer, output: str) -> str:
    """The tensor of levels: thresholds, or the multiplication that gives the same where that is chosen."""
    steps, choices = thresholds(x, quantizer), context.choices
    chosen = output in choices.multiplied
    line = requantization(x, quantizer, steps) if chosen or choices.look else None
    if line is not None:
        context.staircases.append(
            Staircase(
                site,
                output,
                x.channels,
                context.builder.shapes[x.tensor][1:-1],
                integer_datatype(int(x.low.min()), int(x.high.max())),
                quantizer.datatype,
                line.scale_bits,
                line.bias_bits,
                line.shift,
            )
        )
        if chosen:
            return context.builder.requantize(site, x, quantizer, line)
    return context.builder.quantize(site, x, quantizer, steps)


def _rising(context: Context, site: str, x: Stream) -> Stream:
    """The same real values with scales >= 0: the signs go into the weights, or into a product with +-1."""
    negative = x.scale < 0
    if not negative.any():
        return x
    low, high = np.where(negative, -x.high, x.low), np.where(negative, -x.low, x.high)
    datatype = integer_datatype(int(low.min()), int(high.max()))
    if x.columns is not None:
        context.builder.negate(x.columns, negative)
        tensor = x.tensor
    else:
        signs = context.builder.constant(f"{site}.signs", np.where(negative, -1, 1), "INT2")
        tensor = context.builder.node(
            "Mul", (x.tensor, signs), f"{site}.sign", context.builder.shapes[x.tensor], "INT32"
        )
    return replace(x, tensor=tensor, scale=np.abs(x.scale), low=low, high=high, datatype=datatype)


HANDLERS: dict[str, Handler] = {
    "BipolarQuant": _quantize,
    "IntQuant": _quantize,
    "Quant": _quantize,
    "Trunc": _truncate,
    **dict.fromkeys(FUNCTIONS, _function),
}
