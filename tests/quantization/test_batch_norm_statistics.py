"""Means and variances carried through a network without data, against what random data gives."""

from __future__ import annotations

import math

import pytest
import torch
from networks import randomized, set_statistics
from torch import Tensor, nn
from torch.fx import Interpreter

import fxfactor
from fxfactor.quantization.batch_norm_statistics import ChannelStatistics, histogram_of, propagate_statistics


class _Measured(Interpreter):
    """Mean and variance per channel of every tensor."""

    def run_node(self, node: torch.fx.Node) -> object:
        value = super().run_node(node)
        if node.op != "output" and isinstance(value, Tensor) and value.dim() == 4:
            channels = value.transpose(0, 1).flatten(1).double()
            self.found[node.name] = ChannelStatistics(channels.mean(1), channels.var(1))
        return value

    def measure(self, images: Tensor) -> dict[str, ChannelStatistics]:
        self.found: dict[str, ChannelStatistics] = {}
        with torch.no_grad():
            self.run(images)
        return self.found


def _compare(model: nn.Module, images: Tensor, mean: float, variance: float) -> None:
    """Within `mean` standard deviations and a factor of 1 ± `variance` at every tensor."""
    graph = fxfactor.capture(model.eval(), images[:1])
    measured = _Measured(graph).measure(images)
    predicted = {node.name: value for node, value in propagate_statistics(graph).items()}
    assert len(measured) > 2
    for name, wanted in measured.items():
        found = predicted[name]
        away = ((found.mean - wanted.mean).abs() / wanted.variance.sqrt().clamp_min(1e-9)).max()
        assert float(away) < mean, f"{name}: {float(away):.3f} standard deviations"
        ratio = found.variance / wanted.variance
        assert float((ratio - 1).abs().max()) < variance, f"{name}: {ratio.tolist()} times the variance"


def test_convolutions_groups_and_transposed_ones_are_exact_for_independent_inputs() -> None:
    images = torch.randn(64, 4, 24, 24)
    for layer in (
        nn.Conv2d(4, 6, 3),
        nn.Conv2d(4, 8, 3, groups=2, bias=False),
        nn.ConvTranspose2d(4, 6, 2, stride=2, groups=2),
    ):
        _compare(nn.Sequential(layer, nn.LeakyReLU(0.5)), images, mean=0.03, variance=0.06)


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.Sigmoid(), nn.Hardswish()])
def test_activations_see_a_normal_distribution(activation: nn.Module) -> None:
    norm = nn.BatchNorm2d(3, affine=True)
    norm.weight.data = torch.tensor([0.5, 1.0, 4.0])
    norm.bias.data = torch.tensor([1.0, -1.0, 0.0])
    _compare(nn.Sequential(norm, activation), torch.randn(64, 3, 32, 32), mean=0.02, variance=0.04)


def test_relu_in_closed_form() -> None:
    graph = fxfactor.capture(nn.Sequential(nn.BatchNorm2d(1), nn.ReLU()).eval(), torch.zeros(1, 1, 2, 2))
    relu = next(node for node in graph.graph.nodes if node.target == "1")
    found = propagate_statistics(graph)[relu]
    assert float(found.mean) == pytest.approx(1 / math.sqrt(2 * math.pi), rel=6e-3)
    assert float(found.variance) == pytest.approx(0.5 - 1 / (2 * math.pi), rel=6e-3)


class Joins(nn.Module):
    """A sum, a difference, a product and a concatenation of two tensors that do not depend on each other."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right = nn.BatchNorm2d(2), nn.BatchNorm2d(2)

    def forward(self, x: Tensor) -> Tensor:
        a, b = torch.split(x, 2, 1)
        a, b = self.left(a), self.right(b)
        return torch.cat([a + b, a - b, a * b], 1)


def test_joins_of_independent_tensors() -> None:
    images = torch.randn(64, 4, 32, 32)
    _compare(set_statistics(randomized(Joins()), [images]), images, mean=0.03, variance=0.06)
    graph = fxfactor.capture(Joins().eval(), torch.zeros(1, 4, 2, 2))
    moments = {node.name: value for node, value in propagate_statistics(graph).items()}
    assert moments["add"].variance.tolist() == moments["sub"].variance.tolist() == [2.0, 2.0]
    assert moments["mul"].variance.tolist() == [1.0, 1.0]
    assert len(moments["cat"].mean) == 6


def test_other_numbers_of_channels() -> None:
    moments = ChannelStatistics(torch.tensor([0.0, 2.0]).double(), torch.tensor([1.0, 3.0]).double())
    assert moments.resized(4).mean.tolist() == [0.0, 0.0, 2.0, 2.0]  # flattened: channel by channel
    pooled = moments.resized(3)
    assert pooled.mean.tolist() == [1.0, 1.0, 1.0]
    assert pooled.variance.tolist() == [3.0, 3.0, 3.0]  # 2 within the channels and 1 between them


def test_the_factor_in_front_has_the_scale_that_the_batch_norm_behind_asks_for() -> None:
    model = randomized(nn.Sequential(nn.Conv2d(3, 8, 1), nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8)))
    graph = fxfactor.transform(model, level=1, bits=None, example_inputs=torch.zeros(1, 3, 8, 8))
    spatial = next(node for node in graph.graph.nodes if str(node.target) == "1.spatial")
    before = propagate_statistics(graph)[spatial].variance
    graph.get_submodule("2").running_var.mul_(0.25)  # type: ignore[operator, union-attr]
    after = propagate_statistics(graph)[spatial].variance
    torch.testing.assert_close(after, before / 4)


def test_the_histogram_behind_a_relu_has_no_negative_part() -> None:
    graph = fxfactor.capture(nn.Sequential(nn.BatchNorm2d(4), nn.ReLU()).eval(), torch.zeros(1, 4, 2, 2))
    moments = propagate_statistics(graph)
    norm, relu = (next(node for node in graph.graph.nodes if node.target == name) for name in ("0", "1"))
    below = [histogram.counts[histogram.centers < 0].sum() / histogram.counts.sum() for histogram in
             (histogram_of(norm, moments), histogram_of(relu, moments))]  # fmt: skip
    assert float(below[0]) == pytest.approx(0.5, abs=0.06)
    assert float(below[1]) == 0.0
