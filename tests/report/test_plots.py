"""Pictures: complete, and clear about bad input."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from report_helpers import images, make_net
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import Distributions
from fxfactor.report import plots
from fxfactor.report.style import save_png, to_svg

pytest.importorskip("matplotlib")


@pytest.fixture(scope="module")
def variants() -> dict[str, GraphModule]:
    levels: tuple[Any, ...] = (0, 2, "depthwise")
    return {f"level {each}": fxfactor.transform(make_net(), each, 4, example_inputs=images()[:1]) for each in levels}


@pytest.fixture(scope="module")
def table(variants: dict[str, GraphModule]) -> Distributions:
    return distributions(make_net(), variants, [images()])


DRAWINGS = {
    "ranges": lambda table: plots.ranges(table, "output"),
    "between": lambda table: plots.ranges(table, "between"),
    "histograms": lambda table: plots.histograms(
        [row for row in table.where(variant="level 2", site="conv") if row.bins]
    ),
    "channels": lambda table: plots.channel_ranges(table, "between"),
    "errors": lambda table: plots.errors(table),
    "one": lambda table: plots.errors(table, ["level 2"]),
    "matrix": lambda table: plots.matrix(table, "sqnr_db", "between"),
}


@pytest.mark.parametrize("name", DRAWINGS)
def test_every_picture_is_drawn(table: Distributions, name: str, tmp_path: Path) -> None:
    figure = DRAWINGS[name](table)
    svg = to_svg(figure, name)
    ElementTree.fromstring(svg)
    assert "currentColor" in svg
    assert to_svg(DRAWINGS[name](table), name) == svg
    save_png(figure, tmp_path / "picture.png")
    assert (tmp_path / "picture.png").stat().st_size > 2000


def test_nothing_to_draw_is_refused(table: Distributions) -> None:
    with pytest.raises(PreconditionError, match="no rows with 'sqnr_db' of 'nowhere'"):
        plots.matrix(table, "sqnr_db", "nowhere")
