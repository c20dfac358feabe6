"""LegalizeForFinn: both rewrites in one pass, exact, and nothing left that check would block."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.passes.legalize_for_finn import LegalizeForFinn
from fxfactor.pipeline import Pipeline


class Net(nn.Module):
    """Grouped, depthwise with multiplier, residual, max pooling with ceil_mode, ReLU6, global average pooling."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU6())
        self.pool = nn.MaxPool2d(3, 2, ceil_mode=True)
        self.grouped = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=4), nn.BatchNorm2d(8))
        self.wide = nn.Sequential(nn.Conv2d(8, 16, 3, padding=1, groups=8), nn.BatchNorm2d(16), nn.ReLU())
        self.narrow = nn.Sequential(nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU())
        self.classify = nn.Linear(8, 5)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.pool(self.first(x))
        x = torch.relu(x + self.grouped(x))
        return self.classify(self.narrow(self.wide(x)).mean((2, 3)))


@pytest.fixture
def graph() -> torch.fx.GraphModule:
    """`Net`, quantized to 4 bits."""
    return fxfactor.transform(Net().eval(), bits=4, example_inputs=torch.randn(1, 3, 16, 14)).eval()


def test_exact_and_complete(graph: torch.fx.GraphModule) -> None:
    result = Pipeline(LegalizeForFinn(), verify=True)(graph)
    assert {change.site for change in result.changes} == {"grouped.0", "wide.0"}
    assert [finding for finding in fxfactor.finn.check(result.graph) if finding.blocks] == []
    assert LegalizeForFinn()(result.graph).changes == ()


def test_the_network_in_integers_equals_it(graph: torch.fx.GraphModule, tmp_path: object) -> None:
    from pathlib import Path

    from fxfactor.finn.process.load import load_integers

    images = torch.randn(16, 3, 16, 14)
    file = Path(str(tmp_path)) / "net.onnx"
    fxfactor.export(graph, file, target="finn", example_inputs=images[:1])
    wanted = fxfactor.finn.reference(graph, images).numpy()
    assert abs(load_integers(file)(images.numpy()) - wanted).max() < 1e-9 * abs(wanted).max()


def test_neither_check_nor_export_needs_it(graph: torch.fx.GraphModule, tmp_path: object) -> None:
    from pathlib import Path

    import onnx

    assert fxfactor.finn.check(graph) == []
    file = Path(str(tmp_path)) / "grouped.onnx"
    fxfactor.export(graph, file, target="finn")
    assert fxfactor.finn.check(file) == []
    groups = [attribute.i for node in onnx.load(str(file)).graph.node for attribute in node.attribute
              if node.op_type == "Conv" and attribute.name == "group"]  # fmt: skip
    assert sorted(groups) == [1, 1, 4, 8]
