"""What `fxfactor.export(..., target="finn")` does to the network before it writes it."""

from __future__ import annotations

from torch.fx import GraphModule

from fxfactor.passes.legalize_for_finn import LegalizeForFinn


def legalize(graph: GraphModule) -> GraphModule:
    """The same function in forms that FINN maps to hardware (`fxfactor.passes.LegalizeForFinn`); `graph` is kept."""
    return LegalizeForFinn()(graph).graph
