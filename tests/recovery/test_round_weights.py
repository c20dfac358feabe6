"""Rounding of weights: nearer to the original's outputs, on the quantizer's own levels, the same twice."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from brevitas.quant.fixed_point import Int8WeightPerChannelFixedPoint
from brevitas.quant.scaled_int import Int8WeightPerChannelFloat, Int8WeightPerTensorFloat
from networks import ResidualNet, randomized
from torch import Tensor, nn

import fxfactor
from fxfactor import Plan, PreconditionError, transform
from fxfactor.graph import is_quantizer, put_module
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.quantization.brevitas_layers import get_limit, is_quantized_layer
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.recovery import round_weights as rounding
from fxfactor.recovery.round_weights import round_weights


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).cumsum(-1) / 4


def quantized(level: Any = 0, bits: int = 3) -> tuple[nn.Module, Any]:
    torch.manual_seed(0)
    model = randomized(ResidualNet())
    return model, transform(model, level=level, bits=bits, calibration=[images()], recover="none")


def difference(model: nn.Module, graph: nn.Module, x: Tensor) -> float:
    with torch.no_grad(), fused_quantizers(graph):
        return float((model(x) - graph(x)).square().mean())


@pytest.mark.parametrize("level", [0, 1, "depthwise"])
def test_outputs_come_nearer_on_images_not_seen(level):
    model, graph = quantized(level)
    before = difference(model, graph, images(seed=1))
    rounded = round_weights(model, graph, images().split(8))
    assert difference(model, graph, images(seed=1)) < 0.9 * before
    assert all(each.output_error <= each.nearest_error * (1 + 1e-9) for each in rounded)
    assert sum(each.output_error < each.nearest_error for each in rounded) > len(rounded) / 2
    paths = {name for name, module in graph.named_modules() if is_quantized_layer(module)}
    assert {each.path for each in rounded} == paths


def test_ranges_and_modes_stay_and_the_original_too():
    model, graph = quantized()
    untouched = copy.deepcopy(model.state_dict())
    graph.train()
    limits = [get_limit(module) for module in graph.modules() if is_quantizer(module)]
    round_weights(model, graph, [(images(), None)])
    assert [get_limit(module) for module in graph.modules() if is_quantizer(module)] == limits
    assert all(module.training for module in graph.modules())
    assert all(torch.equal(value, untouched[name]) for name, value in model.state_dict().items())


def test_twice_is_the_same():
    states = []
    for _ in range(2):
        model, graph = quantized(1)
        round_weights(model, graph, [images()])
        states.append(graph.state_dict())
    assert all(torch.equal(a, b) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_means_agree_at_the_output():
    model, graph = quantized(bits=2)
    round_weights(model, graph, [images()])
    with torch.no_grad():
        found, wanted = graph(images()), model(images())
    torch.testing.assert_close(found.mean(0), wanted.mean(0), rtol=0, atol=1e-4 * float(wanted.std()))


LAYERS = [
    (nn.Conv2d, {"in_channels": 6, "out_channels": 8, "kernel_size": (3, 1), "stride": 2, "padding": 1}),
    (nn.Conv2d, {"in_channels": 6, "out_channels": 9, "kernel_size": 3, "groups": 3, "dilation": 2, "bias": False}),
    (nn.Conv2d, {"in_channels": 6, "out_channels": 6, "kernel_size": 3, "groups": 6}),
    (nn.Conv1d, {"in_channels": 6, "out_channels": 8, "kernel_size": 3}),
    (nn.Linear, {"in_features": 6, "out_features": 8}),
]
QUANTIZERS = [Int8WeightPerChannelFloat, Int8WeightPerChannelFixedPoint, Int8WeightPerTensorFloat]


@pytest.mark.parametrize("quantizer", QUANTIZERS)
@pytest.mark.parametrize(("kind", "settings"), LAYERS)
def test_weights_lie_on_the_levels_of_any_quantizer(kind, settings, quantizer):
    torch.manual_seed(0)
    layer = getattr(qnn, f"Quant{kind.__name__}")(**settings, weight_quant=quantizer, weight_bit_width=3)
    x = torch.randn(64, *{nn.Conv2d: (6, 9, 7), nn.Conv1d: (6, 9), nn.Linear: (6,)}[kind]).cumsum(-1)
    exact = layer.weight.detach().clone()
    model = nn.Sequential(kind(**settings))
    model[0].weight.data.copy_(exact)
    if layer.bias is not None:
        model[0].bias.data.copy_(layer.bias.detach())
    graph = fxfactor.capture(model.eval(), x[:1])
    put_module(graph, "0", layer)
    (rounded,) = round_weights(model, graph, [x], ridge=0.01)
    with torch.no_grad():
        weight, again = layer.weight.flatten(1), layer.quant_weight().value.flatten(1)
    off_levels = ((weight - again).abs() > 1e-6).sum(1)
    kept = (weight == exact.flatten(1)).all(1)
    assert ((off_levels <= 1) | kept).all()  # the largest weight may be off: it keeps the scale
    assert not kept.all()
    assert rounded.output_error < rounded.nearest_error


def test_no_channel_gets_worse_than_with_the_nearest_levels():
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 64, 2, bias=False)).eval(), torch.randn(4, 3, 8, 8)
    for bits in (3, 4):
        plan = Plan.uniform(fxfactor.capture(model, x[:1]), 0, bits, 8, boundary_bits=bits)
        graph = transform(model, plan=plan, calibration=[x], recover="none")
        with torch.no_grad():
            before = (graph(x) - model(x)).square().mean((0, 2, 3))
            round_weights(model, graph, [x], ridge=1e-9)
            after = (graph(x) - model(x)).square().mean((0, 2, 3))
        assert (after <= before * (1 + 1e-4)).all()
        assert after.mean() < 0.9 * before.mean()


@pytest.mark.parametrize("groups", [1, 3])
def test_weights_of_one_bit_are_signs_times_the_best_scale(groups):
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Conv2d(3, 24, 2, groups=groups, bias=False)).eval(), torch.randn(4, 3, 8, 8).cumsum(-1)
    plan = Plan.uniform(fxfactor.capture(model, x[:1]), 0, 1, 8, boundary_bits=8).with_layer("0", weight_bits=1)
    graph = transform(model, plan=plan, calibration=[x], recover="none")
    with torch.no_grad():
        before = (graph(x) - model(x)).square().mean((0, 2, 3))
        round_weights(model, graph, [x], ridge=1e-9)
        after = (graph(x) - model(x)).square().mean((0, 2, 3))
        weight, again = graph.get_submodule("0").weight, graph.get_submodule("0").quant_weight()
        torch.testing.assert_close(again.value, weight)  # all that it holds is ± one magnitude for each channel
        assert (after <= before * (1 + 1e-4)).all()
        assert after.mean() < 0.8 * before.mean()
        for factor in (0.97, 1.03):  # no other scale is better
            graph.get_submodule("0").weight.data = weight * factor
            assert (graph(x) - model(x)).square().mean() > after.mean()


def test_a_weight_that_stands_out_and_matters_little_is_clipped():
    """Three times the others, on an input that is almost zero: kept, it would leave the others one level."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 4, 1, bias=False)).eval()
    model[0].weight.data.uniform_(-1, 1)
    model[0].weight.data[:, 0] = 3.0
    x = torch.randn(8, 8, 6, 6)
    x[:, 0] *= 1e-3
    plan = Plan.uniform(fxfactor.capture(model, x[:1]), 0, 3, 8, boundary_bits=3)
    (rounded,) = round_weights(model, transform(model, plan=plan, calibration=[x], recover="none"), [x], ridge=1e-3)
    assert rounded.output_error < 0.5 * rounded.nearest_error


def test_blocks_change_nothing_but_the_time(monkeypatch):
    states = []
    for block in (128, 5):
        monkeypatch.setattr(rounding, "BLOCK", block)
        model, graph = quantized()
        round_weights(model, graph, [images()])
        states.append(graph.state_dict())
    assert all(torch.allclose(a, b, atol=1e-5) for a, b in zip(states[0].values(), states[1].values(), strict=True))


def test_layers_without_a_counterpart_are_rounded_towards_their_own_outputs():
    torch.manual_seed(0)
    model = randomized(ResidualNet())
    graph = Pipeline(FoldBatchNorm(), Quantize(3, 8))(fxfactor.capture(model, images(1))).graph
    fxfactor.calibrate(graph, [images()])
    before = difference(model, graph, images(seed=1))
    round_weights(model, graph, [images()])
    assert difference(model, graph, images(seed=1)) < before


def test_channels_that_are_always_zero_are_survived():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3, groups=8), nn.ReLU(), nn.Conv2d(8, 4, 1))
    nn.init.constant_(model[0].bias[:4].data, -1000.0)
    nn.init.zeros_(model[4].weight.data[0])
    graph = transform(model.eval(), bits=4, calibration=[images()], recover="none")
    round_weights(model, graph, [images()])
    assert graph(images()).isfinite().all()


def test_refusals():
    model, graph = quantized()
    with pytest.raises(PreconditionError, match="rounding needs at least one batch of images, found an empty"):
        round_weights(model, graph, [])
    plain = FactorizeDepth(level=1)(fxfactor.capture(model, images(1))).graph
    with pytest.raises(
        PreconditionError,
        match=r"rounding needs Brevitas convolutions .* quantize first, with bits= or passes.Quantize",
    ):
        round_weights(model, plain, [images()])
