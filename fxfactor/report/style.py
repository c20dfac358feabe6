"""One look for all pictures: figures without global state, readable on a light and on a dark page."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError
from fxfactor.files import new_file

if TYPE_CHECKING:
    from matplotlib.figure import Figure


INK = "#010203"
"""Colour of text and axes. On a page it becomes the page's own text colour; in a PNG it is as good as black."""

BEFORE, AFTER, ACCENT = "#8296ab", "#e07b29", "#2f7fc1"
_LEVELS = ("#2f9bc1", "#7f6fc9", "#d9483b")

_ON_PAGE = 1.3
"""How much larger than drawn a picture is on the page: lettering as large as the text's."""
_LEAST = 0.65
"""What is left of that on a small screen; the rest is scrolled."""

_SETTINGS: dict[str, Any] = {
    "font.size": 8.5, "axes.titlesize": 9, "axes.titleweight": "bold", "axes.labelsize": 8.5, "xtick.labelsize": 7.5,
    "ytick.labelsize": 7.5, "legend.fontsize": 8, "legend.frameon": False, "font.family": "DejaVu Sans",
    "text.color": INK, "axes.labelcolor": INK, "axes.edgecolor": INK, "axes.titlecolor": INK, "xtick.color": INK,
    "ytick.color": INK, "axes.spines.top": False, "axes.spines.right": False, "axes.linewidth": 0.6,
    "xtick.major.width": 0.6, "ytick.major.width": 0.6, "axes.facecolor": "none", "figure.facecolor": "none",
    "savefig.facecolor": "none", "svg.fonttype": "none", "axes.titlelocation": "left", "grid.linewidth": 0.4,
    "grid.alpha": 0.35, "grid.color": BEFORE,
}  # fmt: skip


@contextmanager
def styled() -> Iterator[None]:
    """Our settings for what is drawn inside. Raises PreconditionError where matplotlib is not installed."""
    try:
        import matplotlib
    except ImportError as error:
        raise PreconditionError('pictures need matplotlib: pip install "fxfactor[plot]"') from error
    settings: Any = _SETTINGS
    with matplotlib.rc_context(settings):
        yield


def new_figure(width: float, height: float, rows: int = 1, columns: int = 1, **settings: Any) -> tuple[Figure, Any]:
    """A figure of so many inches with a grid of axes, always as a two-dimensional array."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **settings)


def level_colors(count: int) -> list[Any]:
    """Colours for variants in their order, from blue over violet to red."""
    from matplotlib.colors import LinearSegmentedColormap

    scale = LinearSegmentedColormap.from_list("levels", _LEVELS)
    return [scale(index / max(count - 1, 1)) for index in range(count)]


def label_sites(axis: Any, sites: Sequence[str]) -> None:
    """Site names below the x axis, slanted."""
    axis.set_xticks(range(len(sites)), sites, rotation=45, ha="right", rotation_mode="anchor")
    axis.set_xlim(-0.6, len(sites) - 0.4)


def to_svg(figure: Figure, name: str) -> str:
    """The picture as an <svg> element for a page: text in the page's colour, no date, ids that start with `name`."""
    import matplotlib

    text = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": name, "svg.fonttype": "none"}):
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor")
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    svg = re.sub(r'\bid="', f'id="{name}-', svg)
    svg = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", svg)
    svg = re.sub(r' height="[^"]*pt"', "", svg, count=1)

    def sized(found: re.Match[str]) -> str:
        width = _ON_PAGE * float(found[2])
        return f'<svg role="img" style="width:{width:.0f}pt;min-width:{_LEAST * width:.0f}pt" {found[1]}'

    return re.sub(r'<svg ([^>]*?)width="([\d.]+)pt"', sized, svg, count=1)


def save_png(figure: Figure, path: str | Path, dpi: int = 120) -> None:
    """Write the picture as a PNG on white, whole or not at all."""
    with new_file(path, "writing a picture") as temporary:
        figure.savefig(temporary, format="png", dpi=dpi, facecolor="white")
