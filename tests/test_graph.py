"""The normal form: what is refused, how sites are found, and the edits that passes are made of."""

from __future__ import annotations

import operator
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxfactor
from fxfactor.errors import GraphError, PreconditionError
from fxfactor.graph import (
    check_graph,
    finish,
    free_path,
    insert_after,
    module_of,
    placeholders,
    propagate_shapes,
    put_module,
    replace_with_chain,
    set_shape,
    shape_of,
    sites,
    to_networkx,
)
from fxfactor.graph.normal_form import restore_training

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


@pytest.fixture
def graph() -> GraphModule:
    return fxfactor.capture(Block().eval(), torch.zeros(SHAPE))


def _node(graph: GraphModule, target: str) -> torch.fx.Node:
    return next(node for node in graph.graph.nodes if str(node.target) == target)


def test_a_captured_network_is_in_the_normal_form(graph: GraphModule) -> None:
    check_graph(graph)
    assert list(sites(graph)) == ["first", "second"]
    assert shape_of(_node(graph, "second")) == (2, 8, 4, 5)


# ---- what is refused ----


def test_a_dead_node(graph: GraphModule) -> None:
    relu = _node(graph, "relu")
    with graph.graph.inserting_after(relu):
        set_shape(graph.graph.call_function(operator.neg, (relu,)), relu)
    with pytest.raises(GraphError, match=r"node 'neg' \(call_function .*\) is dead: nothing uses it; erase it"):
        check_graph(graph)


def test_a_layer_that_is_called_twice(graph: GraphModule) -> None:
    relu = _node(graph, "relu")
    with graph.graph.inserting_after(relu):
        again = graph.graph.call_module("first", (relu,))
    relu.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)
    set_shape(again, relu)
    with pytest.raises(GraphError, match=r"module 'first' \(Conv2d\) is called by 2 nodes \(first, first_1\)"):
        check_graph(graph)


def test_one_object_at_two_paths(graph: GraphModule) -> None:
    insert_after(graph, _node(graph, "second"), "again", graph.get_submodule("relu"))
    with pytest.raises(GraphError, match="modules 'relu' and 'again' are one object; give each its own copy"):
        check_graph(graph)


def test_a_layer_as_a_function(graph: GraphModule) -> None:
    relu = _node(graph, "relu")
    with graph.graph.inserting_after(relu):
        weight = graph.graph.get_attr("first.weight")
    with graph.graph.inserting_after(weight):
        call = graph.graph.call_function(F.conv2d, (relu, weight), {"padding": 1})
    relu.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    with pytest.raises(GraphError, match="node 'conv2d' calls conv2d as a function; the normal form has a module"):
        check_graph(graph)


def test_a_module_call_without_a_shape(graph: GraphModule) -> None:
    del _node(graph, "relu").meta["tensor_meta"]
    with pytest.raises(GraphError, match=r"node 'relu' \(call_module relu\) has no known shape; run propagate_shapes"):
        check_graph(graph)


def test_inputs_that_do_not_fit_name_the_layer(graph: GraphModule) -> None:
    with pytest.raises(PreconditionError, match=r"\[\(2, 3, 6, 5\)\] do not fit the network: it fails at 'first'"):
        propagate_shapes(graph, (torch.zeros(2, 3, 6, 5),))


# ---- sites ----


def test_two_factors_are_one_site_and_lookalikes_are_not() -> None:
    def factors(second: str) -> nn.Module:
        return nn.Sequential(OrderedDict({"spatial": nn.Conv2d(4, 4, 3, groups=2), second: nn.Conv2d(4, 8, 1)}))

    model = nn.Sequential(factors("pointwise"), nn.Conv2d(8, 4, 1), factors("other"))
    found = sites(fxfactor.capture(model.eval(), torch.zeros(1, 4, 9, 9)))
    assert list(found) == ["0", "1", "2.spatial", "2.other"]
    assert [site.factorized for site in found.values()] == [True, False, False, False]
    assert [str(node.target) for node in found["0"].nodes] == ["0.spatial", "0.pointwise"]


# ---- edits ----


def test_insert_after_only_some_users(graph: GraphModule) -> None:
    (entry,) = placeholders(graph)
    first = _node(graph, "first")
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
    second = _node(graph, "second")
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


def test_new_modules_take_the_mode_of_what_they_stand_in(graph: GraphModule) -> None:
    before = {name: name == "second" for name, _ in graph.named_modules()}
    put_module(graph, "second.new.inner", nn.ReLU())
    put_module(graph, "elsewhere", nn.ReLU())
    restore_training(graph, before)
    modes = {name: module.training for name, module in graph.named_modules()}
    assert modes["second.new.inner"]
    assert modes["second"]
    assert not modes["elsewhere"]
    assert not modes["first"]


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
