"""LegalizeChannelMultipliers: parallel depthwise convolutions and permuted weights behind them, the same function."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.graph.compare import relative_difference
from fxfactor.passes.legalize_channel_multipliers import LegalizeChannelMultipliers
from fxfactor.pipeline import Pipeline


def net(multiplier: int, bias: bool, stride: int) -> nn.Module:
    """Depthwise with a multiplier → batch norm with its own statistics → pointwise."""
    wide = 6 * multiplier
    norm = nn.BatchNorm2d(wide, eps=0.01)
    for values in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        nn.init.uniform_(values, 0.5, 1.5)  # type: ignore[arg-type]
    return nn.Sequential(
        nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Conv2d(6, wide, 3, stride, 1, groups=6, bias=bias), norm, nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(wide, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("multiplier", [2, 3])
def test_exact_in_float64(multiplier: int, stride: int, bias: bool) -> None:
    images = torch.randn(2, 3, 15, 11)
    graph = fxfactor.capture(net(multiplier, bias, stride), images)
    result = LegalizeChannelMultipliers()(graph)
    assert result.changes[0].into == tuple(f"2.{index}" for index in range(multiplier))
    found, wanted = (copy.deepcopy(each).double()(images.double()).detach() for each in (result.graph, graph))
    assert relative_difference(found, wanted) < 1e-14
    assert LegalizeChannelMultipliers()(result.graph).changes == ()


def test_equals_the_quantized_model_before_it() -> None:
    images = torch.randn(2, 3, 15, 11)
    graph = fxfactor.transform(net(2, False, 1), bits=4, example_inputs=images).eval()
    result = Pipeline(LegalizeChannelMultipliers(), verify=True)(graph)
    assert len(result.changes) == 1
    with torch.no_grad():
        assert relative_difference(result.graph(images), graph(images)) < 1e-6


def test_skipped_where_the_channels_are_told_apart() -> None:
    class Forks(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.wide, self.one, self.two = nn.Conv2d(3, 6, 3, groups=3), nn.Conv2d(6, 2, 1), nn.Conv2d(6, 2, 1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.wide(x)
            return self.one(x) + self.two(x)

    graph = fxfactor.capture(Forks().eval(), torch.randn(1, 3, 8, 8))
    (skip,) = LegalizeChannelMultipliers()(graph).skips
    assert skip.site == "wide"
    assert "feeds 2 others" in skip.reason
    flat = nn.Sequential(nn.Conv2d(3, 6, 3, groups=3), nn.Flatten(), nn.Linear(6 * 36, 2)).eval()
    (skip,) = LegalizeChannelMultipliers()(fxfactor.capture(flat, torch.randn(1, 3, 8, 8))).skips
    assert "may tell channels apart" in skip.reason
