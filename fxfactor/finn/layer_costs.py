"""What FINN's hardware layers for one convolution or linear layer cost, without building a network around them.

`chains` writes down the layers that FINN makes of a convolution (padding, window generator, matrix or depthwise unit,
thresholds, one set per branch of a grouped convolution); `price` asks FINN's own cost functions for all of them at once.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from fxfactor.errors import FinnError
from fxfactor.finn.process.start import COST_WORKER, events, explain
from fxfactor.finn.target import Target
from fxfactor.quantization.levels import integer_range

_TIMEOUT_S = 1800.0

Node = tuple[str, tuple[tuple[str, Any], ...]]
"""Kind of a hardware layer, and FINN's attributes of it."""

Chain = tuple[Node, ...]
"""Layers that are folded together: one, or a window generator with the depthwise unit that reads it."""

Prices = dict[str, float]
"""lut, bram (18 kbit), dsp, uram, and cycles per frame."""


@dataclass(frozen=True)
class Geometry:
    """A convolution, or a linear layer (`size` empty), as FINN sees it. `padding`: top, left, bottom, right."""

    in_channels: int
    out_channels: int
    groups: int = 1
    size: tuple[int, ...] = ()
    kernel: tuple[int, int] = (1, 1)
    stride: tuple[int, int] = (1, 1)
    padding: tuple[int, int, int, int] = (0, 0, 0, 0)
    dilation: tuple[int, int] = (1, 1)

    @property
    def padded(self) -> tuple[int, ...]:
        """Height and width with the padding."""
        return tuple(n + self.padding[i] + self.padding[i + 2] for i, n in enumerate(self.size))

    @property
    def out_size(self) -> tuple[int, ...]:
        """Height and width of what comes out."""
        return tuple(
            (n - self.dilation[i] * (self.kernel[i] - 1) - 1) // self.stride[i] + 1 for i, n in enumerate(self.padded)
        )

    @property
    def fan_in(self) -> int:
        """Products that are added up in one output."""
        return self.in_channels // self.groups * math.prod(self.kernel)


def datatype(bits: int, signed: bool = True) -> str:
    """FINN's name of an integer type."""
    return f"{'INT' if signed else 'UINT'}{bits}"


def chains(layer: Geometry, weight_bits: int, input_type: str, accumulator_bits: int) -> Iterator[Chain]:
    """The hardware layers of a convolution or linear layer, each as often as FINN builds it.

    A grouped convolution is its branches, as `fxfactor.passes.LegalizeForFinn` splits it; one with as many groups as
    channels is depthwise. Splitting and joining streams costs nothing in FINN's estimates.
    """
    depthwise = layer.groups == layer.in_channels > 1
    branches = layer.out_channels // layer.in_channels if depthwise else layer.groups
    channels = layer.in_channels if depthwise else layer.in_channels // layer.groups
    accumulator = datatype(accumulator_bits)
    for _ in range(branches):
        windows: list[Node] = []
        if any(layer.padding):
            yield (_padding(layer, channels, input_type),)
        if layer.kernel != (1, 1) or layer.stride != (1, 1):
            windows.append(_windows(layer, channels, depthwise, input_type))
        common = {
            "ActVal": 0,
            "inputDataType": input_type,
            "weightDataType": datatype(weight_bits),
            "outputDataType": accumulator,
            "accDataType": accumulator,
            "noActivation": 1,
        }
        if depthwise:
            unit = _node("VVAU", PE=1, Channels=channels, Dim=layer.out_size, Kernel=layer.kernel, **common)
            yield (*windows, unit)
            continue
        yield from ((node,) for node in windows)
        yield (
            _node(
                "MVAU",
                PE=1,
                SIMD=1,
                MW=layer.fan_in,
                MH=layer.out_channels // layer.groups,
                binaryXnorMode=0,
                mem_mode="internal_decoupled",
                numInputVectors=(1, *layer.out_size),
                **common,
            ),
        )


def thresholds(channels: int, size: tuple[int, ...], width: int, bits: int, signed: bool) -> Chain:
    """The thresholds that turn integers of `width` bits into `bits`."""
    return (
        _node(
            "Thresholding",
            PE=1,
            ActVal=integer_range(bits, signed)[0],
            NumChannels=channels,
            inputDataType=datatype(width),
            weightDataType=datatype(width),
            outputDataType=datatype(bits, signed),
            numInputVectors=(1, *size),
            numSteps=2**bits - 1,
        ),
    )


def _padding(layer: Geometry, channels: int, input_type: str) -> Node:
    return _node(
        "FMPadding", SIMD=1, ImgDim=layer.size, NumChannels=channels, Padding=layer.padding, inputDataType=input_type
    )


def _windows(layer: Geometry, channels: int, depthwise: bool, input_type: str) -> Node:
    return _node(
        "ConvolutionInputGenerator",
        SIMD=1,
        ConvKernelDim=layer.kernel,
        Dilation=layer.dilation,
        IFMChannels=channels,
        IFMDim=layer.padded,
        OFMDim=layer.out_size,
        Stride=layer.stride,
        depthwise=int(depthwise),
        is1D=0,
        inputDataType=input_type,
        outputDataType=input_type,
    )


def _node(kind: str, **attributes: Any) -> Node:
    return kind, tuple(sorted(attributes.items()))


def price(wanted: Sequence[Chain], target: Target) -> dict[Chain, Prices]:
    """What each chain costs by our prices, folded to the target's frames per second as `fxfactor.finn.estimate` folds it.

    It is the candidate of the least sum of shares of the board: what the whole network gets too where no resource is short
    and no width converter is saved by another choice. Cost: one process that imports FINN, and some 20 ms for every
    different chain.
    Raises FinnError where FINN is missing or of another version, or refuses.
    """
    different = list(dict.fromkeys(wanted))
    prices: list[Prices] = []
    with tempfile.TemporaryDirectory() as folder:
        request = {
            "folder": folder,
            "board": target.board,
            "clock_ns": target.clock_ns,
            "target_fps": target.target_fps,
            "available": asdict(target.available),
            "chains": [[(kind, dict(attributes)) for kind, attributes in chain] for chain in different],
        }
        (Path(folder) / "request.json").write_text(json.dumps(request))
        for event in events(COST_WORKER, Path(folder), target.python, _TIMEOUT_S):
            if event["event"] == "stop":
                raise FinnError(explain(event))
            prices = event.get("prices", prices)
    return dict(zip(different, prices, strict=True))
