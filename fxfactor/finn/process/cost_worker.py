"""Asks FINN what single hardware layers cost; a script of its own, started by `fxfactor.finn.layer_costs`.

It needs finn-plus and nothing of fxfactor, so that it can run in another environment. It reads a request (JSON file) and
sends events to a file descriptor, as worker.py does. The layers stand in one model without a network around them: FINN
chooses HLS or RTL for each, `folding/` folds it to the target by itself, and its prices are asked.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

DOMAIN = "finn.custom_op.fpgadataflow"
NAMES = ("lut", "bram", "dsp", "uram")


def load_worker() -> Any:
    """The module worker.py, which lies beside this file."""
    spec = spec_from_file_location("finn_worker", Path(__file__).with_name("worker.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def build(chains: list[Any], part: str) -> tuple[Any, list[list[Any]]]:
    """One model with all chains of layers, specialised for the part, and the nodes of each chain."""
    import numpy as np
    from finn.transformation.fpgadataflow.specialize_layers import _determine_impl_style
    from onnx import helper, numpy_helper
    from qonnx.core.modelwrapper import ModelWrapper

    # as Brevitas' weights are, in narrow range: -7 … 7 in 4 bits. FINN asks only for the least of them
    least = {bits: np.full((1, 1), 1 - 2 ** (bits - 1), np.float32) for bits in range(2, 33)}
    weights = [numpy_helper.from_array(value, f"weights{bits}") for bits, value in least.items()]
    model = ModelWrapper(helper.make_model(helper.make_graph([], "layers", [], [], initializer=weights)))
    nodes = []
    for index, chain in enumerate(chains):
        members = []
        for position, (kind, attributes) in enumerate(chain):
            inputs = [f"{index}.{position}"]
            if "weightDataType" in attributes:
                inputs.append(f"weights{attributes['weightDataType'].lstrip('UINT')}")
            node = helper.make_node(
                kind, inputs, [f"{index}.{position + 1}"], f"{index}.{position}", domain=DOMAIN, backend="fpgadataflow",
                **attributes,
            )  # fmt: skip
            style = _determine_impl_style(node, part, model)
            node.op_type, node.domain = f"{kind}_{style}", f"{DOMAIN}.{style}"
            members.append(node)
        nodes.append(members)
    model.graph.node.extend(node for members in nodes for node in members)
    placed = iter(model.graph.node)
    return model, [[next(placed) for _ in members] for members in nodes]


def price(request: dict[str, Any], folding: Any) -> list[list[dict[str, float]]]:
    """LUTs, 18 kbit block RAMs, DSPs and UltraRAMs of every chain, and the cycles of its slowest layer.

    Each chain is folded and priced as `folding` does it in a whole network, its width converters left out; once for each
    emphasis of the request, the first time by FINN too.
    """
    from finn.builder.build_dataflow_config import DataflowBuildConfig
    from qonnx.custom_op.registry import getCustomOp

    config = DataflowBuildConfig(
        output_dir=request["folder"],
        board=request["board"],
        synth_clk_period_ns=request["clock_ns"],
        generate_outputs=[],
    )
    part, board = config._resolve_fpga_part(), folding.available(request)
    _, chains = build(request["chains"], part)
    most_cycles = int(1e9 / request["clock_ns"] / request["target_fps"])
    prices = []
    for members in chains:
        layers = [getCustomOp(node) for node in members]
        found, finns = folding.foldings(layers, part, board, most_cycles, board[3] > 0, request["emphases"])
        priced = [{**dict(zip(NAMES, ours, strict=True)), "cycles": cycles} for ours, cycles in found]
        priced[0] |= {f"finn_{name}": cost for name, cost in zip(NAMES, finns, strict=True)}
        prices.append(priced)
    return prices


def main(arguments: list[str]) -> int:
    """`cost_worker.py REQUEST DESCRIPTOR`: send the prices to the descriptor, or how FINN is missing."""
    worker = load_worker()
    worker.end_with_parent()
    request = json.loads(Path(arguments[0]).read_text())
    channel = worker.Channel(int(arguments[1]))
    os.environ["FINN_BUILD_DIR"] = request["folder"]
    try:
        worker.require_finn()
        worker.load("fast_lookups").use_fast_lookups()
        worker.load("grouped_mvau")
        worker.load("integer_requant")
        channel.send({"event": "prices", "step": "pricing", "prices": price(request, worker.load_folding())})
    except worker.Stop as stop:
        channel.send(stop.event)
        return 1
    except MemoryError:
        channel.send({"event": "stop", "kind": "memory"})
        return 1
    channel.send({"event": "done"})
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its module names must not stand in for others
    sys.exit(main(sys.argv[1:]))
