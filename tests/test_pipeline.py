"""Passes and pipelines: pure from outside, checked, verified, reported."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import FrozenInstanceError, dataclass
from typing import ClassVar

import pytest
import torch
from networks import ResidualNet, difference_in_float64, fingerprint, randomized
from torch import nn
from torch.fx import GraphModule

from fxfactor import Change, GraphError, Pass, PassResult, Pipeline, PreconditionError, Skip, capture
from fxfactor.graph import convolutions, insert_after, module_of
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, Quantize
from fxfactor.pipeline import HISTORY

ALL = [FactorizeDepth(level=2), FoldBatchNorm(), Quantize(4, 4)]


@pytest.fixture
def graph() -> GraphModule:
    return capture(randomized(ResidualNet()), torch.zeros(2, 3, 16, 16))


@dataclass(frozen=True)
class ForgetEps(Pass):
    """A fold as it is found in the wild: the batch norm loses its eps."""

    exact: ClassVar[bool] = True

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        for name, module in graph.named_modules():
            if isinstance(module, nn.BatchNorm2d):
                module.eps = 0.0
                yield Change(name, ("without eps",))


@dataclass(frozen=True)
class LeaveDeadNodes(Pass):
    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        node, _ = next(convolutions(graph))
        with graph.graph.inserting_after(node):
            graph.graph.call_module(str(node.target), (node.args[0],))
        node.replace_all_uses_with(node)
        yield Change(str(node.target), ())


@dataclass(frozen=True)
class CallTwice(Pass):
    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        node = next(node for node in graph.graph.nodes if isinstance(module_of(node), nn.ReLU))
        insert_after(graph, node, str(node.target), module_of(node))
        yield Change(str(node.target), ())


def test_verify_catches_a_pass_that_is_not_exact(graph):
    assert ForgetEps()(graph).changes
    with pytest.raises(GraphError, match=r"ForgetEps\(\) calls itself exact but changed the function: .* in float64"):
        Pipeline(ForgetEps(), verify=True)(graph)


def test_verify_passes_exact_passes_and_ignores_the_others(graph):
    result = Pipeline(FoldBatchNorm(), *ALL[::2], verify=True)(graph)
    assert len(result.changes) > 5


def test_a_pass_that_breaks_the_normal_form_is_named(graph):
    with pytest.raises(GraphError, match=r"'[\w.]+' \(ReLU\), which has no parameters, is called by 2 nodes") as caught:
        CallTwice()(graph)
    assert str(caught.value).endswith("while running CallTwice()")


def test_dead_nodes_are_swept_up(graph):
    assert LeaveDeadNodes()(graph).graph.code == graph.code


@pytest.mark.parametrize("each", ALL, ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("training", [True, False])
def test_a_pass_copies_and_keeps_the_mode(graph, each, training):
    graph.train(training)
    before = fingerprint(graph), graph.code
    result = each(graph)
    assert isinstance(result, PassResult)
    assert (fingerprint(graph), graph.code) == before
    assert result.graph is not graph
    assert all(module.training == training for module in result.graph.modules())
    assert not {id(p) for p in graph.parameters()} & {id(p) for p in result.graph.parameters()}


@pytest.mark.parametrize("each", ALL, ids=lambda each: type(each).__name__)
def test_a_second_run_yields_only_skips(graph, each):
    once = each(graph)
    again = each(once.graph)
    assert once.changes
    assert again.changes == ()
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(again.graph(images), once.graph(images))


@pytest.mark.parametrize("each", ALL, ids=lambda each: type(each).__name__)
def test_a_pass_prints_compares_and_freezes(each):
    assert each == copy.copy(each)
    assert type(each).__name__ in repr(each)
    with pytest.raises(FrozenInstanceError):
        each.exact = True


def test_one_module_in_another_mode_keeps_it(graph):
    graph.train()
    graph.block.conv1.eval()
    result = FactorizeDepth(level=1)(graph).graph
    assert not result.block.conv1.spatial.training
    assert result.block.conv2.spatial.training


def test_history_goes_on_from_pass_to_pass(graph):
    first = FactorizeDepth(level=2)(graph)
    second = Quantize(4, 4)(first.graph)
    records = [*first.changes, *first.skips]
    assert HISTORY not in graph.meta
    assert sorted(map(repr, first.graph.meta[HISTORY])) == sorted(map(repr, records))
    assert second.graph.meta[HISTORY][: len(records)] == first.graph.meta[HISTORY]
    assert second.changes[0] in second.graph.meta[HISTORY]


def test_a_pipeline_is_its_passes_in_a_row(graph):
    together = Pipeline(*ALL)(graph)
    one_by_one = graph
    for each in ALL:
        one_by_one = each(one_by_one).graph
    assert together.graph.code == one_by_one.code
    images = torch.randn(2, 3, 16, 16)
    assert torch.equal(together.graph(images), one_by_one(images))


def test_an_empty_pipeline_copies(graph):
    result = Pipeline()(graph)
    assert result.graph.code == graph.code
    assert (result.changes, result.skips) == ((), ())


def test_what_is_no_graph_is_refused():
    with pytest.raises(PreconditionError, match=r"a pass works on a graph in normal form, found ResidualNet"):
        FoldBatchNorm()(ResidualNet())


def test_a_graph_in_another_form_is_refused():
    traced = torch.fx.symbolic_trace(ResidualNet())
    with pytest.raises(GraphError, match="has no known shape") as caught:
        FoldBatchNorm()(traced)
    assert "call fxfactor.capture(model) first" in str(caught.value)


def test_a_failing_pass_leaves_the_graph_untouched(graph):
    before = fingerprint(graph)
    with pytest.raises(PreconditionError, match="no convolution or linear layer"):
        FactorizeDepth(level=1, keep=("nowhere",))(graph)
    with pytest.raises(GraphError):
        CallTwice()(graph)
    assert fingerprint(graph) == before
    assert difference_in_float64(graph, graph, (2, 3, 16, 16)) == 0
