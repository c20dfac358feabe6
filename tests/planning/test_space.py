"""The space that search chooses from: its costs, shared quantizers, limits."""

from __future__ import annotations

import random

import pytest
import torch
from networks import Lambda, ResidualNet, conv_bn_relu, random_batches, randomized
from torch import nn

import fxfactor
from fxfactor import Plan
from fxfactor.planning.space import Shape, sharing, space_of

pytest.importorskip("scipy")


def test_costs_of_the_space_are_those_of_the_network_that_the_plan_makes() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1])
    space = space_of(graph, (0, 1, 2, "depthwise"), (2, 4), widths=(0.5, 1))
    draw = random.Random(0)
    for _ in range(5):
        chosen = {name: draw.choice(list(space.layers(name))) for name in space.shapes}
        plan = Plan({name: layer for name, (_, layer) in chosen.items()}, join_bits=8)
        found = fxfactor.cost(fxfactor.transform(model, plan=plan, example_inputs=images[0][:1]))
        costs = [space.costs(name, shape, layer) for name, (shape, layer) in chosen.items()]
        assert sum(each["macs"] for each in costs) == found.macs
        assert sum(each["bops"] for each in costs) == found.bops
        assert sum(each["weight_bits"] for each in costs) == found.total_weight_bits


def test_layers_behind_one_tensor_share_a_quantizer() -> None:
    net = Lambda(
        lambda m, x: m.b(m.a(x)) + m.c(m.a_again(x)),
        a=conv_bn_relu(3, 16), a_again=conv_bn_relu(3, 16), b=nn.Conv2d(16, 8, 3, padding=1), c=nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    apart = sharing(fxfactor.capture(net, torch.randn(1, 3, 8, 8)))
    assert apart["b"] != apart["c"]
    assert apart["a.0"] == apart["a_again.0"]
    forked = Lambda(
        lambda m, x: m.b(y := m.a(x)) + m.c(y),
        a=conv_bn_relu(3, 16), b=nn.Conv2d(16, 8, 3, padding=1), c=nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    together = sharing(fxfactor.capture(forked, torch.randn(1, 3, 8, 8)))
    assert together["b"] == together["c"]


def test_kept_sites_stay_whole() -> None:
    graph = fxfactor.capture(ResidualNet(64), torch.randn(1, 3, 8, 8))
    space = space_of(graph, (*range(7), "depthwise"), (4,), keep=("block.conv1",))
    assert space.shapes["block.conv1"] == (Shape(),)
    assert [shape.groups for shape in space.shapes["block.conv2"]] == [None, 2, 4, 8, 16, 32, 64]
    assert space.weight_bits["stem.0"] == (8,)
