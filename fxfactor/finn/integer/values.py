"""What happens to the numbers that a stream of integers stands for; no node is written here."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from fxfactor.finn import rules
from fxfactor.finn.integer.onnx_constants import Broken, Value, Weights
from fxfactor.finn.integer.streams import Integers, Quantizer, Reals, Stream


def operand(inputs: list[Value]) -> Stream:
    """The first input, where it is the only one that can be a stream."""
    x = inputs[0]
    assert isinstance(x, Stream)
    return x


def nothing(channels: int) -> tuple[Integers, Integers, Reals, Reals]:
    """Bounds, scale and offset of a stream that are still to be set."""
    zeros = np.zeros(channels, np.int64)
    return zeros, zeros, np.ones(channels), np.zeros(channels)


def quantized(x: Stream, quantizer: Quantizer, tensor: str) -> Stream:
    """What `quantizer` makes of `x`, kept in `tensor`: bounds and scale are the quantizer's."""
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


def per_channel(x: Stream, value: Value) -> Reals:
    """A constant operand as (1,) or (C,), in the order of the stream."""
    array = value.real if isinstance(value, Weights) else np.asarray(value, np.float64)
    if array.size == 1:
        return array.reshape(1)
    layouts = [(1, x.channels)] if len(x.shape) == 1 else [(x.channels, 1, 1), (1, x.channels, 1, 1)]
    if array.shape not in ((x.channels,), *layouts):
        found = f"a constant of shape {array.shape} on a tensor of shape {(1, *x.shape)}"
        raise Broken(rules.OPERATION, found, "use one constant, or one per channel")
    flat = array.ravel()
    return flat if x.order is None else flat[x.order]


def affine(x: Stream, factor: Reals, constant: Reals) -> Stream:
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


def biased(x: Stream, bias: Value) -> Stream:
    """x + bias, a constant."""
    return affine(x, np.ones(1), per_channel(x, bias))


def requantize_remedy(x: Stream) -> str:
    """What to do where a layer needs one scale for all channels of `x` and finds several."""
    if x.quantized:
        return "use one activation scale, or one shared quantizer for all branches of a concatenation"
    return "put a quantizer before this layer (a batch norm or per-channel weights give every channel its own scale)"


def require_quantized(x: Stream, remedy: str, padded: bool = False, functions: bool = True) -> None:
    """Nothing may be left for a quantizer to do: no function, no max pooling, and no padding unless it is taken up."""
    if functions and x.functions:
        raise Broken(rules.QUANTIZED, "an activation function without a quantizer after it", remedy)
    if x.pools:
        raise Broken(rules.POOLING, "max pooling of values that are not quantized, then or later", remedy)
    if any(x.pads) and not padded:
        raise Broken(rules.PADDING, f"padding {x.pads} that no convolution takes up", rules.REMEDIES["Pad"])
