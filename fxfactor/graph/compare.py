"""Do two networks compute the same? Inputs for both, and the difference of what they give."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fxfactor.graph.questions import placeholders, shape_of


def random_inputs(graph: GraphModule, seed: int = 0) -> tuple[Tensor, ...]:
    """Normally distributed inputs of the shapes that `graph` was captured with; the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    parameter = next(graph.parameters(), torch.empty(0))
    return tuple(
        torch.randn(shape_of(node), generator=generator, dtype=torch.float64).to(parameter)
        for node in placeholders(graph)
        if "tensor_meta" in node.meta
    )


def relative_difference(found: Any, wanted: Any) -> float:
    """Largest |found − wanted| over all tensors in the two outputs, divided by the largest |wanted|; 0 if equal.

    NaN where a tensor holds one.
    """
    pairs = [pair for pair in zip(tree_leaves(found), tree_leaves(wanted), strict=True) if isinstance(pair[1], Tensor)]
    scale = float(torch.stack([b.double().abs().max() for _, b in pairs]).max())
    largest = float(torch.stack([(a.double() - b.double()).abs().max() for a, b in pairs]).max())
    return largest / scale if scale > 0 else largest
