"""Questions about which tensors meet and what they went through, on one network that has every case."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxfactor
from fxfactor.graph import is_quantizer, module_of
from fxfactor.graph.dataflow import (
    consumers,
    input_quantizer,
    is_addition,
    is_concatenation,
    is_join,
    is_transparent,
    never_negative,
    quantizer_of,
    sources,
    tensor_inputs,
)


class Branches(nn.Module):
    """Two convolutions, one after a ReLU and max pooling, concatenated, then added to themselves shifted by one."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 4, 1)
        self.relu, self.pool = nn.ReLU(), nn.MaxPool2d(2)
        self.average, self.last = nn.AdaptiveAvgPool2d(1), nn.Linear(8, 2)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.pool(self.relu(self.left(x))), self.right(x)[:, :, ::2, ::2]
        both = torch.cat([left, right], 1)
        both = both + both.flip(1) + 1.0
        return self.last(torch.flatten(self.average(both), 1))


@pytest.fixture
def graph() -> GraphModule:
    return fxfactor.capture(Branches().eval(), torch.zeros(1, 3, 8, 8))


def _named(graph: GraphModule) -> dict[str, Node]:
    return {node.name: node for node in graph.graph.nodes}


def test_kinds_of_nodes(graph: GraphModule) -> None:
    nodes = _named(graph)
    assert [name for name, node in nodes.items() if is_transparent(node)] == ["pool", "getitem", "flatten"]
    assert [name for name, node in nodes.items() if is_concatenation(node)] == ["cat"]
    assert [name for name, node in nodes.items() if is_addition(node)] == ["add"]  # `+ 1.0` joins nothing
    assert [name for name, node in nodes.items() if is_join(node)] == ["cat", "add"]
    assert tensor_inputs(nodes["cat"]) == [nodes["pool"], nodes["getitem"]]


def test_sources_are_seen_through_pooling_slices_and_concatenations(graph: GraphModule) -> None:
    nodes = _named(graph)
    assert sources(nodes["cat"]) == [nodes["relu"], nodes["right"]]
    assert sources(nodes["pool"]) == [nodes["relu"]]
    assert sources(nodes["flatten"]) == [nodes["average"]]


def test_consumers_are_seen_through_them_too(graph: GraphModule) -> None:
    nodes = _named(graph)
    assert set(consumers(nodes["relu"])) == {nodes["cat"], nodes["add"], nodes["flip"]}
    assert consumers(nodes["relu"], beyond_joins=False) == [nodes["cat"]]
    assert consumers(nodes["average"]) == [nodes["last"]]


def test_never_negative_needs_all_branches(graph: GraphModule) -> None:
    nodes = _named(graph)
    assert never_negative(nodes["pool"])
    assert not never_negative(nodes["right"])
    assert not never_negative(nodes["cat"])


def test_a_difference_may_be_negative() -> None:
    class Difference(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return torch.relu(x) - torch.sigmoid(x)

    graph = fxfactor.capture(nn.Sequential(nn.Conv2d(3, 3, 1), Difference()).eval(), torch.zeros(1, 3, 4, 4))
    (output,) = next(node for node in graph.graph.nodes if node.op == "output").all_input_nodes
    assert is_addition(output)
    assert all(never_negative(node) for node in tensor_inputs(output))
    assert not never_negative(output)


def test_the_quantizer_that_a_tensor_went_through(graph: GraphModule) -> None:
    quantized = fxfactor.transform(graph, level=0, bits=4)
    nodes = _named(quantized)
    before_last = quantizer_of(nodes["flatten"])
    assert before_last is not None
    assert is_quantizer(before_last)
    assert input_quantizer(nodes["last"]) is before_last
    left, right = (input_quantizer(nodes[name]) for name in ("left", "right"))
    assert left is right is module_of(next(node for node in nodes["left"].all_input_nodes))
    assert quantizer_of(nodes["left"]) is None
