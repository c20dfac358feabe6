"""The streams between hardware layers: width converters, and FIFOs as deep as skip branches need them.

FINN puts both in after its estimates, so that its figures leave them out. A FIFO stands on every stream, 2 words deep; where
branches of different delay meet, the stream of the faster branch has to hold what the slower one is behind with. The delay
is counted in parts of a frame: a window generator starts when it has a kernel's rows, padding brings the first of them for
nothing, and every layer holds one pixel. That is what layers hold when all are busy, so it does not depend on folding.
Layers that are nearly as slow as the slowest need deeper FIFOs than 2 to stay busy; how deep a simulation finds (`simulated`).
FINN's own figures for FIFOs (`StreamingFIFO`) are asked; width converters take more than FINN's formula says.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from . import formulas
from .program import Costs, add

SHALLOW = 2


@dataclass(frozen=True)
class Prices:
    """What a board's streams cost. `versal` and `ultra`: whether it is a Versal, and whether it has UltraRAM."""

    versal: bool
    ultra: bool

    def fifo(self, depth: int, width: int) -> Costs:
        """A FIFO of `depth` words of `width` bits, by FINN's model of it, in the memory that its RTL chooses."""
        from finn.util.resource_models import _fifo_cost, _resolve

        padded = math.ceil(width / 8) * 8
        style = _resolve(depth, padded, "auto")
        if style == "ultra" and not self.ultra:
            style = "block"
        found = _fifo_cost(depth, padded, style, self.versal)
        return float(found.lut), float(found.bram), 0.0, float(found.uram)

    def converter(self, written: int, read: int, depth: int = SHALLOW) -> Costs:
        """A width converter where it is needed, and the FIFO of `depth` words before it."""
        if written == read:
            return 0.0, 0.0, 0.0, 0.0
        return add((formulas.converter_luts(written, read), 0.0, 0.0, 0.0), self.fifo(depth, written))


class UnknownStream(Exception):
    """A stream of the model for which a simulation has no depth."""


def simulated(depths: Mapping[str, int], writer: str, output: int, converted: bool) -> tuple[int, int]:
    """Depths of the FIFOs behind a writer's output by a simulation's names of streams (`writer -> reader`, `writer:1 -> reader`
    for its second output): the one before a width converter, where there is one, and the one before the reader. Raises
    UnknownStream.
    """
    ends = {name.partition(" -> ")[0]: (name.partition(" -> ")[2], depth) for name, depth in depths.items()}
    try:
        next_layer, depth = ends[f"{writer}:{output}" if output else writer]
        return (depth, ends[next_layer][1]) if converted else (SHALLOW, depth)
    except KeyError as error:
        raise UnknownStream(error.args[0]) from error


def delays(model: Any, custom: Callable[[Any], Any]) -> dict[str, float]:
    """Tensor -> the part of a frame by which it is behind the network's input; padding alone is ahead of it."""
    found: dict[str, float] = {}
    for node in model.graph.node:
        before = max((found.get(name, 0.0) for name in node.input), default=0.0)
        after = before + _delay(custom(node), node.op_type)
        found.update(dict.fromkeys(node.output, after))
    return found


def waiting_pixels(model: Any, custom: Callable[[Any], Any]) -> dict[tuple[str, str], int]:
    """(reading node, tensor) -> pixels that the stream holds because another input of the node comes later."""
    known, found = delays(model, custom), {}
    written = {name for node in model.graph.node for name in node.output}
    for node in model.graph.node:
        streams = [name for name in node.input if name in written]
        latest = max((known[name] for name in streams), default=0.0)
        for index, name in enumerate(node.input):
            if len(streams) > 1 and name in written and known[name] < latest:
                pixels = math.prod(custom(node).get_normal_input_shape(index)[:-1])
                found[node.name, name] = math.ceil((latest - known[name]) * pixels)
    return found


def _delay(layer: Any, kind: str) -> float:
    if kind.startswith("GlobalAccPool"):
        return 1.0
    pixel = 1 / math.prod(layer.get_normal_output_shape()[:-1])
    if kind.startswith("FMPadding") and "Pixel" not in kind:
        (height, width), (top, left, bottom, right) = layer.get_nodeattr("ImgDim"), layer.get_nodeattr("Padding")
        padded = width + left + right
        return pixel - (top * padded + left) / ((height + top + bottom) * padded)
    if kind.startswith("ConvolutionInputGenerator"):
        (rows, columns), (down, across) = layer.get_nodeattr("ConvKernelDim"), layer.get_nodeattr("Dilation")
        height, width = layer.get_nodeattr("IFMDim")
        return pixel + ((rows - 1) * down * width + (columns - 1) * across) / (height * width)
    return pixel
