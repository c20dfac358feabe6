"""The target of a convolution before an addition, against the formula written out."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import Lambda, conv_bn_relu, randomized
from torch import Tensor, nn
from torch.fx import GraphModule, Node

import fxfactor
from fxfactor.factors import fit_to_outputs as fitting
from fxfactor.factors.lockstep import Lockstep
from fxfactor.factors.sums import SumTarget, addition_behind
from fxfactor.passes import FactorizeDepth

C = 16


def network(forward: object, **more: nn.Module) -> GraphModule:
    """A stem and two blocks' worth of layers; `forward(m, x)` joins them."""
    torch.manual_seed(0)
    layers = {
        "stem": conv_bn_relu(3, C),
        "conv1": nn.Conv2d(C, C, 3, padding=1, bias=False),
        "bn1": nn.BatchNorm2d(C),
        "conv2": nn.Conv2d(C, C, 3, padding=1, bias=False),
        "bn2": nn.BatchNorm2d(C),
        **more,
    }
    return fxfactor.capture(randomized(Lambda(forward, **layers)), torch.zeros(1, 3, 9, 9))  # type: ignore[arg-type]


def two_blocks(m: nn.Module, x: Tensor) -> Tensor:
    x = m.stem(x)
    x = (m.bn1(m.conv1(x)) + x).relu()
    return (x + m.bn2(m.conv2(x))).relu()


def node_at(graph: GraphModule, path: str) -> Node:
    return next(node for node in graph.graph.nodes if node.target == path)


def images(count: int = 16, seed: int = 0) -> list[Tensor]:
    return list(torch.randn(count, 3, 9, 9, generator=torch.Generator().manual_seed(seed)).split(4))


def test_the_addition_is_found_through_batch_norm_and_quantizer() -> None:
    graph = network(two_blocks)
    found = addition_behind(node_at(graph, "conv1"))
    assert found is not None
    assert found.norm is graph.get_submodule("bn1")
    assert found.other is next(iter(node_at(graph, "conv1").all_input_nodes))
    quantized = fxfactor.transform(graph, bits=4)
    behind = addition_behind(node_at(quantized, "conv1"))
    assert behind is not None
    assert behind.norm is quantized.get_submodule("bn1")


@pytest.mark.parametrize(
    "forward",
    [
        lambda m, x: m.bn2(m.conv2(m.bn1(m.conv1(m.stem(x))))),
        lambda m, x: (lambda y: torch.cat([m.bn1(m.conv1(y)), y], 1))(m.stem(x)),
        lambda m, x: (lambda y: m.bn1(m.conv1(y)).relu() + y)(m.stem(x)),
        lambda m, x: (lambda y: y + y)(m.bn1(m.conv1(m.stem(x)))),
        lambda m, x: (lambda y: y - m.bn1(m.conv1(y)))(m.stem(x)),
    ],
    ids=["no addition", "concatenation", "activation between", "added to itself", "subtraction"],
)
def test_there_is_no_addition_behind(forward: object) -> None:
    graph = network(forward)
    assert addition_behind(node_at(graph, "conv1")) is None


def test_the_target_is_the_original_sum_less_the_compressed_shortcut() -> None:
    original = network(two_blocks)
    compressed = copy.deepcopy(original)
    compressed.get_submodule("conv1").weight.data *= 0.5
    x = images(4)[0]
    walks = Lockstep(original, [x], 1 << 30), Lockstep(compressed, [x], 1 << 30)
    target = SumTarget(node_at(original, "conv2"), (node_at(compressed, "conv2"),), walks)
    with torch.no_grad():
        _, found = target.of(0)
        # a network with this output of conv2 behind the compressed first block has the original's output
        m = compressed
        y = m.get_submodule("stem.0")(x)
        y = m.get_submodule("stem.1")(y).relu()
        y = (m.get_submodule("bn1")(m.get_submodule("conv1")(y)) + y).relu()
        torch.testing.assert_close((y + m.get_submodule("bn2")(found)).relu(), original(x), rtol=1e-4, atol=1e-5)
        plain = walks[0].output_of(0, node_at(original, "conv2"))
    assert not torch.allclose(found, plain)


def test_a_sum_is_left_to_the_branch_that_changes_later() -> None:
    def forward(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        return m.bn1(m.conv1(x)) + m.bn2(m.conv2(x))

    graph = network(forward)
    walks = Lockstep(graph, images(4), 1 << 30), Lockstep(graph, images(4), 1 << 30)
    first, second = node_at(graph, "conv1"), node_at(graph, "conv2")
    assert SumTarget(first, (first,), walks, {second}).sums is None
    assert SumTarget(first, (first,), walks, ()).sums is not None
    assert SumTarget(second, (second,), walks, {first}).sums is not None


def test_a_batch_norm_near_zero_does_not_blow_the_target_up() -> None:
    graph = network(two_blocks)
    graph.get_submodule("bn2").weight.data[3] = 1e-30
    compressed = copy.deepcopy(graph)
    compressed.get_submodule("conv1").weight.data *= 0.5
    walks = Lockstep(graph, images(4), 1 << 30), Lockstep(compressed, images(4), 1 << 30)
    with torch.no_grad():
        _, found = SumTarget(node_at(graph, "conv2"), (node_at(compressed, "conv2"),), walks).of(0)
    assert found.abs().max() < 1e4


def test_rounding_towards_the_sum_comes_nearer(monkeypatch: pytest.MonkeyPatch) -> None:
    def four_blocks(m: nn.Module, x: Tensor) -> Tensor:
        x = m.stem(x)
        for number in range(1, 5):
            x = (m.get_submodule(f"bn{number}")(m.get_submodule(f"conv{number}")(x)) + x).relu()
        return x

    more = {f"conv{number}": nn.Conv2d(C, C, 3, padding=1, bias=False) for number in (3, 4)}
    original = network(four_blocks, **more, **{f"bn{number}": nn.BatchNorm2d(C) for number in (3, 4)})
    batches, others = images(64), torch.cat(images(64, seed=1))

    def error() -> float:
        graph = fxfactor.transform(original, bits=(3, 8), calibration=batches)
        fxfactor.round_weights(original, graph, batches)
        with torch.no_grad():
            return float((graph(others) - original(others)).norm() / original(others).norm())

    towards_the_sum = error()
    monkeypatch.setattr("fxfactor.factors.sums.addition_behind", lambda node: None)
    assert towards_the_sum < 0.9 * error()


@pytest.mark.parametrize("memory_limit", [1 << 30, 0])
def test_fitting_towards_the_sum_comes_nearer(memory_limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    original = network(two_blocks)
    batches, others = images(64), torch.cat(images(64, seed=1))

    def error() -> float:
        graph = FactorizeDepth(level=3)(original).graph
        fitting.fit_to_outputs(original, graph, batches, memory_limit)
        with torch.no_grad():
            return float((graph(others) - original(others)).norm() / original(others).norm())

    towards_the_sum = error()
    monkeypatch.setattr("fxfactor.factors.sums.addition_behind", lambda node: None)
    assert towards_the_sum < 0.97 * error()
