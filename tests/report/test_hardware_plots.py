"""Pictures of hardware: what is drawn where."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import pytest
from hardware_results import COMPRESSED, SIMULATION, SYNTHESIS

from fxfactor.report import hardware_plots
from fxfactor.report.style import to_svg

pytest.importorskip("matplotlib")


def test_candidates_are_drawn_by_kind_and_hollow_where_they_are_too_large() -> None:
    axes = hardware_plots.candidates(COMPRESSED.to_dict()).axes
    whole, factorized, taken = axes[1].collections
    assert whole.get_offsets().tolist() == [[5000, 93], [50_000, 94]]
    assert [len(face) and face[3] for face in whole.get_facecolors()] == [1.0, 0.0]
    assert factorized.get_offsets().tolist() == [[3000, 88], [4000, 93.75]]
    assert taken.get_offsets().tolist() == [[4000, 93.75]]
    assert axes[0].lines[0].get_xydata().tolist() == [[0.125, 88], [0.25, 93.75]]


def test_a_site_is_drawn_when_its_last_layer_is_done() -> None:
    """The stream between two layers of one site is no row of its own, and a frame has the same place in each row."""
    axis = hardware_plots.pipeline(SIMULATION.to_dict()).axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["stem", "<pool>"]
    bars = [[(bar.get_x(), bar.get_x() + bar.get_width()) for bar in frame] for frame in axis.containers]
    assert bars == [[(10, 111), (115, 116)], [(110, 211), (215, 216)], [(210, 311), (315, 316)]]


def test_the_bars_of_areas_are_sums_by_site() -> None:
    figure = hardware_plots.areas(SYNTHESIS.to_dict())
    axis = figure.axes[0]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["stem"]
    assert [[bar.get_width() for bar in bars] for bars in axis.containers] == [[1234], [1040], [950]]
    ElementTree.fromstring(to_svg(figure, "areas"))
