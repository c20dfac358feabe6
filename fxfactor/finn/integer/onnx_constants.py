"""What the nodes of a QONNX file say besides their activations: attributes, windows, quantizers, constants and weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, cast

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from fxfactor.finn import rules
from fxfactor.finn.integer.streams import Integers, Quantizer, Reals, Stream, Window, make_quantizer

WINDOW_SIZES = ("kernel", "strides", "dilations")


@dataclass(frozen=True)
class Weights:
    """Quantized constants: `integers * scale`, both in the layout of the ONNX tensor."""

    integers: Integers
    scale: Reals
    datatype: str

    @property
    def real(self) -> Reals:
        """The values."""
        return self.integers * self.scale


Value = Stream | Weights | NDArray[Any] | None
"""What is known of a tensor; None where a finding was already given for it."""


class Broken(Exception):
    """A rule is broken at the node at hand; carries what the finding needs."""

    def __init__(self, rule: str, found: str, remedy: str) -> None:
        super().__init__(rule)
        self.rule, self.found, self.remedy = rule, found, remedy


def attributes_of(node: onnx.NodeProto) -> dict[str, Any]:
    """Name -> value, text as str."""
    values = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return {name: value.decode() if isinstance(value, bytes) else value for name, value in values.items()}


def reals(value: Any) -> NDArray[np.float64]:
    """A constant of the file as numbers."""
    return np.asarray(value, np.float64)


def window_of(attributes: dict[str, Any], kernel: tuple[int, ...]) -> Window:
    """How a Conv or pooling node of this kernel goes over its input."""
    names = {"strides": (1, 1), "pads": (0, 0, 0, 0), "dilations": (1, 1)}
    return Window(kernel, **{name: tuple(attributes.get(name, value)) for name, value in names.items()})  # type: ignore[arg-type]


def on_one_pixel(weights: Weights, window: Window, size: tuple[int, ...]) -> tuple[Weights, Window]:
    """Along an axis of one pixel only one tap of a padded kernel meets it: the others go. FINN has no padding there."""
    scale = np.broadcast_to(weights.scale, weights.integers.shape)
    for axis in (0, 1):
        tap, off = divmod(window.pads[axis], window.dilations[axis])
        if size[axis] > 1 or window.kernel[axis] == 1 or off or window.positions(*size[:2])[axis] != 1:
            continue
        scale = scale.take([tap], axis + 2)
        weights = replace(weights, integers=weights.integers.take([tap], axis + 2), scale=scale)
        one = {name: (*getattr(window, name)[:axis], 1, *getattr(window, name)[axis + 1 :]) for name in WINDOW_SIZES}
        pads = [0 if index % 2 == axis else pad for index, pad in enumerate(window.pads)]
        window = replace(window, pads=cast("tuple[int, int, int, int]", tuple(pads)), **one)
    return weights, window


def scale_per_output(weights: Weights) -> Reals:
    """Weight scale per output channel, shape (O,)."""
    scale = np.broadcast_to(weights.scale, weights.integers.shape).reshape(weights.integers.shape[0], -1)
    if (scale != scale[:, :1]).any():
        raise Broken(rules.WEIGHTS, "several weight scales in one output channel", "use one scale per output channel")
    return scale[:, 0]


def matrix_of(integers: Integers) -> Integers:
    """(O, I, kh, kw) -> (kh * kw * I, O), the order of Im2Col."""
    return integers.transpose(2, 3, 1, 0).reshape(-1, integers.shape[0])


def depthwise_matrix(integers: Integers) -> Integers:
    """(C, 1, kh, kw) -> (kh * kw * C, C), zero where channels differ."""
    channels, _, height, width = integers.shape
    matrix = np.zeros((height, width, channels, channels), np.int64)
    index = np.arange(channels)
    matrix[:, :, index, index] = integers[:, 0].transpose(1, 2, 0)
    return matrix.reshape(-1, channels)


def quantizer_of(node: onnx.NodeProto, constants: list[Value], channels: int) -> Quantizer:
    """The staircase of a QONNX Quant node on an activation."""
    if node.op_type == "BipolarQuant":
        raise Broken(rules.BITS, "bipolar activations", "use 2 bits or more")
    if len(constants) != 3 or not all(isinstance(value, np.ndarray) for value in constants):
        raise Broken(rules.QUANTIZED, "a quantizer whose scale depends on the input", "use a static scale")
    scale, zero_point, bits = map(reals, constants)
    if zero_point.any():
        raise Broken(rules.ZERO_POINT, f"zero point {zero_point.ravel()[0]:g}", "use a symmetric quantizer")
    if bits.size != 1 or bits != np.round(bits) or not 1 <= bits <= 8:
        raise Broken(rules.BITS, f"{bits.ravel()[0]:g} bits", "choose 1 to 8 bits, the same for all channels")
    attributes = attributes_of(node)
    rounding = attributes.get("rounding_mode", "ROUND").upper()
    if rounding not in ("ROUND", "FLOOR", "CEIL"):
        raise Broken(rules.ROUNDING, rounding, "use float_to_int_impl_type='round'")
    if scale.size not in (1, channels):
        raise Broken(rules.QUANTIZED, f"scales of shape {scale.shape}", "use one scale, or one per channel")
    signed = bool(attributes.get("signed", 1))
    if signed and bits == 1:
        raise Broken(rules.BITS, "1 signed bit", "use 2 bits or more")
    return make_quantizer(scale.ravel(), int(bits.item()), signed, bool(attributes.get("narrow", 0)), rounding)


def fold(node: onnx.NodeProto, inputs: list[Value]) -> list[Value]:
    """Compute a node whose inputs are constants; quantized ones stay integers and scale."""
    if node.op_type in ("Quant", "IntQuant"):
        return [_quantized_constant(node, inputs)]
    if node.op_type == "BipolarQuant":
        value, scale = map(reals, inputs)
        return [Weights(np.where(value >= 0, 1, -1), scale, "BIPOLAR")]
    weights = inputs[0] if inputs else None
    if isinstance(weights, Weights) and node.op_type == "Transpose":
        order = attributes_of(node)["perm"]
        scale = weights.scale.transpose(order) if weights.scale.ndim == len(order) else weights.scale
        return [Weights(weights.integers.transpose(order), scale, weights.datatype)]
    if isinstance(weights, Weights) and node.op_type == "Identity":
        return [weights]
    plain = [each.real.astype(np.float32) if isinstance(each, Weights) else each for each in inputs]
    return _evaluate(node, plain)


def _evaluate(node: onnx.NodeProto, inputs: list[Any]) -> list[Value]:
    from onnx.reference import ReferenceEvaluator

    try:
        evaluator = ReferenceEvaluator(node)
    except (NotImplementedError, RuntimeError, ValueError) as error:
        remedy = "export constants that need no computation"
        raise Broken(rules.OPERATION, f"{node.op_type} on constants", remedy) from error
    feeds = {name: value for name, value in zip(node.input, inputs, strict=True) if name}
    return list(evaluator.run(None, feeds))


def _quantized_constant(node: onnx.NodeProto, inputs: list[Value]) -> Weights:
    value, scale, zero_point, bits = (np.asarray(each) for each in inputs)
    if zero_point.any():
        found = f"weights with zero point {zero_point.ravel()[0]:g}"
        raise Broken(rules.ZERO_POINT, found, "use a symmetric weight quantizer, such as Int8WeightPerChannelFloat")
    if bits.size != 1 or bits != np.round(bits):
        raise Broken(
            rules.WEIGHTS, "weight bits that differ or are not whole", "use one whole number of bits per layer"
        )
    attributes = attributes_of(node)
    signed, narrow = bool(attributes.get("signed", 1)), bool(attributes.get("narrow", 0))
    quantizer = make_quantizer(np.ones(1), int(bits.item()), signed, narrow)
    rounding = _rounding(attributes)
    integers = rounding(np.clip(value / scale, quantizer.lowest, quantizer.highest)).astype(np.int64)
    return Weights(integers, scale.astype(np.float64), f"INT{max(2, int(bits.item()) + (not signed))}")


def _rounding(attributes: dict[str, Any]) -> Callable[[NDArray[Any]], NDArray[Any]]:
    modes = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil, "ROUND_TO_ZERO": np.trunc}
    mode = attributes.get("rounding_mode", "ROUND").upper()
    if mode not in modes:
        raise Broken(rules.ROUNDING, mode, "round weights to nearest")
    return modes[mode]  # type: ignore[return-value]
