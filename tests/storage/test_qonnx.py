"""Export: the file computes what the network computes, or there is no file."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
import torch
from networks import Lambda, ResidualNet, conv_bn_relu, fingerprint, randomized, set_statistics
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.custom_op.general import intquant
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

import fxfactor.finn
from fxfactor import Change, ExportError, GraphError, PreconditionError, Skip, calibrate, capture, export, transform
from fxfactor.graph import is_quantizer
from fxfactor.graph.compare import random_inputs
from fxfactor.passes import LegalizeForFinn
from fxfactor.quantization.brevitas_layers import is_signed, set_limit
from fxfactor.storage import qonnx as exporting
from fxfactor.storage.clean_up import clean_up

IMAGES = (1, 3, 16, 16)


def ready(model: nn.Module, level: int | str = 1, bits: int | None = 4, shape: tuple[int, ...] = IMAGES) -> GraphModule:
    """The network with sensible batch norms, transformed."""
    model = set_statistics(randomized(model), [torch.randn(8, *shape[1:])])
    return transform(model, level=level, bits=bits, example_inputs=torch.zeros(shape))


def execute(path: Path, images: Tensor) -> Tensor:
    """Run the file in qonnx, apart from what export itself does."""
    model = ModelWrapper(str(path))
    (output,) = execute_onnx(model, {model.graph.input[0].name: images.numpy()}).values()
    return torch.from_numpy(output)


def difference(path: Path, graph: GraphModule, images: Tensor) -> float:
    with torch.no_grad():
        wanted = graph.eval()(images)
    return float((execute(path, images) - wanted).abs().max() / wanted.abs().max())


@pytest.mark.parametrize(("level", "bits"), [(0, 8), (1, 4), ("depthwise", 2), (1, None)])
def test_the_file_computes_what_the_network_computes(tmp_path, level, bits):
    graph = ready(ResidualNet(), level, bits)
    result = export(graph, tmp_path / "model.onnx")
    assert result.path == tmp_path / "model.onnx"
    assert result.relative_difference <= 1e-5
    assert difference(result.path, graph, random_inputs(graph)[0]) <= 1e-5
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v2"])
def test_networks_of_torchvision(tmp_path, name):
    models = pytest.importorskip("torchvision").models
    graph = ready(getattr(models, name)(num_classes=10), 3, 4, (1, 3, 32, 32))
    images = torch.randn(1, 3, 32, 32)
    result = export(graph, tmp_path / "model.onnx", example_inputs=images)
    assert result.relative_difference <= 1e-5
    model = ModelWrapper(str(result.path))
    additions = [
        node for node in model.graph.node if node.op_type == "Add" and not model.get_initializer(node.input[1])
    ]
    assert len(additions) >= 8
    if not result.rounding_ties:
        assert difference(result.path, graph, images) <= 1e-5


def test_quantized_tensors_stand_in_the_file(tmp_path):
    graph = ready(ResidualNet(), 1, 4)
    export(graph, tmp_path / "model.onnx")
    model = ModelWrapper(str(tmp_path / "model.onnx"))
    bits = sorted({float(model.get_initializer(node.input[3])) for node in model.get_nodes_by_op_type("Quant")})
    assert bits == [4, 8]
    groups = [onnx.helper.get_node_attr_value(node, "group") for node in model.get_nodes_by_op_type("Conv")]
    assert groups == [1, 2, 1, 2, 1]


def test_concatenation_pooling_and_clipping(tmp_path):
    def forward(m, x):
        x = F.max_pool2d(F.relu6(m.stem(x)), 2)
        return m.last(F.avg_pool2d(torch.cat([m.a(x), F.relu(m.b(x))], 1), 2).flatten(1))

    conv = nn.Conv2d
    model = Lambda(forward, stem=conv(3, 8, 3, padding=1), a=conv(8, 4, 1), b=conv(8, 4, 1), last=nn.Linear(128, 4))
    assert export(ready(model), tmp_path / "model.onnx").relative_difference <= 1e-5


def test_series(tmp_path):
    model = nn.Sequential(nn.Conv1d(3, 8, 5), nn.BatchNorm1d(8), nn.ReLU(), nn.Conv1d(8, 8, 3), nn.Flatten())
    assert export(ready(model, 1, 4, (1, 3, 32)), tmp_path / "model.onnx").relative_difference <= 1e-5


def test_dropout_of_a_network_in_training_is_not_in_the_file(tmp_path):
    model = nn.Sequential(conv_bn_relu(3, 8), nn.Dropout(0.5), nn.Conv2d(8, 4, 1)).train()
    graph = transform(model, level=0, bits=4, example_inputs=torch.zeros(IMAGES))
    before = fingerprint(graph)
    export(graph, tmp_path / "model.onnx")
    assert fingerprint(graph) == before
    assert graph.training
    assert not ModelWrapper(str(tmp_path / "model.onnx")).get_nodes_by_op_type("Dropout")


def test_a_network_in_float64_is_written_in_float32(tmp_path):
    graph = transform(randomized(ResidualNet()).double(), level=1, example_inputs=torch.zeros(IMAGES).double())
    assert export(graph, tmp_path / "model.onnx").relative_difference <= 1e-5
    assert next(graph.parameters()).dtype == torch.float64


def test_an_earlier_file_is_replaced(tmp_path):
    graph = ready(ResidualNet())
    (tmp_path / "model.onnx").write_text("earlier")
    export(graph, str(tmp_path / "model.onnx"))
    assert onnx.load(tmp_path / "model.onnx").graph.node


def test_a_file_that_differs_is_not_left_behind(tmp_path, monkeypatch):
    write = exporting.write_qonnx

    def write_another(graph, inputs, path, **options):
        other = copy.deepcopy(graph)
        with torch.no_grad():
            other.classifier.bias.add_(0.1)
        write(other, inputs, path, **options)

    monkeypatch.setattr(exporting, "write_qonnx", write_another)
    with pytest.raises(ExportError, match=r"computes something else: relative difference 0\.\d+ on the example input"):
        export(ready(ResidualNet()), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_a_file_whose_activations_differ_is_not_left_behind(tmp_path, monkeypatch):
    write = exporting.write_qonnx

    def write_another(graph, inputs, path, **options):
        other = copy.deepcopy(graph)
        with torch.no_grad():
            other.get_submodule("stem.0").weight.mul_(1.5)
        write(other, inputs, path, **options)

    monkeypatch.setattr(exporting, "write_qonnx", write_another)
    with pytest.raises(ExportError, match=r"something else from stem\.2 on: \d+ activations of 4096 get another level"):
        export(ready(ResidualNet()), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_file_survives_a_failed_export(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").write_text("earlier")
    write, other = exporting.write_qonnx, ready(ResidualNet(), level=0)
    with torch.no_grad():
        other.classifier.bias.add_(0.1)
    monkeypatch.setattr(exporting, "write_qonnx", lambda graph, *rest, **options: write(other, *rest, **options))
    with pytest.raises(ExportError, match="computes something else"):
        export(ready(ResidualNet()), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").read_text() == "earlier"
    assert len(list(tmp_path.iterdir())) == 1


def test_execution_beside_torch_gives_the_same_without_ties(tmp_path):
    graph = ready(ResidualNet()).eval()
    images = torch.randn(IMAGES)
    exporting.write_qonnx(graph, (images,), tmp_path / "model.onnx")
    model = onnx.load(str(tmp_path / "model.onnx"))
    clean_up(model)
    (found,), ties = exporting.execute_with_ties(model, graph, (images,))
    with torch.no_grad():
        wanted = graph(images)
    assert ties == 0
    assert (found - wanted).abs().max() <= 1e-5 * wanted.abs().max()


def quant_node(values: list[float], found: list[float], scale: float) -> tuple[SimpleNamespace, dict[str, np.ndarray]]:
    context = {"x": np.float32(values), "scale": np.float32(scale), "y": np.float32(found)}
    return SimpleNamespace(name="Quant_7", doc_string="", input=["x", "scale"], output=["y"]), context


def test_a_rounding_tie_is_settled_for_torch():
    node, context = quant_node([0.12500001, 0.3, -0.375], [0.25, 0.25, -0.25], scale=0.25)
    wanted = np.float32([0.0, 0.25, -0.5])
    assert exporting.settle_ties(node, context, wanted) == 2
    assert (context["y"] == wanted).all()


def test_another_level_far_from_a_tie_is_a_defect():
    node, context = quant_node([0.125, 0.3], [0.0, 0.25], scale=0.25)
    with pytest.raises(ExportError, match="from Quant_7 on: 1 activations of 2 get another level than in torch"):
        exporting.settle_ties(node, context, np.float32([0.0, 0.5]))


def test_a_network_full_of_ties_is_exported(tmp_path, monkeypatch):
    """All activations lie in the middle between two levels, and qonnx is made to round up there where torch rounds to even."""
    model = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.ReLU(), nn.Conv2d(1, 1, 1, bias=False))
    for conv in (model[0], model[2]):
        nn.init.constant_(conv.weight, 1.0)
    images = (torch.arange(16.0).reshape(1, 1, 4, 4) + 0.5) / 64
    graph = transform(model, level=0, bits=8, example_inputs=images)
    for module in graph.modules():
        if is_quantizer(module):
            set_limit(module, 2.0 if is_signed(module) else 255 / 64)
    assert export(graph, tmp_path / "even.onnx", example_inputs=images).rounding_ties == 0
    monkeypatch.setattr(intquant, "resolve_rounding_mode", lambda mode: lambda x: np.floor(x + 0.5))
    result = export(graph, tmp_path / "up.onnx", example_inputs=images)
    assert result.rounding_ties == 8
    assert result.relative_difference <= 1e-5


class Spectrum(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.special.i0e(self.conv(x))


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.attention = nn.Conv2d(3, 8, 3), nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2).transpose(1, 2)
        return self.attention(x, x, x)[0]


def test_a_failing_export_prints_nothing_of_its_own(tmp_path, capfd):
    graph = transform(Attention().eval(), level=0, bits=4, example_inputs=torch.zeros(IMAGES))
    capfd.readouterr()  # capfd: torch prints its graph from C++
    with pytest.raises(ExportError, match=r"no ONNX form: .*multi_head_attention"):
        export(graph, tmp_path / "attention.onnx")
    (finding,) = fxfactor.finn.check(graph)
    assert "multi_head_attention" in finding.found
    assert capfd.readouterr() == ("", "")


def test_an_operation_without_onnx_form_is_named(tmp_path):
    graph = transform(Spectrum(), level=0, example_inputs=torch.zeros(IMAGES))
    with pytest.raises(ExportError, match=r"no ONNX form: .*i0e.*replace that operation in the model"):
        export(graph, tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("wrong", [nn.Conv2d(3, 4, 3), "model", None])
def test_what_is_no_graph_is_refused(tmp_path, wrong):
    with pytest.raises(PreconditionError, match=r"export needs what fxfactor\.transform gives, found"):
        export(wrong, tmp_path / "model.onnx")


def test_an_unknown_target_is_refused(tmp_path):
    with pytest.raises(PreconditionError, match='target must be "qonnx" or "finn", found \'tflite\''):
        export(capture(ResidualNet()), tmp_path / "model.onnx", target="tflite")


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(PreconditionError, match=r"exporting: the folder .*nowhere' does not exist; create it first"):
        export(capture(ResidualNet()), tmp_path / "nowhere" / "model.onnx")


def test_a_folder_in_the_way_is_named(tmp_path):
    with pytest.raises(PreconditionError, match="is a folder; give the name of a file"):
        export(capture(ResidualNet()), tmp_path)


def test_two_exports_are_the_same(tmp_path):
    graph = calibrate(ready(ResidualNet()), [torch.randn(4, *IMAGES[1:])])
    first, second = (export(graph, tmp_path / name).path.read_bytes() for name in ("a.onnx", "b.onnx"))
    assert first == second


def _swap_branches(graph: GraphModule) -> None:
    """Exchange the weights of two branches of a grouped convolution that was split."""
    first, second = (graph.get_submodule(f"3.spatial.{index}").weight for index in (0, 1))
    first.data, second.data = second.data.clone(), first.data.clone()


def _grouped() -> GraphModule:
    return ready(nn.Sequential(nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3)), level=1)


def test_a_rewrite_for_finn_that_changes_the_function_is_a_defect(monkeypatch: pytest.MonkeyPatch) -> None:
    rewrite = LegalizeForFinn.rewrite

    def wrong(self: LegalizeForFinn, graph: GraphModule) -> Iterator[Change | Skip]:
        yield from rewrite(self, graph)
        _swap_branches(graph)

    monkeypatch.setattr(LegalizeForFinn, "rewrite", wrong)
    with pytest.raises(GraphError, match="calls itself exact but changed the function"):
        exporting.legalize(_grouped())
