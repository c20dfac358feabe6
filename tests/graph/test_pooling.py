"""Adaptive pooling to a size that does not divide its input: exact, and it has an ONNX form."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from networks import conv_bn_relu, difference_in_float64
from torch import nn
from torch.nn import functional as F

import fxfactor
from fxfactor.graph.pooling import UnevenAdaptiveAvgPool2d, averaging_matrix


@pytest.mark.parametrize(("inputs", "outputs"), [(2, 7), (5, 3), (7, 7), (8, 6), (1, 4)])
def test_the_matrix_averages_as_torch_does(inputs: int, outputs: int):
    x = torch.randn(1, 1, inputs)
    assert torch.allclose(x @ averaging_matrix(inputs, outputs).t(), F.adaptive_avg_pool1d(x, outputs), atol=1e-6)


def test_a_network_with_it_exports(tmp_path: Path):
    model = nn.Sequential(*conv_bn_relu(3, 8), nn.AdaptiveAvgPool2d((7, 3)), nn.Flatten(1), nn.Linear(8 * 21, 4)).eval()
    graph = fxfactor.capture(model, torch.zeros(1, 3, 5, 6))
    assert isinstance(graph.get_submodule("3"), UnevenAdaptiveAvgPool2d)
    assert difference_in_float64(graph, model, (2, 3, 5, 6)) == 0
    assert difference_in_float64(graph, model, (2, 3, 9, 4)) == 0
    exported = fxfactor.export(fxfactor.transform(graph, bits=8), tmp_path / "model.onnx")
    assert exported.relative_difference < 1e-5


def test_windows_of_one_size_stay_as_they_are():
    graph = fxfactor.capture(nn.Sequential(nn.Conv2d(3, 4, 1), nn.AdaptiveAvgPool2d(4)), torch.zeros(1, 3, 8, 8))
    assert type(graph.get_submodule("1")) is nn.AdaptiveAvgPool2d
