"""Calibration: ranges from images, in place, nothing else changed."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, randomized
from torch import nn
from torch.fx import GraphModule

from fxfactor import PreconditionError, calibrate, transform
from fxfactor.graph import is_quantizer, module_of
from fxfactor.quantization.brevitas_layers import get_limit, is_signed

IMAGES = (8, 3, 16, 16)


@pytest.fixture
def graph() -> GraphModule:
    return transform(randomized(ResidualNet()), level=1, bits=4, example_inputs=torch.zeros(IMAGES))


def limits(graph: GraphModule) -> list[float]:
    return [get_limit(module) for module in graph.modules() if is_quantizer(module)]


def test_only_ranges_change(graph):
    before = {key: value.clone() for key, value in graph.state_dict().items()}
    assert calibrate(graph, [torch.randn(IMAGES)]) is graph
    changed = {key for key, value in graph.state_dict().items() if not torch.equal(value, before[key])}
    assert changed
    assert all("act_quant" in key for key in changed)


def test_the_mode_of_every_module_is_kept(graph):
    graph.train()
    graph.block.bn1.eval()
    statistics = graph.block.bn2.running_mean.clone()
    calibrate(graph, [torch.randn(IMAGES)])
    assert graph.training
    assert graph.block.conv1.training
    assert not graph.block.bn1.training
    assert torch.equal(graph.block.bn2.running_mean, statistics)


def test_the_input_range_follows_the_images(graph):
    quantizer = module_of(next(node for node in graph.graph.nodes if is_quantizer(module_of(node))))
    calibrate(graph, [torch.rand(IMAGES) * 7])
    assert 6.5 < get_limit(quantizer) < 7.2


def test_batches_make_no_difference(graph):
    images = torch.randn(IMAGES)
    whole = limits(calibrate(graph, [images]))
    assert limits(calibrate(graph, images.split(2))) == pytest.approx(whole)
    assert limits(calibrate(graph, [(batch, 0) for batch in images.split(3)])) == pytest.approx(whole)


def test_twice_is_the_same(graph):
    images = [torch.randn(IMAGES)]
    assert limits(calibrate(graph, images)) == limits(calibrate(graph, images))


def test_calibration_beats_any_other_single_factor_on_ranges(graph):
    model = randomized(ResidualNet())
    graph = transform(model, level=0, bits=4, example_inputs=torch.zeros(IMAGES))
    images = torch.randn(64, *IMAGES[1:])
    calibrate(graph, [images])

    def error() -> float:
        with torch.no_grad():
            return float((graph(images) - model(images)).square().mean())

    best = error()
    quantizers = [module for module in graph.modules() if is_quantizer(module)]
    calibrated = [get_limit(module) for module in quantizers]
    for factor in (0.25, 4.0):
        for module, limit in zip(quantizers, calibrated, strict=True):
            module.act_quant.fused_activation_quant_proxy.tensor_quant.scaling_impl.value.data.fill_(limit * factor)
        assert error() > best


def test_a_float_network_has_nothing_to_calibrate():
    graph = transform(randomized(ResidualNet()), level=1, example_inputs=torch.zeros(IMAGES))
    assert calibrate(graph, []) is graph


def test_dead_channels_get_some_range():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1))
    nn.init.constant_(model[0].bias, -1000.0)
    graph = calibrate(transform(model, bits=4, example_inputs=torch.zeros(IMAGES)), [torch.randn(IMAGES)])
    assert graph(torch.randn(IMAGES)).isfinite().all()
    assert all(limit > 0 for limit in limits(graph))


def test_an_empty_loader_is_refused(graph):
    with pytest.raises(
        PreconditionError, match="calibration needs at least one batch of images, found an empty loader"
    ):
        calibrate(graph, [])


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_not_finite_are_refused_where_they_enter(graph, value):
    images = torch.randn(IMAGES)
    images[0, 0, 0, 0] = value
    with pytest.raises(
        PreconditionError, match="calibration: NaN or infinite activations enter 'input_1_quant'|enter 'x_quant'"
    ):
        calibrate(graph, [images])


def test_a_refusal_leaves_mode_and_ranges(graph):
    graph.train()
    before = limits(graph)
    with pytest.raises(PreconditionError):
        calibrate(graph, [torch.randn(IMAGES), torch.full(IMAGES, float("nan"))])
    assert limits(graph) == before
    assert all(module.training for module in graph.modules())


def test_signs_are_not_touched(graph):
    before = [is_signed(module) for module in graph.modules() if is_quantizer(module)]
    calibrate(graph, [-torch.rand(IMAGES)])
    assert [is_signed(module) for module in graph.modules() if is_quantizer(module)] == before
