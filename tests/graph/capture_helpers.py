"""Networks that are hard to capture."""

from __future__ import annotations

import torch

from fxfactor.graph import module_of

IMAGE = (2, 3, 16, 16)


def kinds(graph: torch.fx.GraphModule) -> list[str]:
    """Class names of the modules called, in order."""
    return [type(module_of(node)).__name__ for node in graph.graph.nodes if node.op == "call_module"]
