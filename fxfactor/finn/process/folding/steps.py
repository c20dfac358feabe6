"""What the worker calls: the folding of a model, written as FINN's configuration file, and the prices of the folded model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from .candidates import WRITEABLE, Member, candidates, words
from .connections import SHALLOW, Prices, UnknownStream, simulated, waiting_pixels
from .fold import custom_of, edges, fold, is_narrow
from .prices import finns, ours
from .program import RESOURCES, Costs, Infeasible, add

__all__ = ["Infeasible", "UnknownStream", "foldings", "price", "prices_of", "write"]


def write(model: Any, config: Any, request: dict[str, Any], file: Path) -> dict[str, Any]:
    """Fold a specialised model and write `file`, a folding configuration that FINN's step_apply_folding_config takes.

    request: target_fps, an integer or "max"; available: what the board has, by RESOURCES; must_fit. The choice is made on a copy
    whose bit widths are minimized, as FINN does after folding; the model stays as it is. Raises Infeasible.
    """
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup
    from qonnx.transformation.general import GiveUniqueNodeNames

    target = request["target_fps"]
    cycles = None if target == "max" else int(1e9 / request["clock_ns"] / target)
    written: set[str] = set()
    at_least = 0
    while True:
        draft = type(model)(copy.deepcopy(model.model)).transform(GiveUniqueNodeNames())
        for node in draft.graph.node:
            if node.name in written:
                custom_of(node).set_nodeattr(WRITEABLE, 1)
        draft = build_dataflow_step_lookup["step_minimize_bit_width"](draft, config)
        done = fold(draft, config._resolve_fpga_part(), cycles, available(request), request["must_fit"], at_least)
        more = {name for name, each in done.attributes.items() if each.get(WRITEABLE)} - written
        if not more:
            break
        # weights that are written later may be any, so that the sums become wider, which costs more: choose again with that
        written |= more
        at_least = done.cycles
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"Defaults": {}, **done.attributes}, indent=2) + "\n")
    return {"cycles": done.cycles, "fits": done.fits}


def available(request: dict[str, Any]) -> Costs:
    """What the board has."""
    lut, bram18, dsp, uram = (float(request["available"][name]) for name in RESOURCES)
    return lut, bram18, dsp, uram


def price(model: Any, part: str, request: dict[str, Any]) -> dict[str, Any]:
    """Our prices of a folded model: `layers`, node -> costs, and `streams`, what FINN puts between them later.

    `silent`: nodes for which FINN says 0 of everything; `written`: nodes whose weights are written at start. request: available;
    fifo_depths, by a simulation, if there is one. Raises UnknownStream where these are of other hardware.
    """
    from finn.util.basic import is_versal

    prices = Prices(is_versal(part), available(request)[RESOURCES.index("uram")] > 0)
    layers, silent, written = {}, [], []
    for node in model.graph.node:
        layer = custom_of(node)
        layers[node.name] = ours(layer, part, is_narrow(model, node))
        if not any(finns(layer, part)):
            silent.append(node.name)
        if "runtime_writeable_weights" in layer.get_nodeattr_types() and layer.get_nodeattr(
            "runtime_writeable_weights"
        ):
            written.append(node.name)
    return {
        "layers": layers,
        "streams": list(_streams(model, prices, request.get("fifo_depths"))),
        "silent": silent,
        "written": written,
    }


def prices_of(node: Any, model: Any, part: str) -> dict[str, Costs]:
    """Our price and FINN's of a layer that stands in the generated model, which has width converters too."""
    layer = custom_of(node)
    return {"ours": ours(layer, part, is_narrow(model, node)), "finn": finns(layer, part)}


def foldings(
    layers: list[Any], part: str, board: Costs, most_cycles: int, ultra: bool, emphases: Sequence[Costs]
) -> tuple[list[tuple[Costs, int]], Costs]:
    """Costs and cycles of layers folded together without neighbours, once for each emphasis; and FINN's costs of the first.

    The least sum of shares of `board`, each times its emphasis, at so many cycles; where none is fast enough, of the fastest.
    With an emphasis of 1 on everything it is the choice that `fold` makes where no resource is short.
    """
    import numpy as np
    from finn.util.basic import is_versal

    members, prices = [Member(layer, narrow=True) for layer in layers], Prices(versal=is_versal(part), ultra=ultra)
    found = candidates(members, part, prices, {}, most_cycles)
    if not found:
        every = candidates(members, part, prices, {})
        fewest = min(each.cycles for each in every)
        found = [each for each in every if each.cycles == fewest]
    there = np.array([each or np.inf for each in board])
    shares = np.array([each.costs for each in found]) / there
    chosen = [found[int((shares * emphasis).sum(1).argmin())] for emphasis in emphases]
    for member, attributes in zip(members, chosen[0].attributes.values(), strict=True):
        member.attributes.update(attributes)
        for name, value in attributes.items():
            member.layer.set_nodeattr(name, value)  # in the node too, from which a block makes the unit that it asks
    theirs = add(*(finns(member.layer, part) for member in members))
    return [(each.costs, each.cycles) for each in chosen], theirs


def _streams(model: Any, prices: Prices, depths: dict[str, int] | None) -> Any:
    waiting = waiting_pixels(model, custom_of)
    for tensor, writer, reader in edges(model):
        source, sink = custom_of(writer), custom_of(reader)
        output, port = list(writer.output).index(tensor), list(reader.input).index(tensor)
        written, read = int(source.get_outstream_width(output)), int(sink.get_instream_width(port))
        if depths is None:
            before, depth = SHALLOW, words(sink, port, waiting.get((reader.name, tensor), 0), read)
        else:
            before, depth = simulated(depths, writer.name, output, written != read)
        yield {"tensor": tensor, "reader": reader.name, "kind": "StreamingFIFO", "depth": depth,
               "costs": prices.fifo(depth, read)}  # fmt: skip
        if written != read:
            yield {"tensor": tensor, "reader": reader.name, "kind": "StreamingDataWidthConverter",
                   "depth": before, "costs": prices.converter(written, read, before)}  # fmt: skip
