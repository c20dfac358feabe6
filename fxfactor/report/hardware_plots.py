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


def _name_rows(axis: Any, sites: Sequence[str]) -> None:
    """The first site on top, a grid for the numbers."""
    axis.set_yticks(range(len(sites)), sites)
    axis.set_ylim(len(sites) - 0.5, -0.5)
    axis.grid(axis="x")
    axis.set_axisbelow(True)
