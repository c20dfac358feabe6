"""The look of the pictures."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from fxfactor.report.style import INK, label_sites, level_colors, new_figure, save_png, styled, to_svg


def test_a_picture_for_a_page_takes_the_pages_colour_and_keeps_its_ids_to_itself() -> None:
    with styled():
        figure, axes = new_figure(3, 2)
        axes[0, 0].plot([0, 1], [1, 0])
        axes[0, 0].set_title("falling")
        svg = to_svg(figure, "mine")
        assert to_svg(figure, "mine") == svg
    assert svg.startswith('<svg role="img" ')
    assert INK not in svg
    assert "currentColor" in svg
    assert "falling" in svg
    assert "<metadata>" not in svg
    assert not re.search(r'<svg [^>]*(width|height)="', svg)
    ids = re.findall(r'\bid="([^"]*)"', svg)
    assert ids and all(each.startswith("mine-") for each in ids)
    assert set(re.findall(r'(?:href="#|url\(#)([^")]*)', svg)) <= set(ids)


def test_settings_end_with_the_block_and_axes_are_a_grid() -> None:
    import matplotlib

    before = dict(matplotlib.rcParams)
    with styled():
        assert matplotlib.rcParams["text.color"] == INK
        assert new_figure(2, 1, 2, 3)[1].shape == (2, 3)
    assert dict(matplotlib.rcParams) == before


def test_colours_go_from_the_first_to_the_last_level() -> None:
    assert len(level_colors(1)) == 1
    first, *middle, last = level_colors(5)
    assert first[2] > first[0]  # blue
    assert last[0] > last[2]  # red
    assert len({first, *middle, last}) == 5


def test_a_png_is_white_behind_and_site_names_stand_at_their_places(tmp_path: Path) -> None:
    from matplotlib.image import imread

    figure, axes = new_figure(2, 1)
    label_sites(axes[0, 0], ["a", "b", "c"])
    assert [label.get_text() for label in axes[0, 0].get_xticklabels()] == ["a", "b", "c"]
    low, high = axes[0, 0].get_xlim()
    assert -1 < low < 0 and 2 < high < 3
    save_png(figure, tmp_path / "a.png", dpi=50)
    pixels = imread(tmp_path / "a.png")
    assert pixels.shape[:2] == (50, 100)
    assert pixels[0, 0, :3].tolist() == [1, 1, 1]
