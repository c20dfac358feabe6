"""The normal form: what is checked, how shapes are propagated, modes of new modules."""

from __future__ import annotations

import operator

import pytest
import torch
from graph_helpers import node
from torch import nn
from torch.fx import GraphModule
from torch.nn import functional as F

from fxfactor.errors import GraphError, PreconditionError
from fxfactor.graph import (
    check_graph,
    insert_after,
    propagate_shapes,
    put_module,
    set_shape,
    shape_of,
    sites,
)
from fxfactor.graph.normal_form import restore_training


def test_a_captured_network_is_in_the_normal_form(graph: GraphModule) -> None:
    check_graph(graph)
    assert list(sites(graph)) == ["first", "second"]
    assert shape_of(node(graph, "second")) == (2, 8, 4, 5)


def test_a_dead_node(graph: GraphModule) -> None:
    relu = node(graph, "relu")
    with graph.graph.inserting_after(relu):
        set_shape(graph.graph.call_function(operator.neg, (relu,)), relu)
    with pytest.raises(GraphError, match=r"node 'neg' \(call_function .*\) is dead: nothing uses it; erase it"):
        check_graph(graph)


def _call_again(graph: GraphModule, path: str) -> None:
    relu = node(graph, "relu")
    with graph.graph.inserting_after(relu):
        again = graph.graph.call_module(path, (relu,))
    relu.replace_all_uses_with(again, delete_user_cb=lambda user: user is not again)
    set_shape(again, relu)


def test_a_layer_may_be_called_twice(graph: GraphModule) -> None:
    _call_again(graph, "first")
    check_graph(graph)


def test_a_module_without_parameters_that_is_called_twice(graph: GraphModule) -> None:
    _call_again(graph, "relu")
    with pytest.raises(
        GraphError, match=r"module 'relu' \(ReLU\), which has no parameters, is called by 2 nodes \(relu, relu"
    ):
        check_graph(graph)


def test_one_object_at_two_paths(graph: GraphModule) -> None:
    insert_after(graph, node(graph, "second"), "again", graph.get_submodule("relu"))
    with pytest.raises(GraphError, match="modules 'relu' and 'again' are one object; give each its own copy"):
        check_graph(graph)


def test_a_layer_as_a_function(graph: GraphModule) -> None:
    relu = node(graph, "relu")
    with graph.graph.inserting_after(relu):
        weight = graph.graph.get_attr("first.weight")
    with graph.graph.inserting_after(weight):
        call = graph.graph.call_function(F.conv2d, (relu, weight), {"padding": 1})
    relu.replace_all_uses_with(call, delete_user_cb=lambda user: user is not call)
    with pytest.raises(GraphError, match="node 'conv2d' calls conv2d as a function; the normal form has a module"):
        check_graph(graph)


def test_a_module_call_without_a_shape(graph: GraphModule) -> None:
    del node(graph, "relu").meta["tensor_meta"]
    with pytest.raises(GraphError, match=r"node 'relu' \(call_module relu\) has no known shape; run propagate_shapes"):
        check_graph(graph)


def test_inputs_that_do_not_fit_name_the_layer(graph: GraphModule) -> None:
    with pytest.raises(PreconditionError, match=r"\[\(2, 3, 6, 5\)\] do not fit the network: it fails at 'first'"):
        propagate_shapes(graph, (torch.zeros(2, 3, 6, 5),))


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
