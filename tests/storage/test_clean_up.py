"""An exported model is cleaned up as qonnx does it: the same nodes, names, constants and shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from networks import ResidualNet, conv_bn_relu, randomized
from onnx import TensorProto, helper, numpy_helper
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.core.onnx_exec import execute_onnx
from qonnx.util.cleanup import cleanup_model
from torch import Tensor, nn

from fxfactor import ExportError, transform
from fxfactor.storage.clean_up import clean_up, execute
from fxfactor.storage.qonnx import write_qonnx


class Branches(nn.Module):
    """Shared constants, sizes read from a tensor, a product with a transposed tensor, a constant first in a sum."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = conv_bn_relu(3, 8), conv_bn_relu(3, 8)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat([1 + self.first(x), self.second(x) * 2.0], 1)
        y = y.reshape(y.shape[0], 2, 8, -1).mean(1).transpose(1, 2)
        return self.head(y).flatten(1)


class Upsampling(nn.Module):
    """Operations that leave inputs out: Resize without a region, Clip without an upper end."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = conv_bn_relu(3, 8), nn.Upsample(scale_factor=2)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pad(self.up(self.conv(x)).clamp(min=0.5), (1, 0, 1, 0))


NETWORKS: dict[str, Any] = {
    "residual": lambda: (randomized(ResidualNet()), {"level": 1, "bits": 4}),
    "depthwise": lambda: (randomized(ResidualNet()), {"level": "depthwise", "bits": 3}),
    "branches": lambda: (randomized(Branches()), {"level": 0, "bits": 4}),
    "upsampling": lambda: (randomized(Upsampling()), {"level": 1, "bits": 4}),
    "floating point": lambda: (randomized(Branches()), {"level": 2}),
}


def contents(model: onnx.ModelProto) -> dict[str, Any]:
    graph = model.graph
    infos = [*graph.value_info, *graph.input, *graph.output]
    return {
        "nodes": [node.SerializeToString(deterministic=True) for node in graph.node],
        "constants": {each.name: numpy_helper.to_array(each).tolist() for each in graph.initializer},
        "shapes": {info.name: info.type.SerializeToString(deterministic=True) for info in infos},
        "inputs": [info.name for info in graph.input],
        "outputs": [info.name for info in graph.output],
    }


@pytest.mark.parametrize("name", NETWORKS)
def test_the_model_is_that_of_qonnx(tmp_path: Path, name: str) -> None:
    model, options = NETWORKS[name]()
    images = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    graph = transform(model, example_inputs=images, **options).eval()
    write_qonnx(graph, (images,), tmp_path / "raw.onnx", input_names=["x"])
    mine = onnx.load(str(tmp_path / "raw.onnx"))
    clean_up(mine)
    theirs = cleanup_model(ModelWrapper(str(tmp_path / "raw.onnx")))
    assert contents(mine) == contents(theirs.model)
    (found,) = execute_onnx(theirs, {"global_in": images.numpy()}).values()
    values = {"global_in": images.numpy()}
    for _ in execute(mine, values):
        pass
    assert np.array_equal(values["global_out"], found)


def _model(nodes: list[onnx.NodeProto], constants: dict[str, Any]) -> onnx.ModelProto:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 2, 3, 4]) for name in ("x", "y")]
    made = [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()]
    graph = helper.make_graph(nodes, "graph", ends[:1], ends[1:], made)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])


def test_sizes_become_constants_and_what_nothing_reads_is_gone() -> None:
    nodes = [
        helper.make_node("Shape", ["x"], ["size"]),
        helper.make_node("Gather", ["size", "last"], ["width"]),
        helper.make_node("Cast", ["width"], ["real"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["real", "x"], ["z"]),
        helper.make_node("Relu", ["z"], ["y"]),
    ]
    model = _model(nodes, {"last": np.int64(3), "unread": np.float32(1)})
    clean_up(model)
    assert [(node.name, list(node.input)) for node in model.graph.node] == [
        ("Mul_0", ["global_in", "Mul_0_param0"]),
        ("Relu_0", ["Mul_0_out0"]),
    ]
    assert {each.name: numpy_helper.to_array(each) for each in model.graph.initializer} == {"Mul_0_param0": 4.0}


def test_each_reader_has_constants_of_its_own() -> None:
    nodes = [helper.make_node("Add", ["one", "x"], ["z"]), helper.make_node("Mul", ["z", "one"], ["y"])]
    model = _model(nodes, {"one": np.float32(1)})
    clean_up(model)
    assert [list(node.input) for node in model.graph.node] == [
        ["global_in", "Add_0_param0"],
        ["Add_0_out0", "Mul_0_param0"],
    ]
    nodes = list(execute(model, {"global_in": np.zeros((1, 2, 3, 4), np.float32)}))
    assert [node.op_type for node in nodes] == ["Add", "Mul"]


def test_a_branch_is_refused() -> None:
    result = helper.make_tensor_value_info("r", TensorProto.FLOAT, [1, 2, 3, 4])
    inner = [helper.make_graph([helper.make_node(kind, ["x"], ["r"])], kind, [], [result]) for kind in ("Relu", "Neg")]
    node = helper.make_node("If", ["flag"], ["y"], "/choice", then_branch=inner[0], else_branch=inner[1])
    with pytest.raises(ExportError, match="has a branch or loop, If '/choice'"):
        clean_up(_model([node], {"flag": np.bool_(False)}))


def test_a_circle_is_an_error() -> None:
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("Add", ["x", "b"], ["a"]),
        helper.make_node("Relu", ["a"], ["b"]),
    ]
    with pytest.raises(ExportError, match="runs in a circle"):
        clean_up(_model(nodes, {}))
