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


def test_error_lines_go_through_the_errors_of_the_rows(table: Distributions) -> None:
    figure = plots.errors(table)
    for axis, column in zip(figure.axes, ("layer_error", "accumulated_error"), strict=True):
        lines = {line.get_label(): line.get_ydata() for line in axis.lines}
        for variant in table.variants:
            wanted = [getattr(row, column) for row in table.where(variant=variant, tensor="output")]
            assert list(lines[variant]) == wanted
    alone = plots.errors(table, ["level 2"]).axes[0]
    factors = [row.unrounded_error for row in table.where(variant="level 2", tensor="output")]
    (line,) = (each for each in alone.lines if "factors alone" in str(each.get_label()))
    assert list(line.get_ydata()) == [each for each in factors if each]
    assert alone.get_legend() is not None


def test_a_matrix_has_the_number_of_every_site_and_variant_and_red_where_it_is_bad(table: Distributions) -> None:
    for column, worst in (("sqnr_db", "low"), ("layer_error", "high")):
        (axis,) = plots.matrix(table, column, "output", worst=worst).axes
        values = axis.images[0].get_array()
        rows = [row for row in table.where(tensor="output") if row.variant != "original"]
        assert sorted(values.flatten().tolist()) == pytest.approx(sorted(getattr(row, column) for row in rows))
        texts = sorted(text.get_text() for text in axis.texts)
        assert texts == sorted(f"{getattr(row, column):{'.1f' if worst == 'low' else '.2g'}}" for row in rows)
        image = axis.images[0]
        bad = (values.min() if worst == "low" else values.max()).item()
        red, _, blue, _ = image.cmap(image.norm(bad))
        assert red > blue
        assert [label.get_text() for label in axis.get_xticklabels()] == ["0", "2", "depthwise"]


def test_range_bars_reach_from_the_smallest_to_the_largest_value(table: Distributions) -> None:
    (axis,) = plots.ranges(table, "between", ["level 2"]).axes
    (row,) = table.where(variant="level 2", tensor="between")
    drawn = [tuple(float(y) for y in line.get_ydata()) for line in axis.lines]
    for pair in ((row.min, row.max), (row.p1, row.p99), (row.p25, row.p75)):
        assert pair in drawn
    assert row.bins is not None
    assert all((end, end) in drawn for end in (row.bins.grid[0], row.bins.grid[-1]) if end)


def test_a_histogram_shows_shares_before_and_at_each_level(table: Distributions) -> None:
    rows = [row for row in table.where(variant="level 2", site="conv") if row.bins]
    figure = plots.histograms(rows, columns=3)
    axes = [axis for axis in figure.axes if axis.get_visible()]
    assert len(axes) == len(rows)
    for axis, row in zip(axes, rows, strict=True):
        assert row.bins is not None
        shares = axis.patches[0].get_data().values
        assert sum(shares) == pytest.approx(1)
        assert shares.argmax() == max(range(len(row.bins.before)), key=row.bins.before.__getitem__)
        bars = axis.patches[1:]
        if row.bins.grid:
            middles = [bar.get_x() + bar.get_width() / 2 for bar in bars]
            assert middles == pytest.approx(row.bins.grid)
            heights = [bar.get_height() for bar in bars]
            scale = sum(heights) / sum(row.bins.after)
            assert heights == pytest.approx([scale * each for each in row.bins.after])
        elif row.bins.after:
            assert sum(bars[0].get_data().values) == pytest.approx(1)
        (facts,) = (text.get_text() for text in axis.texts)
        assert facts.startswith(row.tensor)
        assert row.sqnr_db is None or f"{row.sqnr_db:.1f} dB" in facts
        low, high = axis.get_ylim()
        assert low < min(share for share in shares if share > 0) and high > 1


def test_channels_are_drawn_from_the_widest_to_the_narrowest(table: Distributions) -> None:
    figure = plots.channel_ranges(table, "output", ["level 2"])
    shown = [axis for axis in figure.axes if axis.get_title(loc="left") in ("original", "level 2")]
    assert len(shown) == 2
    for axis in shown:
        rows = table.where(variant=axis.get_title(loc="left"), tensor="output")
        picture = axis.images[0].get_array()
        for line, row in zip(picture, rows, strict=True):
            assert line[0] == pytest.approx(max(row.channel_ratios))
            assert line[-1] == pytest.approx(min(row.channel_ratios))
            assert (line[:-1] >= line[1:]).all()
        assert [text.get_text() for text in axis.texts] == [f"{row.channel_range_ratio:.2f}" for row in rows]


def test_accuracy_over_cost_has_every_network_and_the_line_of_the_best() -> None:
    points = {"dear": (4e6, 0.9), "cheap": (1e6, 0.8), "beaten": (3e6, 0.7), "equal": (2e6, 0.8)}
    figure = plots.accuracy_over_cost(points, 0.95)
    axis = figure.axes[0]
    front, *dots, dashed = axis.get_lines()
    assert list(front.get_xdata()) == [1e6, 4e6]
    assert list(front.get_ydata()) == pytest.approx([80, 90])
    drawn = {(line.get_xdata()[0], round(line.get_ydata()[0])) for line in dots}
    assert drawn == {(4e6, 90), (1e6, 80), (3e6, 70), (2e6, 80)}
    assert {text.get_text() for text in axis.texts} == set(points)
    assert dashed.get_ydata()[0] == pytest.approx(95)
    assert len(plots.accuracy_over_cost(points).axes[0].get_lines()) == 5
