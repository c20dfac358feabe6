"""The drawing of the network."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from report_helpers import images, make_net
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
    ElementTree.fromstring(to_svg(architecture(fxfactor.capture(make_net(), images()[:1]), variants["level 2"]), "x"))
