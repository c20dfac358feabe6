"""Larger maps: nearest-neighbour upsampling, and transposed convolutions as convolutions over pixels spread with zeros."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import cast

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.layers import dense_convolution, operands
from fxfactor.finn.integer.onnx_constants import Broken, Value, Weights, attributes_of, window_of
from fxfactor.finn.integer.streams import Integers, Stream, Window, is_uniform
from fxfactor.finn.integer.values import biased, operand, requantize_remedy, require_quantized

_NEAREST = "use nn.Upsample(scale_factor=2, mode='nearest')"


def _upsample(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    """Every pixel `down` × `across` times: Resize or Upsample, where it is that."""
    x = operand(inputs)
    require_quantized(x, "put a quantizer before the upsampling", functions=False)
    down, across = _factors(node, inputs[1:], x)
    channels, height, width = x.shape
    shape = (channels, height * down, width * across)
    tensor = context.builder.upsample(context.site(node), x.tensor, shape[1:])
    return (replace(x, tensor=tensor, shape=shape),)


def _factors(node: onnx.NodeProto, constants: list[Value], x: Stream) -> tuple[int, int]:
    attributes = attributes_of(node)
    mode, rounding = attributes.get("mode", "nearest"), attributes.get("nearest_mode", "round_prefer_floor")
    place = attributes.get("coordinate_transformation_mode", "half_pixel")
    if len(x.shape) != 3 or mode != "nearest":
        raise Broken(rules.UPSAMPLING, f"mode {mode} of {(1, *x.shape)}", _NEAREST)
    # of these every input pixel fills a rectangle of whole pixels, where the factors are whole
    if (place, rounding) not in (("asymmetric", "floor"), ("half_pixel", "round_prefer_floor"),
                                 ("half_pixel", "round_prefer_ceil")):  # fmt: skip
        raise Broken(rules.UPSAMPLING, f"coordinates {place}, {rounding}", _NEAREST)
    given = [np.asarray(value).ravel() for value in constants if isinstance(value, np.ndarray) and np.size(value) == 4]
    if len(given) != 1:
        raise Broken(rules.UPSAMPLING, "a size that depends on the input", _NEAREST)
    is_size = given[0].dtype.kind in "iu"
    factors = given[0] / np.array([1, *x.shape]) if is_size else given[0]
    if (factors != np.round(factors)).any() or (factors < 1).any() or (factors[:2] != 1).any():
        raise Broken(rules.UPSAMPLING, f"factors {factors.tolist()}", _NEAREST)
    return int(factors[2]), int(factors[3])


def _transposed(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    """A convolution of stride 1 with the kernel turned round, over pixels with stride − 1 zeros between them."""
    x, weights = operands(inputs)
    attributes = attributes_of(node)
    if len(x.shape) != 3 or weights.integers.ndim != 4 or attributes.get("group", 1) != 1:
        raise Broken(rules.TRANSPOSED, f"groups={attributes.get('group', 1)}", rules.REMEDIES["ConvTranspose"])
    if attributes.get("auto_pad", "NOTSET") != "NOTSET" or "output_shape" in attributes:
        raise Broken(rules.PADDING, "padding that is not explicit", "export with explicit padding")
    window = window_of(attributes, tuple(weights.integers.shape[2:]))
    more = attributes.get("output_padding", [0, 0])
    reach = [d * (k - 1) for d, k in zip(window.dilations, window.kernel, strict=True)] * 2
    pads = [
        far - pad + (more[index - 2] if index > 1 else 0)
        for index, (far, pad) in enumerate(zip(reach, window.pads, strict=True))
    ]
    if min(pads) < 0:
        raise Broken(rules.TRANSPOSED, f"padding {window.pads} beyond the kernel", rules.REMEDIES["ConvTranspose"])
    if not is_uniform(x.scale):
        raise Broken(rules.ONE_SCALE, f"{len(np.unique(x.scale))} scales", requantize_remedy(x))
    if x.offset.any():
        raise Broken(
            rules.PADDING, "zeros in a tensor with a bias", "put a quantizer before the transposed convolution"
        )
    if any(x.pads):
        raise Broken(rules.PADDING, f"padding {x.pads} before a transposed convolution", rules.REMEDIES["Pad"])
    site = context.site(node)
    y = dense_convolution(
        context,
        site,
        _spread(context, site, x, window.strides),
        _turned(weights),
        Window(window.kernel, pads=cast("tuple[int, int, int, int]", tuple(pads)), dilations=window.dilations),
    )
    return (biased(y, inputs[2]) if len(inputs) > 2 and inputs[2] is not None else y,)


def _spread(context: Context, site: str, x: Stream, strides: tuple[int, int]) -> Stream:
    if strides == (1, 1):
        return x
    size = tuple(n + (n - 1) * (stride - 1) for n, stride in zip(x.shape[1:], strides, strict=True))
    tensor = context.builder.spread_pixels(f"{site}.spread", x.tensor, strides, size)
    low, high = np.minimum(x.low, 0), np.maximum(x.high, 0)
    return replace(x, tensor=tensor, shape=(x.channels, *size), low=low, high=high, columns=None)


def _turned(weights: Weights) -> Weights:
    """(I, O, kh, kw) → (O, I, kh, kw), both axes of the kernel reversed."""

    def turned(array: Integers) -> Integers:
        return array.swapaxes(0, 1)[:, :, ::-1, ::-1]

    scale = np.broadcast_to(weights.scale, weights.integers.shape)
    return replace(weights, integers=turned(weights.integers), scale=turned(scale))  # type: ignore[arg-type]


HANDLERS: dict[str, Handler] = {
    "ConvTranspose": _transposed,
    "Resize": _upsample,
    "Upsample": _upsample,
}
