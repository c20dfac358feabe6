"""All CNN families of torchvision: captured exactly, transformed at every level and bit width, trained for one step.

Images are small and weights random. The networks of `FAST` run always, the rest with `-m slow`.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from functools import lru_cache

import pytest
import torch
from networks import difference_in_float64, randomized, set_statistics
from torch import nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

import fxfactor
from fxfactor.graph import check_graph, convolutions, sites
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.plan.ladder import Level, choose_shape

torchvision = pytest.importorskip("torchvision")
from torchvision import models  # noqa: E402


def narrow(build: Callable[[], nn.Module]) -> Callable[[], nn.Module]:
    """The same network with a classifier 64 wide: those of AlexNet and VGG hold 60 and 120 million weights."""

    def build_narrow() -> nn.Module:
        with torch.device("meta"):
            model = build()
        linear = [m for m in model.classifier if isinstance(m, nn.Linear)]
        widths = [linear[0].in_features, 64, 64, 10]
        for position, layer in enumerate(model.classifier):
            if isinstance(layer, nn.Linear):
                model.classifier[position] = nn.Linear(widths.pop(0), widths[0], device="meta")
        model = model.to_empty(device="cpu")
        for module in model.modules():
            if hasattr(module, "reset_parameters"):
                module.reset_parameters()
        return model

    return build_narrow


# name: (how to build it, image size)
ZOO: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "alexnet": (narrow(models.alexnet), 64),
    "vgg11_bn": (narrow(models.vgg11_bn), 32),
    "resnet18": (lambda: models.resnet18(num_classes=10), 32),
    "resnet50": (lambda: models.resnet50(num_classes=10), 32),
    "resnext50_32x4d": (lambda: models.resnext50_32x4d(num_classes=10), 32),
    "googlenet": (lambda: models.googlenet(num_classes=10, aux_logits=False, init_weights=False), 32),
    "inception_v3": (lambda: models.inception_v3(num_classes=10, aux_logits=False, init_weights=False), 80),
    "densenet121": (lambda: models.densenet121(num_classes=10), 64),
    "squeezenet1_1": (lambda: models.squeezenet1_1(num_classes=10), 32),
    "shufflenet_v2_x0_5": (lambda: models.shufflenet_v2_x0_5(num_classes=10), 32),
    "mobilenet_v2": (lambda: models.mobilenet_v2(num_classes=10), 32),
    "mobilenet_v3_small": (lambda: models.mobilenet_v3_small(num_classes=10), 32),
    "efficientnet_b0": (lambda: models.efficientnet_b0(num_classes=10), 32),
    "mnasnet0_5": (lambda: models.mnasnet0_5(num_classes=10), 32),
    "regnet_x_400mf": (lambda: models.regnet_x_400mf(num_classes=10), 64),
    "regnet_y_400mf": (lambda: models.regnet_y_400mf(num_classes=10), 32),
    "convnext_tiny": (lambda: models.convnext_tiny(num_classes=10), 32),
    "wide_resnet50_2": (lambda: models.wide_resnet50_2(num_classes=10), 32),
    "fcn_resnet50": (
        lambda: models.segmentation.fcn_resnet50(weights=None, weights_backbone=None, num_classes=5),
        32,
    ),
}
FAST = {
    "resnet18": [("depthwise", 4)],
    "squeezenet1_1": [(3, 4), (1, 2), ("depthwise", None)],
    "shufflenet_v2_x0_5": [(3, 4)],
    "mobilenet_v2": [(0, 8)],
}
LEVELS: tuple[Level, ...] = (0, 1, 3, "depthwise")
BITS = (None, 8, 4, 2)


@lru_cache(maxsize=1)
def built(name: str) -> tuple[nn.Module, tuple[int, ...]]:
    build, size = ZOO[name]
    torch.manual_seed(0)
    model = randomized(build())
    shape = (2, 3, size, size)
    return set_statistics(model, [torch.randn(shape)]), shape


@lru_cache(maxsize=1)
def captured(name: str) -> GraphModule:
    model, shape = built(name)
    return fxfactor.capture(model, torch.zeros(shape))


@lru_cache(maxsize=1)
def factorized(name: str, level: Level) -> GraphModule:
    return FactorizeDepth(level=level)(captured(name)).graph


def marked(name: str, *settings: object) -> object:
    fast = name in FAST and (not settings or settings in FAST[name])
    return pytest.param(name, *settings, marks=() if fast else pytest.mark.slow)


@pytest.mark.parametrize("name", [marked(name) for name in ZOO])
def test_captured_network_is_the_original(name):
    model, shape = built(name)
    graph = captured(name)
    check_graph(graph)
    assert len([*convolutions(graph)]) == sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert difference_in_float64(graph, model, shape) < 1e-10
    assert difference_in_float64(graph, model, (3, *shape[1:])) < 1e-10


@pytest.mark.parametrize(
    ("name", "level", "bits"), [marked(name, level, bits) for name in ZOO for level in LEVELS for bits in BITS]
)
def test_transformed_network_runs_and_trains(name, level, bits):
    graph = copy.deepcopy(factorized(name, level))
    if bits is not None:
        graph = Pipeline(Quantize(bits, bits))(graph).graph
    elif level == 0:
        assert difference_in_float64(graph, captured(name), built(name)[1]) < 1e-12
    wanted = {
        site.name
        for index, site in enumerate(sites(captured(name)).values())
        if isinstance(choose_shape(site, level, first=index == 0), tuple)
    }
    assert {site.name for site in sites(graph).values() if site.factorized} == wanted
    run_and_train_one_step(graph, torch.randn(built(name)[1]))


def run_and_train_one_step(graph: GraphModule, images: torch.Tensor) -> None:
    with torch.no_grad():
        assert all(output.isfinite().all() for output in tree_leaves(graph.eval()(images)))
    graph.train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=1e-3)
    optimizer.zero_grad()
    loss = sum(output.square().mean() for output in tree_leaves(graph(images)))
    loss.backward()
    for name, parameter in graph.named_parameters():
        if parameter.requires_grad:
            assert parameter.grad is not None, f"{name} gets no gradient"
            assert parameter.grad.isfinite().all(), name
            if name.endswith(("spatial.weight", "pointwise.weight")):
                assert parameter.grad.any(), f"{name} gets zeros only"
    optimizer.step()
    assert all(parameter.isfinite().all() for parameter in graph.parameters())


@pytest.mark.parametrize(("name", "level", "bits"), [("shufflenet_v2_x0_5", 3, 4), ("mobilenet_v2", "depthwise", 8)])
def test_the_one_call_does_the_same(name, level, bits):
    model, shape = built(name)
    result = fxfactor.transform(model, level=level, bits=bits, example_inputs=torch.zeros(shape))
    expected = Pipeline(FactorizeDepth(level=level), Quantize(bits, bits))(captured(name)).graph
    images = torch.randn(shape)
    assert torch.equal(result(images), expected(images))
