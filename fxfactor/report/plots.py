"""The pictures: each takes a table from `fxfactor.distributions` and gives a matplotlib figure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from fxfactor.analysis.table import ORIGINAL, Distribution, Distributions
from fxfactor.errors import PreconditionError
from fxfactor.report.style import ACCENT, AFTER, BEFORE, label_sites, level_colors, new_figure, styled
from fxfactor.rich_table import amount

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_COLUMNS = 48
"""Columns of a heat map of channels, however many channels a layer has."""


def ranges(table: Distributions, tensor: str = "output", variants: Sequence[str] | None = None) -> Figure:
    """Where the values of one tensor lie, layer by layer, a panel for the original and one for every variant.

    Thin line: smallest to largest value. Bar: 1st to 99th percentile; dark bar: the middle half; dot: median. Orange dashes
    are the ends of the quantizer's grid: what lies beyond is clipped. Where one layer dwarfs the others the scale is
    logarithmic beyond the median standard deviation, and the label says so.
    """
    shown = [name for name in (ORIGINAL, *(variants or table.variants)) if table.where(variant=name, tensor=tensor)]
    rows = [row for name in shown for row in table.where(variant=name, tensor=tensor)]
    _require(rows, f"{tensor!r}")
    names = [site for site in dict.fromkeys(row.site for row in rows)]
    with styled():
        figure, axes = new_figure(max(5.5, 1.5 + 0.34 * len(names)), 1.0 + 1.15 * len(shown), len(shown),
                                  sharex=True, sharey=True)  # fmt: skip
        for axis, variant in zip(axes[:, 0], shown, strict=True):
            for row in table.where(variant=variant, tensor=tensor):
                _range_bar(axis, names.index(row.site), row)
            axis.axhline(0, color=BEFORE, linewidth=0.5)
            axis.set_title(variant)
        scale = ""
        widths = [max(abs(row.min), abs(row.max)) for row in rows if row.dynamic_range > 0]
        if widths and max(widths) > 4 * float(np.median(widths)):
            linear_to = float(np.median([row.std for row in rows if row.std > 0]))
            _logarithmic(axes[0, 0], max(widths), linear_to)
            scale = f"\nlogarithmic beyond ±{linear_to:.2g}"
            axes[0, 0].set_ylim(1.3 * min(0.0, *(row.min for row in rows)), 1.3 * max(0.0, *(row.max for row in rows)))
        label_sites(axes[-1, 0], names)
        figure.supylabel(f"{tensor}: min–max, 1–99 %, 25–75 %{scale}", fontsize=8.5)
    return figure


def _logarithmic(axis: Any, largest: float, linear_to: float) -> None:
    axis.set_yscale("symlog", linthresh=linear_to)
    decade = 10.0 ** np.floor(np.log10(largest))
    ticks = [tick for tick in (decade / 10, decade) if tick > linear_to]
    axis.set_yticks([-tick for tick in reversed(ticks)] + [0.0] + ticks)
    axis.yaxis.set_major_formatter(lambda value, _: f"{value:g}")
    axis.yaxis.minorticks_off()


def _range_bar(axis: Any, x: float, row: Distribution) -> None:
    axis.plot([x, x], [row.min, row.max], color=BEFORE, linewidth=1, zorder=2)
    axis.plot([x, x], [row.p1, row.p99], color=ACCENT, alpha=0.55, linewidth=5, solid_capstyle="butt", zorder=3)
    axis.plot([x, x], [row.p25, row.p75], color=ACCENT, linewidth=5, solid_capstyle="butt", zorder=4)
    axis.plot(x, row.p50, "o", color="white", markersize=2.2, markeredgecolor=ACCENT, markeredgewidth=0.6, zorder=5)
    if row.bins is not None and row.bins.grid:
        for end in {row.bins.grid[0], row.bins.grid[-1]} - {0.0}:
            axis.plot([x - 0.36, x + 0.36], [end, end], color=AFTER, linewidth=1.3, zorder=6)


def histograms(rows: Sequence[Distribution], columns: int = 4) -> Figure:
    """The distribution of each row's tensor (grey) and what became of it (orange), on a logarithmic scale.

    Where the quantizer has one grid, its levels are the ticks along the bottom and the bars show how many values took
    each; else the orange line is the distribution after rounding, or that of the other network.
    """
    rows = [row for row in rows if row.bins is not None]
    _require(rows, "a histogram")
    columns = min(columns, len(rows))
    lines = -(-len(rows) // columns)
    with styled():
        figure, axes = new_figure(2.45 * columns, 1.75 * lines + 0.3, lines, columns)
        for axis, row in zip(axes.flat, rows, strict=False):
            _histogram(axis, row)
        for axis in axes.flat[len(rows) :]:
            axis.set_visible(False)
    return figure


def _histogram(axis: Any, row: Distribution) -> None:
    bins = row.bins
    assert bins is not None
    edges = np.linspace(bins.low, bins.high, len(bins.before) + 1)
    before = np.array(bins.before) / max(sum(bins.before), 1)
    width, low = edges[1] - edges[0], before[before > 0].min(initial=1)
    axis.stairs(before, edges, fill=True, color=BEFORE, alpha=0.55, linewidth=0)
    if bins.grid:
        step = bins.grid[1] - bins.grid[0]
        after = np.array(bins.after) / max(sum(bins.after), 1) * (width / step)
        axis.bar(
            bins.grid, after, step * 0.94, facecolor="none", edgecolor=AFTER, linewidth=0.9 if len(after) < 40 else 0.3
        )
        axis.vlines(bins.grid, 0, 0.05, transform=axis.get_xaxis_transform(), color=AFTER, linewidth=0.8, clip_on=False)
        low = min(low, after[after > 0].min(initial=1))
    elif bins.after:
        axis.stairs(np.array(bins.after) / max(sum(bins.after), 1), edges, color=AFTER, linewidth=1.1)
    axis.set_yscale("log")
    axis.set_ylim(low * 0.5, 1.5)
    axis.tick_params(labelleft=False, left=False, which="both")
    axis.spines["left"].set_visible(False)
    axis.set_title(f"{row.site}\n", fontsize=7.5, pad=1)
    facts = [row.tensor if row.bits is None else f"{row.tensor}, {row.bits} bits"]
    facts += [] if row.sqnr_db is None else [f"{row.sqnr_db:.1f} dB"]
    facts += [] if not row.clipped else [f"{row.clipped:.1%} clipped"]
    axis.text(0, 1.02, ", ".join(facts), transform=axis.transAxes, fontsize=6.8)


def channel_ranges(table: Distributions, tensor: str = "output", variants: Sequence[str] | None = None) -> Figure:
    """How much of the layer's range its channels use, a row for each layer, the widest channel first.

    Bright to the right end: all channels use the range, one scale for all suits them. Dark soon: a few channels set the
    range, and the others are left with few levels. The number is the mean, `channel_range_ratio`.
    """
    shown = [name for name in (ORIGINAL, *(variants or table.variants)) if table.where(variant=name, tensor=tensor)]
    panels = [table.where(variant=name, tensor=tensor) for name in shown]
    _require([row for rows in panels for row in rows], f"{tensor!r}")
    names = list(dict.fromkeys(row.site for rows in panels for row in rows))
    columns = min(len(shown), 4)
    lines = -(-len(shown) // columns)
    with styled():
        figure, axes = new_figure(
            1.9 + 1.75 * columns, 0.6 + lines * (0.45 + 0.155 * len(names)), lines, columns, sharey=True
        )
        for axis, variant, rows in zip(axes.flat, shown, panels, strict=False):
            image = _channel_image(axis, names, rows)
            axis.set_title(variant)
        for axis in axes.flat[len(shown) :]:
            axis.set_visible(False)
        bar = figure.colorbar(image, ax=axes, location="bottom", shrink=0.5, aspect=45, pad=0.01)
        bar.set_label(f"range of a channel / range of the layer; {tensor}, channels from widest to narrowest")
    return figure


def _channel_image(axis: Any, names: list[str], rows: Sequence[Distribution]) -> Any:
    picture = np.full((len(names), _COLUMNS), np.nan)
    for row in rows:
        ordered = np.sort(np.array(row.channel_ratios))[::-1]
        picture[names.index(row.site)] = ordered[np.arange(_COLUMNS) * len(ordered) // _COLUMNS]
        axis.text(_COLUMNS + 0.5, names.index(row.site), f"{row.channel_range_ratio:.2f}", va="center", fontsize=6.5)
    axis.set_yticks(range(len(names)), names)
    axis.set_xticks([])
    for spine in axis.spines.values():
        spine.set_visible(False)
    return axis.imshow(picture, aspect="auto", cmap="inferno", vmin=0, vmax=1, interpolation="nearest")


def errors(table: Distributions, variants: Sequence[str] | None = None) -> Figure:
    """Relative error of every layer's output: of the layer alone, given the original's inputs, and accumulated from the input.

    Dotted, for a single variant: the layer alone with all rounding off, so what the factors lose.
    """
    shown = list(variants or table.variants)
    rows = {name: table.where(variant=name, tensor="output") for name in shown}
    _require([row for each in rows.values() for row in each], "the outputs")
    names = list(dict.fromkeys(row.site for each in rows.values() for row in each))
    panels = (("this layer alone", "layer_error"), ("accumulated from the input", "accumulated_error"))
    with styled():
        figure, axes = new_figure(max(6, 1.4 + 0.34 * len(names)), 5.4, 2, sharex=True, sharey=True)
        for axis, (title, column) in zip(axes[:, 0], panels, strict=True):
            for color, name in zip(level_colors(len(shown)), shown, strict=True):
                _error_line(axis, names, rows[name], column, color, name)
            axis.axhline(1, color=BEFORE, linewidth=0.8, linestyle="--")
            axis.set_title(title)
            axis.grid(True, axis="y")
        if len(shown) == 1:
            _error_line(
                axes[0, 0], names, rows[shown[0]], "unrounded_error", AFTER, "without rounding: the factors alone", ":"
            )
            axes[0, 0].legend(loc="lower right")
        axes[0, 0].set_yscale("log")
        label_sites(axes[-1, 0], names)
        figure.supylabel("‖ŷ − y‖ / ‖y‖", fontsize=8.5)
        if len(shown) > 1:
            figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside upper right", ncols=len(shown))
    return figure


def _error_line(
    axis: Any, names: list[str], rows: Sequence[Distribution], column: str, color: Any, label: str, style: str = "-"
) -> None:
    points = [(names.index(row.site), getattr(row, column)) for row in rows]
    kept = [(x, y) for x, y in points if y is not None and 0 < y < float("inf")]
    axis.plot(*zip(*kept, strict=True) if kept else ([], []), style, marker="o", markersize=2.6, color=color,
              linewidth=1.2, label=label)  # fmt: skip


def matrix(
    table: Distributions, column: str, tensor: str, variants: Sequence[str] | None = None, worst: str = "low"
) -> Figure:
    """One number for every site and variant as a heat map: `matrix(table, "sqnr_db", "between")`.

    `worst` says which end is bad, "low" (dB, shares used) or "high" (errors), and is drawn red.
    """
    rows = [row for name in variants or table.variants for row in table.where(variant=name, tensor=tensor)]
    rows = [row for row in rows if getattr(row, column) is not None]
    _require(rows, f"{column!r} of {tensor!r}")
    shown = list(dict.fromkeys(row.variant for row in rows))
    names = list(dict.fromkeys(row.site for row in rows))
    values = np.full((len(names), len(shown)), np.nan)
    for row in rows:
        values[names.index(row.site), shown.index(row.variant)] = getattr(row, column)
    with styled():
        figure, axes = new_figure(2.2 + 0.62 * len(shown), 1.0 + 0.2 * len(names))
        axis = axes[0, 0]
        finite = values[np.isfinite(values)]
        low, high = (finite.min(), finite.max()) if len(finite) else (0.0, 1.0)
        color_map = "RdYlBu" if worst == "low" else "RdYlBu_r"
        image = axis.imshow(values, aspect="auto", cmap=color_map, vmin=low, vmax=high if high > low else low + 1)
        for (y, x), value in np.ndenumerate(values):
            if not np.isnan(value):
                red, green, blue, _ = image.cmap(image.norm(value))
                ink = "black" if 0.3 * red + 0.6 * green + 0.1 * blue > 0.45 else "white"
                text = f"{value:.1f}" if column.endswith("_db") else f"{value:.2g}"
                axis.text(x, y, text, ha="center", va="center", fontsize=6.8, color=ink)
        axis.set_yticks(range(len(names)), names)
        axis.set_xticks(range(len(shown)), [name.removeprefix("level ") for name in shown])
        axis.xaxis.tick_top()
        axis.tick_params(length=0)
        for spine in axis.spines.values():
            spine.set_visible(False)
    return figure


def accuracy_over_cost(points: Mapping[str, tuple[float, float]], original: float | None = None) -> Figure:
    """Accuracy (a share) over bit operations: name → (BOPs of one inference, accuracy); dashed: the original's accuracy.

    The line goes through the networks that no cheaper one equals.
    """
    best, front = -1.0, []
    for name, (_, share) in sorted(points.items(), key=lambda item: (item[1][0], -item[1][1])):
        if share > best:
            best = share
            front.append(name)
    with styled():
        figure, axes = new_figure(6, 3)
        axis = axes[0, 0]
        axis.plot(
            *zip(*((points[name][0], 100 * points[name][1]) for name in front), strict=True), color=AFTER, linewidth=1
        )
        for name, (bops, share) in points.items():
            axis.plot(bops, 100 * share, "o", color=ACCENT, markersize=4)
            axis.annotate(name, (bops, 100 * share), (4, 4), textcoords="offset points", fontsize=7.5)
        if original is not None:
            axis.axhline(100 * original, color=BEFORE, linewidth=0.8, linestyle="--", label="original")
            axis.legend(loc="lower right")
        axis.margins(x=0.15, y=0.2)
        axis.set_xlabel("bit operations")
        axis.set_ylabel("accuracy, %")
        axis.xaxis.set_major_formatter(lambda value, _: amount(value).strip())
        axis.grid(True)
        axis.set_axisbelow(True)
    return figure


def _require(rows: Sequence[object], what: str) -> None:
    if not rows:
        raise PreconditionError(f"the table has no rows with {what} to draw; look at the tensors of table.to_dicts()")
