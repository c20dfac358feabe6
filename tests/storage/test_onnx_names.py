"""Module paths in ONNX files."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper

from fxfactor.storage.onnx_names import path_in, record_sites, site_of


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/layer1/layer1.0/conv1/weight_quant/Quant", "layer1.0.conv1"),
        ("/stem/stem.0/Conv", "stem.0"),
        ("/conv1/Conv", "conv1"),
        ("/block/block.conv1/block.conv1.spatial/act_quant/export_handler/Quant", "block.conv1.spatial"),
        ("Add_7", ""),
        ("/Relu", ""),
    ],
)
def test_a_path_is_read_from_the_exporters_name(name: str, path: str) -> None:
    assert path_in(name) == path


def network() -> onnx.ModelProto:
    """A convolution whose weight goes through a quantizer, and a ReLU, with names that say nothing."""
    value = helper.make_tensor_value_info
    nodes = [
        helper.make_node("Quant", ["stem.0.weight", "scale"], ["rounded"], name="Quant_0"),
        helper.make_node("Conv", ["x", "rounded"], ["y"], name="Conv_0"),
        helper.make_node("Relu", ["y"], ["z"], name="/head/Relu"),
        helper.make_node("Add", ["z", "other.bias"], ["out"], name="Add_0"),
    ]
    tensors = [helper.make_tensor(name, 1, [1], [1.0]) for name in ("stem.0.weight", "scale", "other.bias")]
    graph = helper.make_graph(nodes, "net", [value("x", 1, [1])], [value("out", 1, [1])], tensors)
    return helper.make_model(graph)


def test_a_site_is_that_of_the_weight_or_of_the_name_and_outlives_new_names() -> None:
    model = network()
    record_sites(model)
    for node in model.graph.node:
        node.name = f"node_{node.op_type}"
    found = {node.op_type: site_of(node, {}, ()) for node in model.graph.node}
    assert found == {"Quant": "", "Conv": "stem.0", "Relu": "head", "Add": ""}
    assert [bool(node.doc_string) for node in model.graph.node] == [False, True, True, False]


@pytest.mark.parametrize(
    ("called", "wanted"),
    [
        (["a.conv.quant", "a.relu", "b.conv.quant", "a.relu"], ["a.conv.quant", "a.relu", "b.conv.quant", "a.relu"]),
        (["a.conv.quant", "a.relu", "a.relu"], ["quant", "a.relu", "quant", "a.relu"]),  # one quantizer was left out
        (["a.other_quant", "b.other_quant"], ["quant", "relu", "quant", "relu"]),  # another name that ends alike
        ([], ["quant", "relu", "quant", "relu"]),
    ],
)
def test_equal_ends_of_paths_become_whole_ones_by_the_order_of_calls(called: list[str], wanted: list[str]) -> None:
    nodes = [
        helper.make_node(operation, ["x"], [f"y{index}"], name=f"/{path}/act_quant/{operation}")
        for index, (operation, path) in enumerate([("Quant", "quant"), ("Relu", "relu")] * 2)
    ]
    model = helper.make_model(helper.make_graph(nodes, "net", [], []))
    record_sites(model, called)
    assert [site_of(node, {}, ()) for node in model.graph.node] == wanted
