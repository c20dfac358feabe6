"""Every way to fold a hardware layer: what FINN allows, its cycles, and its price.

A window generator in depthwise order belongs to the unit that reads it, since both have to agree. A layer that FINN's
SetFolding does not know needs a function here that gives its legal attributes (`MVAUGrouped_rtl` has one); cycles and
stream widths come from the layer itself, the price from `prices.ours`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from itertools import pairwise, product
from typing import Any

from .connections import SHALLOW, Prices
from .prices import ours
from .program import Candidate, add

Settings = tuple[dict[str, Any], ...]
"""Attributes for every member of a unit, in the order of the members."""

WIDEST = 8191
"""Bits in a word that Vitis HLS can handle (ap_int)."""
NEVER = 2**30
"""Depth of threshold memory from which on it goes into another memory, where it never shall. Not 0: 0 lets Vivado choose."""
_SHALLOWEST_BLOCK = 128
WRITEABLE = "runtime_writeable_weights"


def divisors(number: int) -> list[int]:
    """All divisors, in order."""
    return [each for each in range(1, number + 1) if number % each == 0]


class Member:
    """A layer with its attributes in a dictionary: reading them from the ONNX node takes most of the time otherwise."""

    def __init__(self, layer: Any, narrow: bool) -> None:
        self.layer, self.narrow, self.node = layer, narrow, layer.onnx_node
        self.kind = layer.onnx_node.op_type
        self.attributes = {name: layer.get_nodeattr(name) for name in layer.get_nodeattr_types() if _given(layer, name)}
        self._read = layer.get_nodeattr
        layer.get_nodeattr = self.get

    def get(self, name: str) -> Any:
        """The attribute as it is set now."""
        return self.attributes[name] if name in self.attributes else self._read(name)


def _given(layer: Any, name: str) -> bool:
    required = layer.get_nodeattr_def(name)[1]
    return not required or any(each.name == name for each in layer.onnx_node.attribute)


def candidates(
    members: Sequence[Member],
    part: str,
    prices: Prices,
    waiting: dict[tuple[str, str], int],
    most_cycles: float = math.inf,
) -> list[Candidate]:
    """All candidates of a unit of at most so many cycles. `waiting`: pixels that its streams hold, by (node, tensor)."""
    found = []
    ports = ends(members)
    for chosen in settings(members, prices.ultra):
        for member, attributes in zip(members, chosen, strict=True):
            member.attributes.update(attributes)
        cycles = max(int(member.layer.get_exp_cycles()) for member in members)
        if cycles > most_cycles:
            continue
        costs = add(*(ours(member.layer, part, member.narrow) for member in members))
        widths, buffers = {}, []
        for member, tensor, port, reads in ports:
            width = member.layer.get_instream_width(port) if reads else member.layer.get_outstream_width(port)
            widths[tensor] = int(width)
            if reads:
                held = waiting.get((member.node.name, tensor), 0)
                buffers.append(prices.fifo(words(member.layer, port, held, int(width)), int(width)))
        found.append(
            Candidate(
                {member.node.name: dict(attributes) for member, attributes in zip(members, chosen, strict=True)},
                cycles,
                add(costs, *buffers, *_inside(members, prices)),
                widths,
            )
        )
    return found


def words(layer: Any, port: int, pixels: int, width: int) -> int:
    """Words of `width` bits in a FIFO that holds so many pixels at an input of a layer."""
    bits = int(layer.get_normal_input_shape(port)[-1]) * layer.get_input_datatype(port).bitwidth()
    return max(SHALLOW, pixels * math.ceil(bits / width))


def ends(members: Sequence[Member]) -> list[tuple[Member, str, int, bool]]:
    """The streams that lead into a unit and out of it: (member, tensor, port, whether it reads)."""
    first, last = members[0], members[-1]
    reads = [(first, name, port, True) for port, name in enumerate(first.node.input) if is_stream(first, port)]
    return reads + [(last, name, port, False) for port, name in enumerate(last.node.output)]


def is_stream(member: Member, port: int) -> bool:
    """Whether an input is a stream; weights, thresholds and constants lie in the layer."""
    if member.kind.startswith(("MVAU", "VVAU", "Thresholding")):
        return port == 0
    if member.kind.startswith("Elementwise"):
        return member.get(("lhs_style", "rhs_style")[port]) == "input"
    return True


def _inside(members: Sequence[Member], prices: Prices) -> Iterator[Any]:
    """Converter and FIFO between a window generator and its reader."""
    for writer, reader in pairwise(members):
        written, read = int(writer.layer.get_outstream_width(0)), int(reader.layer.get_instream_width(0))
        yield prices.converter(written, read)
        yield prices.fifo(SHALLOW, read)


# ---- what is legal ----


def settings(members: Sequence[Member], ultra: bool) -> Iterator[Settings]:
    """Every legal setting of a unit. `ultra`: whether the board has UltraRAM."""
    *before, member = members
    generator = before[0] if before else None
    if member.kind == "MVAUGrouped_rtl":
        yield from _grouped(member, generator, ultra)
    elif member.kind.startswith("MVAU"):
        for pe, simd in product(divisors(member.get("MH")), divisors(member.get("MW"))):
            yield from (({"PE": pe, "SIMD": simd, **each},) for each in _arithmetic(member, pe * simd, ultra))
    elif member.kind.startswith(("VVAU", "Pool")):
        yield from _channelwise(member, generator, ultra)
    elif member.kind.startswith("ConvolutionInputGenerator"):
        yield from (({**each, **memory},) for each in _windows(member) for memory in _memories(ultra))
    elif member.kind == "Thresholding_rtl":
        for pe in divisors(member.get("NumChannels")):
            yield from (({"PE": pe, **each},) for each in _threshold_memories(member, pe))
    elif member.kind == "IntegerRequant_rtl":
        for pe, style in product(divisors(member.get("NumChannels")), ("distributed", "block")):
            yield ({"PE": pe, "rom_style": style},)
    else:
        yield from (({**each},) for each in _plain(member))


def _arithmetic(member: Member, parallel: int, ultra: bool) -> Iterator[dict[str, Any]]:
    """Where the weights lie and, of a unit in HLS, what multiplies. Nothing where its words are too wide for HLS."""
    if parallel * member.layer.get_input_datatype(1).bitwidth() > WIDEST:
        return
    units = ({},) if member.kind.endswith("_rtl") else ({"resType": "lut"}, {"resType": "dsp"})
    for unit, memory in product(units, _memories(ultra)):
        # an UltraRAM has no contents at start: the driver writes the weights
        yield {**unit, **memory, WRITEABLE: int(memory["ram_style"] == "ultra")}


def _memories(ultra: bool) -> tuple[dict[str, Any], ...]:
    found = ({"ram_style": "block"}, {"ram_style": "distributed"})
    return (*found, {"ram_style": "ultra"}) if ultra else found


def _grouped(member: Member, generator: Member | None, ultra: bool) -> Iterator[Settings]:
    """A grouped convolution as one block: the window generator sends runs of the channels of one group."""
    positions = math.prod(member.get("Kernel"))
    runs = divisors(member.get("MW") // positions)
    simds = [(run, run, 0) for run in runs]
    if generator is not None and positions > 1:
        simds += [(run * positions, run, 1) for run in runs]
    for (simd, run, parallel), pe in product(simds, divisors(member.get("MH"))):
        for each in _arithmetic(member, pe * simd, ultra):
            block = {"PE": pe, "SIMD": simd, "parallel_window": parallel, **each}
            if generator is None:
                yield (block,)
                continue
            for memory in _memories(ultra):
                yield {"SIMD": run, "parallel_window": parallel, **memory}, block


def _channelwise(member: Member, generator: Member | None, ultra: bool) -> Iterator[Settings]:
    """Depthwise units and pools: as many channels at once as the window generator sends, more positions only with all."""
    channels, is_pool = member.get("Channels"), member.kind.startswith("Pool")
    simds = [1] if is_pool else divisors(math.prod(member.get("Kernel")))
    for pe, simd in product(divisors(channels), simds):
        if simd > 1 and pe < channels:
            continue
        folded = {"PE": pe} if is_pool else {"PE": pe, "SIMD": simd}
        for each in ({},) if is_pool else _arithmetic(member, pe * simd, ultra):
            if generator is None:
                yield ({**folded, **each},)
                continue
            for memory in _memories(ultra):
                yield {"SIMD": pe, "parallel_window": int(simd > 1), **memory}, {**folded, **each}


def _windows(member: Member) -> Iterator[dict[str, Any]]:
    """A window generator in dense order: a whole window at once only with all channels."""
    channels = member.get("IFMChannels")
    for simd in divisors(channels):
        yield {"SIMD": simd, "parallel_window": 0}
    if math.prod(member.get("ConvKernelDim")) > 1:
        yield {"SIMD": channels, "parallel_window": 1}


def _threshold_memories(member: Member, pe: int) -> Iterator[dict[str, Any]]:
    """From which depth on a stage's thresholds lie in block RAM: one of its depths, or never."""
    stages = member.layer.get_output_datatype().bitwidth()
    depths = [member.get("NumChannels") // pe * 2**stage for stage in range(stages)]
    for trigger in (*(depth for depth in depths if depth >= _SHALLOWEST_BLOCK), NEVER):
        yield {"depth_trigger_bram": trigger, "depth_trigger_uram": NEVER}


def _plain(member: Member) -> Iterator[dict[str, Any]]:
    """Layers with one attribute that divides their channels, or none."""
    layer, known = member.layer, member.layer.get_nodeattr_types()
    if "ChannelsPerStream" in known:
        yield from ({"SIMD": each} for each in divisors(math.gcd(*member.get("ChannelsPerStream"))))
    elif member.kind.startswith("LabelSelect"):
        yield from ({"PE": each} for each in divisors(member.get("Labels")))
    elif "PE" in known or "SIMD" in known:
        most = math.gcd(int(layer.get_normal_input_shape()[-1]), int(layer.get_normal_output_shape()[-1]))
        yield from ({"PE" if "PE" in known else "SIMD": each} for each in divisors(most))
    else:
        yield {}
