"""Reconstruction at block boundaries: where they are, that it helps, that it is the same twice."""

from __future__ import annotations

import copy
import sys

import pytest
import torch
from blocks_helpers import images, network
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.errors import PreconditionError
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.recovery.reconstruct import reconstruct


def compressed(original: GraphModule, bits: int | None = None) -> GraphModule:
    graph = FactorizeDepth(level=3)(original).graph
    return graph if bits is None else Quantize(bits, bits)(graph).graph


def difference(a: nn.Module, b: nn.Module) -> float:
    with torch.no_grad():
        x = images(seed=1)
        return float((a(x) - b(x)).norm() / a(x).norm())


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


def test_mixed_precision_reconstructs_alike():
    original = network()
    plain, mixed = compressed(original, 4), compressed(original, 4)
    options = {"steps": 60, "batch_size": 16, "learning_rate": 5e-3, "augment": None}
    losses = reconstruct(original, plain, images().split(8), **options).losses
    found = reconstruct(original, mixed, images().split(8), precision="bfloat16", **options).losses
    assert found != losses
    assert found[-1] == pytest.approx(losses[-1], rel=0.1)
    assert {each.dtype for each in mixed.state_dict().values()} <= {torch.float32, torch.int64}
    with pytest.raises(PreconditionError, match='precision must be "float32" or "bfloat16"'):
        reconstruct(original, mixed, [images()], precision="half")


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
