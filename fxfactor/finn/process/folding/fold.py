"""Fold a whole model: units with their candidates, streams between them, the choice, and FINN's file for it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .candidates import Member, candidates, ends, words
from .connections import SHALLOW, Prices, waiting_pixels
from .program import RESOURCES, Candidate, Costs, Infeasible, Stream, choose, fastest


@dataclass(frozen=True)
class Folded:
    """`attributes`: FINN's folding configuration, node name -> attributes. `cycles` per frame at most; `fits` the board."""

    attributes: dict[str, dict[str, Any]]
    cycles: int
    fits: bool


def fold(model: Any, part: str, cycles: int | None, available: Costs, must_fit: bool, at_least: int = 0) -> Folded:
    """Choose the folding of every layer of a specialised model whose bit widths are final.

    `cycles` per frame at most, None for the fewest that fit. `available`: what the board has. Where `must_fit` is false and
    nothing fits, the choice of the least shares that does not. `at_least`: cycles below which nothing fits. Raises Infeasible.
    """
    units, streams = problem(model, part, available)
    fits = True
    try:
        if cycles is None:
            cycles, chosen = fastest(units, streams, available, available, at_least)
        else:
            chosen = choose(units, streams, cycles, available, available)
    except Infeasible as error:
        if "unit" in error.facts:
            error.facts["layer"] = list(units[error.facts["unit"]][0].attributes)[-1]
            raise
        if must_fit or cycles is None:
            raise
        fits, chosen = False, choose(units, streams, cycles, None, available)
    attributes = {name: dict(each) for one in chosen for name, each in one.attributes.items()}
    for name, depths in fifo_depths(model, chosen).items():
        attributes[name]["inFIFODepths"] = depths
    return Folded(attributes, cycles, fits)


def problem(model: Any, part: str, available: Costs) -> tuple[list[list[Candidate]], list[Stream]]:
    """Candidates of every unit of the model, and the streams between units."""
    from finn.util.basic import is_versal

    prices = Prices(is_versal(part), available[RESOURCES.index("uram")] > 0)
    waiting = waiting_pixels(model, custom_of)
    known: dict[Any, list[Candidate]] = {}
    units: list[list[Candidate]] = []
    owner: dict[str, int] = {}
    for nodes in _units(model):
        members = [Member(custom_of(node), is_narrow(model, node)) for node in nodes]
        key = _signature(members, waiting)
        if key not in known:
            known[key] = candidates(members, part, prices, waiting)
        twin = known[key]
        owner.update({node.name: len(units) for node in nodes})
        units.append(_renamed(twin, members))
    streams = [
        Stream(tensor, owner[writer.name], owner[reader.name], prices.converter)
        for tensor, writer, reader in edges(model)
        if owner[writer.name] != owner[reader.name]
    ]
    return units, streams


def custom_of(node: Any) -> Any:
    """FINN's object for a node."""
    from qonnx.custom_op.registry import getCustomOp

    return getCustomOp(node)


def _units(model: Any) -> list[list[Any]]:
    """Nodes that are folded together: a window generator in depthwise order with its reader, every other node alone."""
    readers = {name: node for node in model.graph.node for name in node.input}
    found, taken = [], set()
    for node in model.graph.node:
        if node.name in taken:
            continue
        unit = [node]
        if node.op_type.startswith("ConvolutionInputGenerator") and custom_of(node).get_nodeattr("depthwise"):
            reader = readers.get(node.output[0])
            if reader is not None:
                unit.append(reader)
                taken.add(reader.name)
        found.append(unit)
    return found


def edges(model: Any) -> list[tuple[str, Any, Any]]:
    """(tensor, writing node, reading node) of every stream inside the model."""
    writers = {name: node for node in model.graph.node for name in node.output}
    return [(name, writers[name], node) for node in model.graph.node for name in node.input if name in writers]


def is_narrow(model: Any, node: Any) -> bool:
    """Whether a unit's weights leave out the lowest number of their type, which gives the DSP slice one more bit."""
    if not node.op_type.startswith("MVAU"):
        return False
    weights = model.get_initializer(node.input[1])
    lowest = model.get_tensor_datatype(node.input[1]).min()
    return weights is not None and float(weights.min()) > lowest


def _signature(members: Sequence[Member], waiting: dict[tuple[str, str], int]) -> Any:
    """What a unit's candidates depend on: equal for layers that differ in names and weights only."""
    ports = []
    for member in members:
        attributes = sorted(
            (name, repr(value))
            for name, value in member.attributes.items()
            if "dir" not in name and name not in ("Scales", "Biases")
        )
        held = [waiting.get((member.node.name, name), 0) for name in member.node.input]
        ports.append((member.kind, member.narrow, tuple(attributes), tuple(held), len(member.node.output)))
    return tuple(ports)


def _renamed(twin: Sequence[Candidate], members: Sequence[Member]) -> list[Candidate]:
    """The candidates of a like unit with this unit's names of nodes and streams."""
    tensors = [tensor for _, tensor, _, _ in ends(members)]
    return [
        Candidate(
            {member.node.name: each for member, each in zip(members, one.attributes.values(), strict=True)},
            one.cycles,
            one.costs,
            dict(zip(tensors, one.widths.values(), strict=True)),
        )
        for one in twin
    ]


def fifo_depths(model: Any, chosen: Sequence[Candidate]) -> dict[str, list[int]]:
    """Node -> depth in words of the FIFO at each of its inputs, for nodes where branches meet."""
    widths = {name: width for each in chosen for name, width in each.widths.items()}
    nodes = {node.name: node for node in model.graph.node}
    found: dict[str, list[int]] = {}
    for (name, tensor), pixels in waiting_pixels(model, custom_of).items():
        port = list(nodes[name].input).index(tensor)
        depths = found.setdefault(name, [SHALLOW] * len(nodes[name].input))
        depths[port] = words(custom_of(nodes[name]), port, pixels, widths[tensor])
    return found
