"""A small network for the tests of the graph."""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import GraphModule

SHAPE = (2, 4, 6, 5)


class Block(nn.Module):
    """conv → relu → + input → conv."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(4, 4, 3, padding=1)
        self.relu = nn.ReLU()
        self.second = nn.Conv2d(4, 8, (3, 1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.second(self.relu(self.first(x)) + x)


def node(graph: GraphModule, target: str) -> torch.fx.Node:
    return next(node for node in graph.graph.nodes if str(node.target) == target)
