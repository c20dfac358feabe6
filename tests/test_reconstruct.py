"""Reconstruction at block boundaries: where they are, that it helps, that it is the same twice."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.errors import PreconditionError
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.recovery.blocks import boundaries, with_taps
from fxfactor.recovery.reconstruct import reconstruct


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 10, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def network() -> GraphModule:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16), Block(16), head)
    model(images())  # in training mode: gives the batch norms statistics
    return fxfactor.capture(model.eval(), images(1))


def compressed(original: GraphModule, bits: int | None = None) -> GraphModule:
    graph = FactorizeDepth(level=3)(original).graph
    return graph if bits is None else Quantize(bits, bits)(graph).graph


def difference(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        x = images(seed=1)
        return float((a(x) - b(x)).norm() / a(x).norm())


def test_boundaries_are_the_ends_of_blocks():
    nodes = boundaries(network())
    assert [node.name for node in nodes] == ["_1", "_2_relu_1", "_3_relu_1"]


def test_boundaries_of_a_chain_are_before_each_layer():
    chain = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)
    )
    nodes = boundaries(fxfactor.capture(chain.eval(), torch.zeros(1, 3, 16, 16)))
    assert [str(node.target) for node in nodes] == ["2", "4"]


def test_taps_share_the_modules():
    original = network()
    tapped = with_taps(original, ["_2_relu_1"])
    output, (block,) = tapped(images())
    assert torch.equal(output, original(images()))
    assert block.shape == (32, 16, 8, 10)
    assert tapped.get_submodule("2.conv1") is original.get_submodule("2.conv1")


@pytest.mark.parametrize("bits", [None, 4])
def test_reconstruction_brings_the_output_nearer(bits):
    original = network()
    graph = compressed(original, bits)
    before = difference(original, graph)
    found = reconstruct(original, graph, images().split(8), steps=60, batch_size=16, learning_rate=5e-3, augment=None)
    losses = found.losses
    assert found.learning_rate == 5e-3
    assert len(losses) == 60
    assert losses[-1] < 0.6 * losses[0]
    assert difference(original, graph) < before
    assert not graph.training
    assert not any(module.training for module in graph.modules())


def test_reconstruction_is_the_same_twice_and_leaves_the_original_alone():
    original = network()
    untouched = copy.deepcopy(original.state_dict())
    a, b = compressed(original), compressed(original)
    losses = [reconstruct(original, graph, [images()], steps=5, batch_size=8, seed=3) for graph in (a, b)]
    assert losses[0] == losses[1]
    assert all(torch.equal(x, y) for x, y in zip(a.state_dict().values(), b.state_dict().values(), strict=True))
    assert all(torch.equal(value, untouched[name]) for name, value in original.state_dict().items())


def test_the_learning_rate_is_that_of_the_best_trial(monkeypatch):
    original = network()
    graph = compressed(original)
    monkeypatch.setattr(sys.modules[reconstruct.__module__], "RATES", (1e-7, 3e-3, 10.0))
    found = reconstruct(original, graph, [images()], steps=120, batch_size=8)
    assert found.learning_rate == 3e-3  # the first does nothing, the last breaks the network
    given = compressed(original)
    assert reconstruct(original, given, [images()], steps=120, batch_size=8, learning_rate=3e-3) == found
    assert all(torch.equal(x, y) for x, y in zip(graph.state_dict().values(), given.state_dict().values(), strict=True))


def test_one_image_is_enough():
    original = network()
    assert len(reconstruct(original, compressed(original), [images(1)], steps=2, augment=None).losses) == 2


def test_empty_loader_is_refused():
    original = network()
    with pytest.raises(PreconditionError, match="at least one batch of images"):
        reconstruct(original, compressed(original), [])


def test_original_may_be_the_model_itself():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 3)
    )
    graph = fxfactor.transform(model.eval(), level=3, example_inputs=images(1))
    losses = reconstruct(model, graph, [images()], steps=40, learning_rate=2e-3, augment=None).losses
    assert losses[-1] < losses[0]
