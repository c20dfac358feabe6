"""What FINN's hardware layers for one convolution or linear layer cost, without building a network around them.

`chains` writes down the layers that FINN makes of a convolution (padding, window generator, matrix or depthwise unit,
thresholds; a grouped convolution in any of its forms); `price` asks FINN's own cost functions for all of them at once.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from fxfactor.errors import FinnError
from fxfactor.finn.integer.builder import GROUPED, REQUANT
from fxfactor.finn.integer.forms import FORMS, Form
from fxfactor.finn.process.start import COST_WORKER, events, explain
from fxfactor.finn.target import Target
from fxfactor.quantization.levels import integer_range
from fxfactor.workers import ALONE, Crew

_TIMEOUT_S = 1800.0

Node = tuple[str, tuple[tuple[str, Any], ...]]
"""Kind of a hardware layer, and FINN's attributes of it."""

Chain = tuple[Node, ...]
"""Layers that are folded together: one, or a window generator with the depthwise unit that reads it."""

Way = TypeVar("Way", bound=str)

Prices = dict[str, float]
"""lut, bram (18 kbit), dsp, uram, and cycles per frame; finn_lut and so on: FINN's own figures for the same folding."""


SUMMED = ("lut", "bram", "dsp", "uram")
"""What is added up over layers; of cycles the most count."""

Emphasis = tuple[float, float, float, float]
"""How much more than by its share of the board each of SUMMED counts where one of several ways to build is taken."""

PLAIN: Emphasis = (1, 1, 1, 1)

EMPHASES: tuple[Emphasis, ...] = (
    PLAIN,
    *((4, 1, 1, 1), (1, 4, 1, 1), (1, 1, 4, 1), (1, 1, 1, 4)),
    *((64, 1, 1, 1), (1, 64, 1, 1), (1, 1, 64, 1), (1, 1, 1, 64)),
)
"""As on a whole board, and where one resource is short or all but used up."""


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


def weight_datatype(bits: int, bipolar: bool) -> str:
    """FINN's name of weights; those of one bit take two where the layer knows integers only."""
    return "BIPOLAR" if bits == 1 and bipolar else datatype(max(bits, 2))


def chains(
    layer: Geometry, weight_bits: int, input_type: str, accumulator_bits: int, form: Form = "block"
) -> Iterator[Chain]:
    """The hardware layers of a convolution or linear layer, each as often as FINN builds it.

    `form` says how a grouped convolution is built: see `fxfactor.finn.integer.grouped`.
    """
    accumulator = datatype(accumulator_bits)
    common = {
        "ActVal": 0,
        "inputDataType": input_type,
        "weightDataType": weight_datatype(weight_bits, bipolar=layer.groups == 1 or form != "block"),
        "outputDataType": accumulator,
        "accDataType": accumulator,
        "noActivation": 1,
    }
    if layer.groups == 1:
        yield from _separate(layer, layer.in_channels, input_type)
        yield (_matrix_unit(layer, common),)
    elif form == "block":
        *before, windows = _separate(layer, layer.in_channels, input_type, layer.kernel != (1, 1)) or [()]
        if layer.kernel == (1, 1) and windows:  # not depthwise, so folded by itself
            before, windows = [*before, windows], ()
        yield from before
        yield (*windows, _block(layer, common))
    elif layer.groups == layer.in_channels:
        multiplier = layer.out_channels // layer.in_channels
        for _ in range(multiplier):
            *before, windows = _separate(layer, layer.in_channels, input_type, True, always=True)
            yield from before
            yield (
                *windows,
                _node("VVAU", PE=1, Channels=layer.in_channels, Dim=layer.out_size, Kernel=layer.kernel, **common),
            )
        if multiplier > 1:
            yield (_concatenation(layer, multiplier, accumulator),)
    else:
        yield from _groups_one_by_one(layer, common, form)


def _groups_one_by_one(layer: Geometry, common: dict[str, Any], form: Form) -> Iterator[Chain]:
    """A matrix unit for each group, behind one window generator ("split") or one each ("branches")."""
    input_type, per_group = common["inputDataType"], layer.in_channels // layer.groups
    height, width = layer.out_size
    positions = math.prod(layer.kernel)
    if form == "split" and (before := _separate(layer, layer.in_channels, input_type)):
        yield from before
        yield (_reshape((height, width, positions * layer.in_channels), (height, width * positions, layer.in_channels),
                        input_type),)  # fmt: skip
        yield (_splitting(layer, (height, width * positions), input_type),)
        for _ in range(layer.groups):
            yield (
                _reshape((height, width * positions, per_group), (height, width, positions * per_group), input_type),
            )
    else:
        yield (_splitting(layer, layer.size, input_type),)
        for _ in range(layer.groups):
            yield from _separate(layer, per_group, input_type)
    for _ in range(layer.groups):
        yield (_matrix_unit(layer, common),)
    yield (_concatenation(layer, layer.groups, common["accDataType"]),)


def _separate(
    layer: Geometry, channels: int, input_type: str, depthwise: bool = False, always: bool = False
) -> list[Chain]:
    """Padding and window generator, where there are any."""
    found: list[Chain] = []
    if any(layer.padding):
        found.append((_padding(layer, channels, input_type),))
    if layer.kernel != (1, 1) or layer.stride != (1, 1) or any(layer.padding) or always:
        found.append((_windows(layer, channels, depthwise, input_type),))
    return found


def _matrix_unit(layer: Geometry, common: dict[str, Any]) -> Node:
    return _node(
        "MVAU",
        PE=1,
        SIMD=1,
        MW=layer.fan_in,
        MH=layer.out_channels // layer.groups,
        binaryXnorMode=0,
        mem_mode="internal_decoupled",
        numInputVectors=(1, *layer.out_size),
        **common,
    )


def _block(layer: Geometry, common: dict[str, Any]) -> Node:
    _, attributes = _matrix_unit(layer, common)
    return _node(GROUPED, Groups=layer.groups, Kernel=layer.kernel, **dict(attributes))


def _splitting(layer: Geometry, size: tuple[int, ...], input_type: str) -> Node:
    return _node(
        "StreamingSplit",
        SIMD=1,
        ChannelsPerStream=(layer.in_channels // layer.groups,) * layer.groups,
        inputDataType=input_type,
        numInputVectors=(1, *size),
    )


def _concatenation(layer: Geometry, parts: int, accumulator: str) -> Node:
    return _node(
        "StreamingConcat",
        SIMD=1,
        ChannelsPerStream=(layer.out_channels // parts,) * parts,
        inputDataTypes=(accumulator,) * parts,
        numInputVectors=(1, *layer.out_size),
    )


def _reshape(before: tuple[int, ...], after: tuple[int, ...], input_type: str) -> Node:
    return _node("Reshape", PE=1, inp_shape=(1, *before), out_shape=(1, *after), dtype=input_type)


def forms_of(layer: Geometry) -> tuple[Form, ...]:
    """The forms that a grouped convolution can take."""
    return ("block", "branches") if layer.groups == layer.in_channels else FORMS


def cheapest(ways: Mapping[Way, Prices], target: Target, emphasis: Emphasis = PLAIN) -> Way:
    """The way to build something that takes the smallest share of the board among those fast enough; the fastest where none is.

    The share is the sum over LUTs, block RAMs, DSPs and UltraRAMs, each as a part of what the board has, times its emphasis.
    """

    def rank(way: Way) -> tuple[float, float]:
        return max(ways[way]["cycles"], target.cycles), share(ways[way], target, emphasis)

    return min(ways, key=rank)


def share(prices: Prices, target: Target, emphasis: Emphasis = PLAIN) -> float:
    """The shares of the board's LUTs, block RAMs, DSPs and UltraRAMs, each times its emphasis, added up."""
    there = target.available
    has = zip(SUMMED, emphasis, (there.lut, there.bram18, there.dsp, there.uram), strict=True)
    return sum(factor * prices[name] / count for name, factor, count in has if count)


def total(wanted: Sequence[Chain], prices: Mapping[Chain, Prices]) -> Prices:
    """Sums of LUTs, block RAMs, DSPs and UltraRAMs over chains, and the most cycles among them."""
    return summed([prices[chain] for chain in wanted])


def summed(parts: Sequence[Prices]) -> Prices:
    """Sums of what is summed, and the most cycles; of what all parts have."""
    names = [name for name in parts[0] if name != "cycles"]
    return {
        **{name: sum(part[name] for part in parts) for name in names},
        "cycles": max(part["cycles"] for part in parts),
    }


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


def multiplication(
    channels: int,
    size: tuple[int, ...],
    input_type: str,
    output_type: str,
    scale_bits: int,
    bias_bits: int,
    shift: int,
) -> Chain:
    """The multiplication that does the same as thresholds. `scale_bits` without a sign, `bias_bits` with one."""
    lowest, highest = integer_range(int(output_type.lstrip("UINT")), not output_type.startswith("U"))
    return (
        _node(
            REQUANT,
            PE=1,
            NumChannels=channels,
            inputDataType=input_type,
            outputDataType=output_type,
            numInputVectors=(1, *size),
            Shift=shift,
            Lowest=lowest,
            Highest=highest,
            ScaleBits=scale_bits,
            BiasBits=bias_bits,
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
    and no width converter is saved by another choice. Cost and errors: see `price_foldings`.
    """
    return {chain: prices for chain, (prices,) in price_foldings(wanted, target, (PLAIN,)).items()}


def price_foldings(
    wanted: Sequence[Chain], target: Target, emphases: Sequence[Emphasis] = EMPHASES, crew: Crew = ALONE
) -> dict[Chain, list[Prices]]:
    """What each chain costs, for each emphasis: folded to the target's frames per second so that the emphasized is spared.

    FINN's own figures are there for the first emphasis only. Cost: one process that imports FINN for each worker of the crew,
    and some 20 ms for every different chain. Raises FinnError where FINN is missing or of another version, or refuses.
    """
    different = list(dict.fromkeys(wanted))
    parts = [different[first :: crew.workers] for first in range(crew.workers)]
    found = {}
    for prices in crew.steps(_Pricing(target, emphases), [part for part in parts if part], "search or compress"):
        found.update(prices)
    return {chain: found[chain] for chain in different}


@dataclass(frozen=True)
class _Pricing:
    """Asks FINN, in a process of its own for each task."""

    target: Target
    emphases: Sequence[Emphasis]

    def worker(self) -> _Pricing:
        """What prices, anywhere (`fxfactor.workers`)."""
        return self

    def steps(self, task: Sequence[Chain]) -> Iterator[dict[Chain, list[Prices]]]:
        """The prices of different chains, at once."""
        target, prices = self.target, list[list[Prices]]()
        with tempfile.TemporaryDirectory() as folder:
            request = {
                "folder": folder,
                "board": target.board,
                "clock_ns": target.clock_ns,
                "target_fps": target.target_fps,
                "available": asdict(target.available),
                "emphases": self.emphases,
                "chains": [[(kind, dict(attributes)) for kind, attributes in chain] for chain in task],
            }
            (Path(folder) / "request.json").write_text(json.dumps(request))
            for event in events(COST_WORKER, Path(folder), target.python, _TIMEOUT_S):
                if event["event"] == "stop":
                    raise FinnError(explain(event))
                prices = event.get("prices", prices)
        yield dict(zip(task, prices, strict=True))
