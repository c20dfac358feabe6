"""Blocks of a network: where they end, and how far two networks are apart there."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxfactor.graph.questions import layers, shape_of


def cosine(progress: float, warm_up: float = 1.0) -> float:
    """Share of the learning rate: half a cosine from 1 at progress 0 to 0 at 1, times warm_up while that is below 1."""
    return 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, warm_up)


def boundaries(graph: GraphModule) -> list[Node]:
    """Where blocks end: nodes that everything later depends on through them alone, in the order of execution.

    No edge of the graph jumps over such a node; at least one convolution or linear layer stands between two of them,
    and a layer or a pooling comes next. The residual blocks of a ResNet, the layers of a VGG.
    """
    nodes = [node for node in graph.graph.nodes if node.op != "get_attr"]
    index = {node: position for position, node in enumerate(nodes)}
    layer_at = [index[node] for node, _ in layers(graph)]
    cuts, reach = [], 0
    for node in nodes:
        if node.op.startswith("call") and reach <= index[node] and "tensor_meta" in node.meta:
            cuts.append(node)
        reach = max(reach, *(index[user] for user in node.users), 0)
    found, begin = [], -1
    for cut, after in pairwise(cuts):
        here, next_one = index[cut], index[after]
        shrinks = math.prod(shape_of(after)) < math.prod(shape_of(cut))
        if any(begin < at <= here for at in layer_at) and (shrinks or any(here < at <= next_one for at in layer_at)):
            found.append(cut)
            begin = here
    return found


def batch_norms(graph: nn.Module) -> nn.ModuleList:
    """The batch norms of a network, to set their mode."""
    return nn.ModuleList(each for each in graph.modules() if isinstance(each, nn.modules.batchnorm._BatchNorm))


class Matching(nn.Module):
    """Runs both networks on the same images and returns how far apart they are, and the compressed network's output."""

    def __init__(self, original: GraphModule, graph: GraphModule) -> None:
        super().__init__()
        common = {node.name: node for node in graph.graph.nodes}
        names = [n.name for n in boundaries(original) if n.name in common and shape_of(n) == shape_of(common[n.name])]
        self.student = with_taps(graph, names)
        self.teacher = [with_taps(original, names)]  # in a list: not a submodule, so its parameters are not ours

    def forward(self, images: Tensor) -> tuple[Tensor, Any]:
        with torch.no_grad():
            wanted_output, wanted = self.teacher[0](images)
        output, found = self.student(images)
        outputs = zip(tree_leaves(output), tree_leaves(wanted_output), strict=True)
        loss = torch.stack([relative_error(a, b) for a, b in outputs]).mean()
        if found:
            loss = loss + torch.stack([relative_error(a, b) for a, b in zip(found, wanted, strict=True)]).mean()
        return loss, output


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted − its mean‖², a scalar."""
    found, wanted = found.float(), wanted.float()
    return F.mse_loss(found, wanted) / wanted.var(correction=0).clamp_min(1e-12)


def with_taps(graph: GraphModule, names: list[str]) -> GraphModule:
    """The same network, sharing all modules, that returns (its output, [the tensors at the nodes `names`])."""
    copied = Graph()
    kept: dict[Node, Node] = {}
    output = copied.graph_copy(graph.graph, kept)
    taps = {node.name: new for node, new in kept.items()}
    copied.output((output, [taps[name] for name in names]))
    return GraphModule(graph, copied)


@contextmanager
def channels_last(graph: nn.Module) -> Iterator[None]:
    """Keep the weights of 2d layers in channels_last meanwhile: grouped convolutions train twice as fast on a CPU."""
    cast(Any, graph).to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        cast(Any, graph).to(memory_format=torch.contiguous_format)
