"""The drawing of the network."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
import torch
from report_helpers import images, make_net
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.report.architecture import architecture, outline
from fxfactor.report.style import to_svg

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def variants() -> dict[str, GraphModule]:
    levels: tuple[Any, ...] = (0, 2, "depthwise")
    return {f"level {each}": fxfactor.transform(make_net(), each, 4, example_inputs=images()[:1]) for each in levels}


def test_the_outline_has_layers_joins_and_poolings(variants: dict[str, GraphModule]) -> None:
    graph = outline(variants["level 2"])
    kinds = [data["box"].kind for _, data in graph.nodes(data=True)]
    assert kinds == ["input", "dense", "spatial", "pointwise", "join", "pooling", "linear", "output"]
    assert graph.in_degree("add") == 2
    assert graph.nodes["add"]["box"].text == "+"
    ElementTree.fromstring(to_svg(architecture(fxfactor.capture(make_net(), images()[:1]), variants["level 2"]), "x"))


def test_every_layer_has_its_box_and_every_edge_its_arrow(variants: dict[str, GraphModule]) -> None:
    before, after = fxfactor.capture(make_net(), images()[:1]), variants["level 2"]
    figure = architecture(before, after)
    left, right = figure.axes
    assert [axis.get_title(loc="left") or axis.get_title() for axis in (left, right)] == ["before", "after"]
    for axis, graph in ((left, before), (right, after)):
        drawn = outline(graph)
        boxes = {text.get_text(): text.get_position() for text in axis.texts if text.get_text()}
        assert set(boxes) == {data["box"].text for _, data in drawn.nodes(data=True)}
        assert len([text for text in axis.texts if text.get_text() == ""]) == drawn.number_of_edges()
        low, high = axis.get_ylim()
        assert all(low < y < high for _, y in boxes.values())
        for source, target in drawn.edges:
            y, to_y = (boxes[drawn.nodes[name]["box"].text][1] for name in (source, target))
            assert to_y < y
    beside = [{text.get_text().split("  ")[0]: text.get_position()[1] for text in axis.texts} for axis in (left, right)]
    assert beside[0]["stem"] == beside[1]["stem"]
    assert beside[0]["conv"] == beside[1]["conv"]
    assert beside[0]["classifier"] == beside[1]["classifier"]
    names = [text.get_text() for text in figure.legends[0].get_texts()]
    assert len(names) == len(set(names)) == 4


def test_a_box_says_channels_kernel_groups_stride_and_bits() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, (3, 5), stride=2),
        nn.Conv2d(16, 16, 3, groups=4),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(64, 5),
    )
    graph = fxfactor.capture(model.eval(), torch.zeros(1, 3, 15, 15))
    texts = [data["box"].text for _, data in outline(graph).nodes(data=True)]
    assert texts[:3] == ["3×15×15", "0  3→16 3×5 /2", "1  16→16 3×3 g4"]
    qmodel = fxfactor.transform(model, 3, (2, 4), example_inputs=torch.zeros(1, 3, 15, 15))
    texts = [data["box"].text for _, data in outline(qmodel).nodes(data=True)]
    assert "1  16→16 3×3 g8  w2 a4" in texts
    assert any(text.startswith("16→16 g4") and text.endswith("w2 a4") for text in texts)
    assert "pool" in texts
