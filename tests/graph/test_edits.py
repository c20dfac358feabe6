"""Edits of a graph: insertions, chains in place of a layer, free paths."""

from __future__ import annotations

import torch
from graph_helpers import SHAPE, node
from torch import nn
from torch.fx import GraphModule

from fxfactor.graph import (
    check_graph,
    finish,
    free_path,
    insert_after,
    placeholders,
    put_module,
    replace_with_chain,
    shape_of,
    sites,
)


def test_insert_after_only_some_users(graph: GraphModule) -> None:
    (entry,) = placeholders(graph)
    first = node(graph, "first")
    new = insert_after(graph, entry, "entry.scaled", nn.Sigmoid(), only=[first])
    addition = next(node for node in entry.users if node not in (new, first))
    assert first.args == (new,)
    assert entry in addition.args
    assert shape_of(new) == SHAPE
    check_graph(finish(graph))
    x = torch.randn(SHAPE)
    with torch.no_grad():
        wanted = graph.second(graph.relu(graph.first(x.sigmoid())) + x)
        torch.testing.assert_close(graph(x), wanted, rtol=0, atol=0)


def test_replace_with_chain(graph: GraphModule) -> None:
    second = node(graph, "second")
    pair = {
        "spatial": (nn.Conv2d(4, 4, (3, 1), groups=4), (2, 4, 4, 5)),
        "pointwise": (nn.Conv2d(4, 8, 1), (2, 8, 4, 5)),
    }
    nodes = replace_with_chain(graph, second, pair)
    check_graph(finish(graph))
    assert [str(node.target) for node in nodes] == ["second.spatial", "second.pointwise"]
    assert list(sites(graph)) == ["first", "second"]
    assert graph(torch.zeros(SHAPE)).shape == shape_of(nodes[-1])


def test_paths() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 1))
    put_module(model, "made.on.the_way", nn.ReLU())
    assert isinstance(model.get_submodule("made.on.the_way"), nn.ReLU)
    assert free_path(model, "made.on.the_way") == "made.on.the_way_1"
    assert free_path(model, "made.on.other") == "made.on.other"
    assert free_path(model, "0.weight") == "0.weight_1"  # a parameter stands there
    put_module(model, "made.on", nn.Tanh())
    assert isinstance(model.get_submodule("made.on"), nn.Tanh)
