"""PyTorch, the file and integers side by side: the first place where they part is the one that was changed."""

from __future__ import annotations

import copy
import io
import json
import re
from pathlib import Path
from typing import Any

import brevitas.nn as qnn
import numpy as np
import onnx
import pytest
import torch
from networks import ResidualNet, randomized, set_statistics
from onnx import numpy_helper
from rich.console import Console
from torch import Tensor, nn

import fxfactor
from fxfactor import FinnError, FxfactorError
from fxfactor.finn import comparison
from fxfactor.finn.comparison import Place, Sums, parting
from fxfactor.finn.comparison_result import ComparedLayer, Comparison
from fxfactor.storage.qonnx import write_qonnx

IMAGES = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.fixture(scope="module")
def original() -> nn.Module:
    return set_statistics(randomized(ResidualNet()), [torch.randn(8, 3, 16, 16)]).eval()


@pytest.fixture(scope="module")
def network(original: nn.Module) -> Any:
    return fxfactor.transform(original, level=1, bits=4, calibration=[torch.randn(8, 3, 16, 16)])


@pytest.fixture(scope="module")
def file(network: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return fxfactor.export(network, tmp_path_factory.mktemp("comparison") / "model.onnx", target="finn").path


def test_where_all_is_the_same_nothing_parts(network: Any, file: Path) -> None:
    found = fxfactor.finn.compare(network, file, IMAGES)
    quantizers = [row for row in found.layers if row.kind == "Quant"]
    assert len(quantizers) >= 8
    assert all(row.torch_levels == 0 and row.integer_levels in (0, None) for row in quantizers)
    assert sum(row.integer_levels is not None for row in quantizers) >= len(quantizers) - 1  # all but the input's
    assert all(row.torch_error is not None and row.torch_error < 1e-5 for row in found.layers)
    assert found.findings == (
        f"PyTorch and the file give the same at all {len(found.layers)} places",
        f"the file and the integers give the same at all {len(quantizers) - 1} places",
    )
    assert json.loads(found.to_json())["images"] == 3


def test_a_layer_with_other_weights_is_found(network: Any, file: Path) -> None:
    other = copy.deepcopy(network)
    with torch.no_grad():
        other.get_submodule("block.conv2.spatial").weight.mul_(1.2)
    first = fxfactor.finn.compare(other, file, IMAGES).findings[0]
    assert (
        "PyTorch and the file part first at block.conv2.spatial (Conv): the file was exported from other weights"
        in first
    )


def test_a_quantizer_with_another_scale_is_found(network: Any, file: Path, tmp_path: Path) -> None:
    model = onnx.load(str(file))
    node = next(node for node in model.graph.node if node.doc_string.endswith("block.conv2.spatial_quant"))
    scale = next(each for each in model.graph.initializer if each.name == node.input[1])
    scale.CopyFrom(numpy_helper.from_array((numpy_helper.to_array(scale) * 1.3).astype(np.float32), scale.name))
    onnx.save(model, str(tmp_path / "other.onnx"))
    found = fxfactor.finn.compare(network, tmp_path / "other.onnx", IMAGES)
    assert "part first at block.conv2.spatial_quant (Quant)" in found.findings[0]
    assert "the file and the integers give the same" in found.findings[1]


def test_wrong_integers_are_found(network: Any, file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    execute, calls = comparison.execute_all, []

    def off_by_one(model: Any, images: Any, watch: Any) -> Any:
        def wrong(tensor: str, value: Any) -> None:
            calls.append(tensor)
            watch(tensor, value + (len(calls) >= 9))

        return execute(model, images, wrong)

    monkeypatch.setattr(comparison, "execute_all", off_by_one)
    found = fxfactor.finn.compare(None, file, IMAGES[:1])
    assert any(row.integer_levels for row in found.layers)
    assert "the file and the integers part first at" in found.findings[0]
    assert found.findings[0].endswith("please report it with the file")


def test_values_between_two_levels_are_no_defect() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    place = Place("1", "1", "Quant", "y", "x", "scale")
    sums = Sums("1", "Quant")
    found = {"x": np.float32([0.125, 0.3]), "scale": np.float32(0.25), "y": np.float32([0.0, 0.25])}
    sums.add(found, place, [np.float32([0.25, 0.25])], np.float32([0.25, 0.25]))
    row = sums.row()
    assert (row.torch_levels, row.torch_ties, row.integer_levels, row.integer_ties) == (0.5, 0.5, 0.5, 0.5)
    quantized = fxfactor.transform(model, level=0, bits=4, example_inputs=torch.zeros(1, 1, 4, 4))
    told = list(parting((row,), quantized))
    assert all("50.000% of the activations lie in the middle between two levels" in each for each in told)


def test_the_original_in_floating_point_shows_what_each_layer_lost(original: nn.Module, file: Path) -> None:
    found = fxfactor.finn.compare(original, file, IMAGES)
    errors = {row.site: row.torch_error for row in found.layers if row.torch_error is not None}
    assert "block.conv2.pointwise" in errors  # beside the original's block.conv2
    assert all(0.001 < error < 2 for error in errors.values())
    grown = re.search(r"grows most at (\S+) \(\+\d+\.\d%, to (\d+\.\d)%\)", found.findings[0])
    assert grown is not None
    assert f"{errors[grown[1]]:.1%}" == f"{grown[2]}%"
    assert "at the end, classifier:" in found.findings[0]


def test_what_parts_stands_out_in_the_table() -> None:
    rows = (ComparedLayer("same", "Conv", 9, 1e-7), ComparedLayer("error", "Conv", 9, 1e-3),
            ComparedLayer("levels", "Quant", 9, 0.0, 0.0, 0.25))  # fmt: skip
    console = Console(record=True, force_terminal=True, width=100, file=io.StringIO())
    console.print(Comparison("model.onnx", 1, rows, ("the end",)))
    lines = console.export_text(styles=True).splitlines()
    marked = [line for line in lines if "33m" in line]
    assert len(marked) == 2
    assert "1.0e-03" in marked[0]
    assert "25.000%" in marked[1]
    assert any("the end" in line for line in lines)


def test_a_file_that_fxfactor_did_not_make(tmp_path: Path) -> None:
    class Brevitas(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry = qnn.QuantIdentity(bit_width=8)
            self.conv = qnn.QuantConv2d(3, 4, 3, weight_bit_width=4, bias=False)
            self.relu = qnn.QuantReLU(bit_width=4)
            self.head = qnn.QuantConv2d(4, 2, 1, weight_bit_width=4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.relu(self.conv(self.entry(x))))

    torch.manual_seed(0)
    model = Brevitas()
    model(IMAGES)  # ranges from statistics
    write_qonnx(model.eval(), (IMAGES[:1],), tmp_path / "model.onnx")
    found = fxfactor.finn.compare(model, tmp_path / "model.onnx", IMAGES)
    assert {"entry", "conv", "relu", "head"} <= {row.site for row in found.layers}
    assert "PyTorch and the file give the same at all" in found.findings[0]
    # ranges that statistics chose are multiples of the sums: some lie in the middle between two levels
    assert "give the same at all" in found.findings[1] or "lie in the middle between two levels" in found.findings[1]


def test_images_and_networks_that_do_not_fit_are_refused(network: Any, file: Path) -> None:
    with pytest.raises(
        FinnError, match=r"images of shape \(N, 3, 16, 16\), as the file takes them; found: \(1, 3, 8, 8\)"
    ):
        fxfactor.finn.compare(network, file, torch.zeros(1, 3, 8, 8))
    with pytest.raises(FinnError, match="a network that takes what the file takes; found: Conv2d raises RuntimeError"):
        fxfactor.finn.compare(nn.Conv2d(5, 3, 1), file, IMAGES)


@pytest.mark.parametrize("domain", ["nowhere", "qonnx.custom_op.general"])
def test_a_file_that_cannot_be_executed_is_refused(file: Path, tmp_path: Path, domain: str) -> None:
    model = onnx.load(str(file))
    node = next(node for node in model.graph.node if node.op_type == "Relu")
    node.op_type, node.domain = "Unheard", domain
    onnx.save(model, str(tmp_path / "strange.onnx"))
    with pytest.raises(
        FxfactorError, match=r"(shapes in the graph cannot be inferred|a file that qonnx executes).*Unheard"
    ):
        fxfactor.finn.compare(None, tmp_path / "strange.onnx", IMAGES)


@pytest.mark.finn
def test_finns_graph_is_compared_too(network: Any, file: Path, tmp_path: Path) -> None:
    settings = {"cache": tmp_path / "cache", "target_fps": 100}
    found = fxfactor.finn.compare(network, file, IMAGES[:1], finn=True, settings=settings)
    assert "FINN's graph gives the same integers after each of" in found.findings[-1]
