"""Cost: agrees with torch's own counter running the network, and counts bits as HAQ does."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import ResidualNet, randomized
from torch import nn
from torch.fx import GraphModule
from torch.utils.flop_counter import FlopCounterMode

from fxfactor import LayerPlan, Plan, capture, cost, transform

models = pytest.importorskip("torchvision").models


def counted_macs(model: nn.Module, *shape: int) -> int:
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        copy.deepcopy(model).eval()(torch.zeros(shape))
    return counter.get_total_flops() // 2


def three_dimensional() -> nn.Module:
    return nn.Sequential(nn.Conv3d(3, 8, 3, stride=2), nn.ReLU(), nn.Conv3d(8, 8, (1, 3, 2), groups=2))


def transposed() -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ConvTranspose2d(8, 6, 3, stride=2, groups=2), nn.Conv2d(6, 4, 1))


def linear_on_maps() -> nn.Module:
    return nn.Sequential(nn.Conv1d(3, 8, 3), nn.Linear(14, 5), nn.Flatten(), nn.Linear(40, 2))


NETWORKS = {
    "resnet18": (lambda: models.resnet18(num_classes=10), (1, 3, 40, 56)),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10), (1, 3, 32, 32)),
    "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=10), (1, 3, 33, 47)),
    "three dimensions": (three_dimensional, (1, 3, 9, 10, 11)),
    "transposed": (transposed, (1, 3, 9, 10)),
    "linear on maps": (linear_on_maps, (1, 3, 16)),
}


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("level", [0, 2, "depthwise"])
def test_macs_are_those_that_torch_counts(name, level):
    build, shape = NETWORKS[name]
    graph = transform(build(), level=level, example_inputs=torch.zeros(shape))
    assert cost(graph).macs == counted_macs(graph, *shape)


def test_the_captured_network_costs_what_the_original_costs():
    model = models.resnet18()
    assert cost(capture(model)).macs == counted_macs(model, 1, 3, 224, 224) == 1_814_073_344


def test_costs_are_for_one_image():
    model = ResidualNet()
    one, many = (cost(capture(model, torch.zeros(batch, 3, 16, 16))) for batch in (1, 7))
    assert one == many


def test_parameters_are_all_there_are():
    model = ResidualNet()
    found = cost(capture(model))
    assert found.parameters == sum(p.numel() for p in model.parameters())
    assert {layer.path: layer.parameters for layer in found.layers} == {
        "stem.0": 3 * 16 * 9,
        "block.conv1": 16 * 16 * 9,
        "block.conv2": 16 * 16 * 9,
        "classifier": 16 * 10 + 10,
    }


def quantized() -> GraphModule:
    bits = {"stem.0": (8, 8), "block.conv1": (2, 3), "block.conv2": (None, 6), "classifier": (7, None)}
    plan = Plan({site: LayerPlan(weight_bits=w, activation_bits=a) for site, (w, a) in bits.items()})
    return transform(randomized(ResidualNet()), plan=plan, example_inputs=torch.zeros(1, 3, 8, 8))


def test_bops_are_macs_times_weight_bits_times_activation_bits():
    found = cost(quantized())
    assert {layer.path: (layer.weight_bits, layer.activation_bits) for layer in found.layers} == {
        "stem.0": (8, 8),
        "block.conv1": (2, 3),
        "block.conv2": (32, 6),
        "classifier": (7, 32),
    }
    macs = [64 * 3 * 16 * 9, 64 * 16 * 16 * 9, 64 * 16 * 16 * 9, 160]
    assert [layer.macs for layer in found.layers] == macs
    assert found.bops == macs[0] * 64 + macs[1] * 6 + macs[2] * 192 + macs[3] * 224


def test_weight_bits_are_added_up():
    assert cost(quantized()).total_weight_bits == 432 * 8 + 2304 * 2 + 2304 * 32 + 160 * 7


def test_a_network_in_floating_point_has_1024_bops_for_a_mac():
    found = cost(capture(ResidualNet()))
    assert found.bops == 1024 * found.macs


def test_both_factors_stand_below_their_site():
    found = cost(transform(ResidualNet(), level=1))
    assert [layer.path for layer in found.below("block.conv1")] == ["block.conv1.spatial", "block.conv1.pointwise"]
    assert len(found.below("block")) == 4
    assert found.below("blo") == ()


def test_both_factors_of_a_quantized_site_have_its_bits():
    found = cost(transform(randomized(ResidualNet()), level=1, bits=3))
    assert [(layer.weight_bits, layer.activation_bits) for layer in found.below("block.conv1")] == [(3, 3), (3, 3)]
