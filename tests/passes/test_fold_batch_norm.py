"""FoldBatchNorm: exact in float64 whatever the layer's settings, skipped with a reason elsewhere."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import Lambda, ResidualNet, difference_in_float64, fingerprint, randomized
from torch import nn

from fxfactor import Change, Skip, capture
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, Quantize
from fxfactor.pipeline import Pipeline

LAYERS: dict[str, tuple[type[nn.Module], type[nn.Module], int]] = {
    "Conv1d": (nn.Conv1d, nn.BatchNorm1d, 1),
    "Conv2d": (nn.Conv2d, nn.BatchNorm2d, 2),
    "Conv3d": (nn.Conv3d, nn.BatchNorm3d, 3),
    "ConvTranspose1d": (nn.ConvTranspose1d, nn.BatchNorm1d, 1),
    "ConvTranspose2d": (nn.ConvTranspose2d, nn.BatchNorm2d, 2),
    "ConvTranspose3d": (nn.ConvTranspose3d, nn.BatchNorm3d, 3),
    "Linear": (nn.Linear, nn.BatchNorm1d, 0),
}


@st.composite
def networks(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...]]:
    """A layer and a batch norm with random settings, and an input shape for them."""
    layer, norm, dimensions = LAYERS[draw(st.sampled_from(sorted(LAYERS)))]
    options: dict[str, Any] = {"bias": draw(st.booleans()), "dtype": torch.float64}
    groups = 1
    if dimensions:
        groups = draw(st.integers(1, 3))
        options |= {"kernel_size": draw(st.integers(1, 3)), "stride": draw(st.integers(1, 2)), "groups": groups}
        options |= {"padding": draw(st.integers(0, 1)), "dilation": draw(st.integers(1, 2))}
    channels_in, channels_out = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 4))
    eps = draw(st.sampled_from([1e-12, 1e-5, 1e-3, 0.3]))
    batch_norm = norm(channels_out, eps=eps, affine=draw(st.booleans()), dtype=torch.float64)
    size = [draw(st.integers(5, 7)) for _ in range(dimensions)]
    return randomized(nn.Sequential(layer(channels_in, channels_out, **options), batch_norm)), (2, channels_in, *size)


@settings(deadline=None, max_examples=120)
@given(networks())
def test_folding_keeps_the_function(network):
    model, shape = network
    result = Pipeline(FoldBatchNorm(), verify=True)(capture(model, torch.zeros(shape, dtype=torch.float64)))
    assert result.changes == (Change("1", ("0",)),)
    assert not any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in result.graph.modules())
    assert difference_in_float64(result.graph, model, shape) < 1e-12


def test_a_whole_network_is_folded_and_a_second_run_finds_nothing():
    model = randomized(ResidualNet()).double()
    once = FoldBatchNorm()(capture(model))
    assert [change.site for change in once.changes] == ["stem.1", "block.bn1", "block.bn2"]
    assert difference_in_float64(once.graph, model, (2, 3, 20, 12)) < 1e-12
    assert FoldBatchNorm()(once.graph).changes == ()


def test_the_pointwise_factor_takes_over_the_norm():
    graph = FactorizeDepth(level=1)(capture(randomized(ResidualNet()).double())).graph
    result = FoldBatchNorm()(graph)
    assert Change("block.bn1", ("block.conv1.pointwise",)) in result.changes
    assert difference_in_float64(result.graph, graph, (2, 3, 16, 16)) < 1e-12


def test_a_frozen_layer_stays_frozen():
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))).requires_grad_(False)
    assert not any(p.requires_grad for p in FoldBatchNorm()(capture(model)).graph.parameters())


def test_the_graph_given_stays_as_it_is():
    graph = capture(randomized(ResidualNet()).train())
    before = fingerprint(graph)
    result = FoldBatchNorm()(graph)
    assert fingerprint(graph) == before
    assert result.graph.training


@pytest.mark.parametrize(
    ("forward", "modules", "reason"),
    [
        (lambda m, x: m.bn(m.relu(m.a(x))), {"relu": nn.ReLU()}, "it follows ReLU, not a convolution or linear layer"),
        (lambda m, x: m.bn(m.a(x) + 1), {}, "it follows add, not a convolution or linear layer"),
        (lambda m, x: m.bn(y := m.a(x)) + y, {}, "a also feeds others than this batch norm"),
        (
            lambda m, x: m.bn(m.a(x)),
            {"bn": nn.BatchNorm2d(4, track_running_stats=False)},
            "it keeps no running statistics",
        ),
    ],
)
def test_what_is_left_alone_and_why(forward, modules, reason):
    model = Lambda(forward, **{"a": nn.Conv2d(3, 4, 3), "bn": nn.BatchNorm2d(4), **modules})
    result = FoldBatchNorm()(capture(model.eval(), torch.zeros(2, 3, 8, 8)))
    assert result.changes == ()
    assert result.skips == (Skip("bn", reason),)


def test_a_norm_over_another_dimension_than_the_features_is_left_alone():
    model = nn.Sequential(nn.Conv1d(3, 4, 3), nn.Linear(8, 6), nn.BatchNorm1d(4)).eval()
    result = FoldBatchNorm()(capture(model, torch.zeros(2, 3, 10)))
    assert result.skips == (Skip("2", "it normalises another dimension than the linear layer's features"),)


def test_a_quantized_layer_is_left_alone():
    graph = Quantize(4, 4)(capture(randomized(ResidualNet()))).graph
    result = FoldBatchNorm()(graph)
    assert result.changes == ()
    assert Skip("stem.1", "stem.0 is quantized already: fold before quantizing") in result.skips


def test_an_output_of_the_network_that_also_feeds_the_norm_is_kept():
    def forward(m, x):
        y = m.a(x)
        return y, m.bn(y)

    model = randomized(Lambda(forward, a=nn.Conv2d(3, 4, 3), bn=nn.BatchNorm2d(4)))
    result = FoldBatchNorm()(capture(model))
    assert result.changes == ()
    assert difference_in_float64(result.graph, model, (2, 3, 8, 8)) < 1e-12
