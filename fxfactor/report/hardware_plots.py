"""Pictures of hardware: when frames pass each part of the pipeline, and what each part takes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from fxfactor.report.style import ACCENT, AFTER, BEFORE, level_colors, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_ROW = 0.2
"""Inches for each site."""


def pipeline(simulation: Mapping[str, Any]) -> Figure:
    """When the words of each frame leave each site, in the order of the pipeline: a bar for each frame, over clock cycles.

    simulation: what `fxfactor.finn.Simulation.to_dict` gives. The stream that leaves a site is that of its last layer.
    """
    sites = {layer["name"]: layer["site"] for layer in simulation["layers"]}
    leaving: dict[str, Mapping[str, Any]] = {}
    for stream in simulation["streams"]:
        if stream["writer"] in sites:
            known = leaving.get(sites[stream["writer"]])
            if known is None or max(stream["ended"], default=0) >= max(known["ended"], default=0):
                leaving[sites[stream["writer"]]] = stream
    colours = level_colors(simulation["frames"])
    with styled():
        figure, axes = new_figure(7.5, 0.9 + _ROW * len(leaving))
        axis = axes[0, 0]
        for frame, colour in enumerate(colours):
            spans = [(place, stream["began"][frame], stream["ended"][frame])
                     for place, stream in enumerate(leaving.values()) if len(stream["ended"]) > frame]  # fmt: skip
            places, begins, ends = zip(*spans, strict=True) if spans else ((), (), ())
            widths = [end - begin + 1 for begin, end in zip(begins, ends, strict=True)]
            axis.barh(places, widths, 0.8, left=begins, color=colour, alpha=0.8, label=f"frame {frame + 1}")
        _name_rows(axis, list(leaving))
        axis.set_xlabel("clock cycles after the network's first word")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper left", ncols=min(len(colours), 8))
    return figure


def areas(synthesis: Mapping[str, Any]) -> Figure:
    """Look-up tables of each site by Yosys, by our estimate and by FINN's; synthesis: `fxfactor.finn.Synthesis.to_dict`."""
    counts: dict[str, list[float]] = {}
    for layer in synthesis["layers"]:
        if layer["yosys"] is not None:
            sums = counts.setdefault(layer["site"], [0.0, 0.0, 0.0])
            for index, whose in enumerate(("yosys", "ours", "finn")):
                sums[index] += layer[whose]["lut"]
    names = ("by Yosys", "our estimate", "FINN's estimate")
    height = 0.8 / len(names)
    with styled():
        figure, axes = new_figure(7.5, 0.9 + 2 * _ROW * len(counts))
        axis = axes[0, 0]
        for index, (name, colour) in enumerate(zip(names, (ACCENT, BEFORE, AFTER), strict=True)):
            places = [place + (index - 1) * height for place in range(len(counts))]
            axis.barh(places, [each[index] for each in counts.values()], height, color=colour, label=name)
        _name_rows(axis, list(counts))
        axis.set_xlabel("look-up tables")
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
        figure.legend(loc="outside upper left", ncols=len(names))
    return figure


def candidates(compressed: Mapping[str, Any]) -> Figure:
    """Accuracy of every candidate over what it takes; compressed: `fxfactor.Compressed.to_dict`. The line is the front."""
    rows = [row for row in compressed["candidates"] if row["share"] is not None and row["metric"] is not None]
    by_speed = compressed["best"].get("by_speed", False)
    first = ("fps", "frames per second") if by_speed else ("share", "share of the board, summed")
    panels = (first, ("lut", "look-up tables"), ("dsp", "DSP slices"),
              ("bram18", "block RAMs of 18 kbit"))  # fmt: skip
    kinds = (("no layer factorized", BEFORE, "s", True), ("factorized", ACCENT, "o", False))
    with styled():
        figure, axes = new_figure(7.5, 5.5, 2, 2, sharey=True)
        for axis, (resource, label) in zip(axes.flat, panels, strict=True):
            for name, colour, marker, whole in kinds:
                shown = [row for row in rows if row["whole"] == whole]
                points = [row[resource] for row in shown], [100 * row["metric"] for row in shown]
                faces = [colour if row["fits"] else "none" for row in shown]
                axis.scatter(*points, s=28, marker=marker, edgecolors=colour, facecolors=faces, label=name)
            taken = next(row for row in rows if row["name"] == compressed["best"]["name"])
            axis.scatter([taken[resource]], [100 * taken["metric"]], s=120, marker="o", edgecolors=AFTER, facecolors="none",
                         linewidths=1.6, label="taken")  # fmt: skip
            axis.set_xlabel(label)
            axis.locator_params("x", nbins=5)
            axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.2f}" if 0 < value < 10 else f"{value:,.0f}")
            axis.grid()
            axis.set_axisbelow(True)
        front = [row for row in rows if row["name"] in compressed["front"]]
        axes[0, 0].plot(
            [row[first[0]] for row in front], [100 * row["metric"] for row in front], color=AFTER, linewidth=1
        )
        for axis in axes[:, 0]:
            axis.set_ylabel("metric, %")
        handles, labels = axes[0, 0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=3)
    return figure


def _name_rows(axis: Any, sites: Sequence[str]) -> None:
    """The first site on top, a grid for the numbers."""
    axis.set_yticks(range(len(sites)), sites)
    axis.set_ylim(len(sites) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
