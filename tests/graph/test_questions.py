"""Questions to a graph: sites, modules, the graph for networkx."""

from __future__ import annotations

from collections import OrderedDict

import torch
from graph_helpers import SHAPE
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.graph import (
    module_of,
    placeholders,
    sites,
    to_networkx,
)


def test_two_factors_are_one_site_and_lookalikes_are_not() -> None:
    def factors(second: str) -> nn.Module:
        return nn.Sequential(OrderedDict({"spatial": nn.Conv2d(4, 4, 3, groups=2), second: nn.Conv2d(4, 8, 1)}))

    model = nn.Sequential(factors("pointwise"), nn.Conv2d(8, 4, 1), factors("other"))
    found = sites(fxfactor.capture(model.eval(), torch.zeros(1, 4, 9, 9)))
    assert list(found) == ["0", "1", "2.spatial", "2.other"]
    assert [site.factorized for site in found.values()] == [True, False, False, False]
    assert [str(node.target) for node in found["0"].nodes] == ["0.spatial", "0.pointwise"]


def test_to_networkx(graph: GraphModule) -> None:
    import networkx

    found = to_networkx(graph)
    assert networkx.is_directed_acyclic_graph(found)
    assert found.nodes["first"] == {"op": "call_module", "target": "first", "module": "Conv2d", "shape": SHAPE}
    assert set(found.successors("x")) == {"first", "add"}
    assert networkx.shortest_path(found, "x", "second") == ["x", "add", "second"]


def test_module_of_what_is_no_module(graph: GraphModule) -> None:
    assert module_of(placeholders(graph)[0]) is None
    assert module_of(3) is None
