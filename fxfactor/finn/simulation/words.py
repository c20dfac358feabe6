"""The words that have to pass every stream, from the tensors of the network in integers.

FINN's own Python execution has no part in this. A layer that computes a tensor of the integer graph gives that tensor, dealt
into words; a window generator for channel runs gives it in another order; padding, width converters and copies are derived.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fxfactor.errors import FinnError
from fxfactor.finn.integer.execute import OPERATIONS, execute
from fxfactor.finn.simulation.design import Design, Layer, Port

Tensor = NDArray[Any]
Change = Callable[[Tensor], Tensor]

COPIES = ("StreamingDataWidthConverter", "DuplicateStreams")


@dataclass(frozen=True)
class Origin:
    """A stream's tensor: `tensor` of the integer graph, changed by `changes` one after the other."""

    tensor: str
    changes: tuple[Change, ...] = ()

    def __call__(self, value: Tensor) -> Tensor:
        for change in self.changes:
            value = change(value)
        return value


def origins(design: Design, model: onnx.ModelProto) -> tuple[Origin, ...]:
    """Where each stream's words come from. Raises FinnError where a layer computes what the integer graph does not know."""
    known = {name for node in model.graph.node for name in node.output}
    found: list[Origin | None] = [None] * len(design.streams)
    for stream in design.sources:
        found[stream] = Origin(model.graph.input[0].name)
    for layer in design.layers:
        for stream in layer.outputs:
            tensor = design.streams[stream].tensor
            if stream in design.sinks:
                tensor = _output(tensor, model)
            before = found[layer.inputs[0]] if layer.inputs else None
            found[stream] = _origin(layer, tensor, before, known)
    if None in found:
        lost = design.streams[found.index(None)].name
        raise FinnError(
            f"required: layers in the order of execution; found: nothing writes {lost}; report it as a defect"
        )
    return tuple(origin for origin in found if origin is not None)


def _output(tensor: str | None, model: onnx.ModelProto) -> str:
    """The output of the integer graph that FINN calls `tensor`: by that name, or numbered where there are several."""
    outputs = [output.name for output in model.graph.output]
    number = re.fullmatch(r"global_out_(\d+)", tensor or "")
    return str(tensor) if tensor in outputs else outputs[int(number[1]) if number else 0]


def _origin(layer: Layer, tensor: str | None, before: Origin | None, known: set[str]) -> Origin:
    if tensor in known:
        assert tensor is not None
        return Origin(tensor, _reordering(layer))
    if before is not None and layer.kind.startswith(COPIES):
        return before
    if before is not None and layer.kind.startswith("FMPadding"):
        return Origin(before.tensor, (*before.changes, _padding(layer)))
    if before is not None and layer.kind.startswith(
        "ConvolutionInputGenerator"
    ):  # of a pooling, which is one node there
        return Origin(before.tensor, (*before.changes, _windows(layer), *_reordering(layer)))
    raise FinnError(
        f"required: a layer that computes a tensor of the network in integers; found: {layer.name} ({layer.kind}) gives "
        f"{tensor}; report it with the file as a defect of fxfactor"
    )


def _padding(layer: Layer) -> Change:
    top, left, bottom, right = layer.attributes["Padding"]

    def pad(value: Tensor) -> Tensor:
        return np.pad(value, ((0, 0), (top, bottom), (left, right), (0, 0)))

    return pad


def _windows(layer: Layer) -> Change:
    names = {"kernel_size": "ConvKernelDim", "stride": "Stride", "dilations": "Dilation"}
    attributes = {name: layer.attributes[theirs] for name, theirs in names.items()} | {"pad_amount": [0, 0, 0, 0]}

    def windows(value: Tensor) -> Tensor:
        taken: Tensor = OPERATIONS["Im2Col"]([value], attributes)[0]
        return taken

    return windows


def _reordering(layer: Layer) -> tuple[Change, ...]:
    """A depthwise window generator sends runs of SIMD channels, and of each run all kernel positions."""
    if not layer.kind.startswith("ConvolutionInputGenerator") or not layer.attributes.get("depthwise", 0):
        return ()
    run, channels = layer.attributes["SIMD"], layer.attributes["IFMChannels"]

    def reorder(value: Tensor) -> Tensor:
        runs = value.reshape(*value.shape[:3], -1, channels // run, run)
        return np.swapaxes(runs, 3, 4).reshape(value.shape)

    return (reorder,)


def words(value: Tensor, port: Port) -> NDArray[np.uint32]:
    """Integers (N, ...) as the words of a stream, (N * words, limbs), element 0 in the lowest bits.

    Raises FinnError where an integer does not fit into the bits that FINN chose: the hardware could not be right.
    """
    integers = value.reshape(-1, port.elements).astype(np.int64)
    bits = port.element_bits
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if port.signed else (0, (1 << bits) - 1)
    if len(integers) and (integers.min() < low or integers.max() > high):
        raise FinnError(
            f"required: integers from {low} to {high}, as FINN's data type has them; found: {integers.min()} to "
            f"{integers.max()}; report it with the file as a defect of fxfactor"
        )
    # one limb more than needed, for the upper part of an element that crosses the last boundary
    limbs = np.zeros((len(integers), max(port.limbs, -(-bits * port.elements // 32)) + 1), np.uint64)
    for index in range(port.elements):
        limb, shift = divmod(index * bits, 32)
        element = (integers[:, index] & ((1 << bits) - 1)).astype(np.uint64) << np.uint64(shift)
        limbs[:, limb] |= element & np.uint64(0xFFFFFFFF)
        limbs[:, limb + 1] |= element >> np.uint64(32)
    return limbs[:, : port.limbs].astype(np.uint32)


def elements_of(limbs: list[int], port: Port) -> list[int]:
    """A word's limbs as its elements."""
    word = sum(limb << (32 * index) for index, limb in enumerate(limbs))
    bits = port.element_bits
    values = [(word >> (index * bits)) & ((1 << bits) - 1) for index in range(port.elements)]
    return [value - (1 << bits) if port.signed and value >> (bits - 1) else value for value in values]


def expected_words(
    design: Design, model: onnx.ModelProto, images: Tensor, keep: Callable[[int, NDArray[np.uint32]], None]
) -> None:
    """Execute the integer graph for integer images (N, H, W, C) and hand each stream's words to `keep(stream, words)`."""
    wanted: dict[str, list[int]] = {}
    found = origins(design, model)
    for index, origin in enumerate(found):
        wanted.setdefault(origin.tensor, []).append(index)

    def watch(name: str, value: Tensor) -> None:
        for index in wanted.pop(name, ()):
            keep(index, words(found[index](value), design.streams[index].port))

    watch(model.graph.input[0].name, images)
    execute(model, images, watch)
