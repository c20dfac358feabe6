"""The sections of the page, each from the networks or the table to a piece of HTML."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from importlib.util import find_spec
from typing import Any

from torch.fx import GraphModule

from fxfactor.analysis.cost import FLOAT_BITS, cost
from fxfactor.analysis.summary import summary
from fxfactor.analysis.table import ORIGINAL, Distribution, Distributions
from fxfactor.pipeline import HISTORY, Skip
from fxfactor.plan.plan import Plan
from fxfactor.report import plots
from fxfactor.report.findings import findings
from fxfactor.report.html import cards, figure, folded, table
from fxfactor.report.style import to_svg
from fxfactor.rich_table import amount, bytes_as_text

Variants = Mapping[str, GraphModule]
_SHORT = 2
"""Networks of which all findings are shown at once."""


def head(variants: Variants, accuracy: Mapping[str, float | None]) -> str:
    """The numbers one wants first, for the first variant; of all of them in `costs`."""
    name, graph = next(iter(variants.items()))
    total = summary(graph, show=False)
    now = total.cost
    facts = [
        ("MACs", amount(now.macs), f"{now.macs / max(total.macs_before, 1):.0%} of {amount(total.macs_before)}"),
        ("bit operations", amount(now.bops),
         f"{now.bops / max(total.macs_before * FLOAT_BITS**2, 1):.1%} of the original's at 32 bits"),
        ("weights", bytes_as_text(now.total_weight_bits / 8), f"{now.parameters:,} parameters"),
        ("layers split", f"{sum(bool(row.after) for row in total.rows)} of {len(total.rows)}", "sites"),
    ]  # fmt: skip
    if accuracy.get(name) is not None:
        before = accuracy.get(ORIGINAL)
        facts.append(("accuracy", f"{accuracy[name]:.1%}", "" if before is None else f"original {before:.1%}"))
    shape = "×".join(map(str, total.input_shape[1:]))
    which = f" The cards are those of “{escape(name)}”, the first." if len(variants) > 1 else ""
    networks = "one network" if len(variants) == 1 else f"{len(variants)} networks side by side"
    return f'<p class="soft">{networks}, input {shape}.{which}</p>{cards(facts)}'


def costs(variants: Variants, accuracy: Mapping[str, float | None]) -> str:
    """One row per variant: MACs, BOPs, weights and accuracy."""
    rows, original = [], accuracy.get(ORIGINAL)
    for name, graph in variants.items():
        total = cost(graph)
        share = accuracy.get(name)
        rows.append((name, amount(total.macs), amount(total.bops), f"{total.parameters:,}",
                     bytes_as_text(total.total_weight_bits / 8), "" if share is None else f"{share:.1%}",
                     "" if share is None or original is None else f"{100 * (share - original):+.1f}"))  # fmt: skip
    if original is not None:
        rows.append((ORIGINAL, "", "", "", "", f"{original:.1%}", ""))
    heads = ("network", "MACs", "BOPs", "parameters", "weights", "accuracy", "points against the original")
    known = {name: share for name, share in accuracy.items() if share is not None and name != ORIGINAL}
    if len(known) < 2 or find_spec("matplotlib") is None:
        return table(heads, rows)
    points = {name: (cost(variants[name]).bops, share) for name, share in known.items()}
    picture = to_svg(plots.accuracy_over_cost(points, original), "accuracy-over-cost")
    return table(heads, rows) + figure(
        picture, "Accuracy over bit operations; the line is what no cheaper network beats."
    )


def layer_tables(variants: Variants) -> str:
    """What became of every site, for each variant."""
    parts = []
    for name, graph in variants.items():
        rows = [
            (row.site, row.before, row.after or row.note, row.weight_bits, row.activation_bits, f"{row.macs_before / 1e6:,.3f}",
             f"{row.macs / 1e6:,.3f}", "" if row.relative_error is None else f"{row.relative_error:.0%}")
            for row in summary(graph, show=False).rows
        ]  # fmt: skip
        heads = (
            "site",
            "before",
            "after, or why not",
            "weight bits",
            "activation bits",
            "MACs before, M",
            "now, M",
            "‖W − UV‖/‖W‖",
        )
        content = table(heads, rows, left=3)
        parts.append(content if len(variants) == 1 else folded(name, content, name))
    return "".join(parts)


def skips(variants: Variants) -> str:
    """Every skip with its reason, and the sites it holds for."""
    parts = []
    for name, graph in variants.items():
        reasons: dict[str, list[str]] = {}
        for record in graph.meta.get(HISTORY, ()):
            if isinstance(record, Skip):
                reasons.setdefault(record.reason, []).append(record.site)
        if not reasons:
            continue
        content = table(
            ("reason", "sites"), [(reason, ", ".join(sites)) for reason, sites in reasons.items()], 1, long=(1,)
        )
        parts.append(content if len(variants) == 1 else folded(name, content, name))
    return "".join(parts)


def plans(variants: Variants) -> str:
    """The plan of every variant as JSON, to be copied."""
    return "".join(
        folded(f"plan of {name}", f'<pre tabindex="0">{escape(Plan.of(graph).to_json())}</pre>', name)
        for name, graph in variants.items()
    )


def words(table_: Distributions) -> str:
    """The findings of every variant."""
    parts = []
    for name in table_.variants:
        first, *others = found = findings(table_, name) or ["no layer was measured."]
        if len(table_.variants) > _SHORT:  # a line for each, more on a click
            parts.append(folded(f"{name}: {first}", _items(others), name))
        else:
            parts.append(f'<div data-network="{escape(name)}"><h3>{escape(name)}</h3>{_items(found)}</div>')
    images = f"Measured on {table_.images:,} images. Errors are ‖ŷ − y‖/‖y‖ at the output of a layer."
    return f'<p class="soft">{images}</p>' + "".join(parts)


def _items(sentences: Sequence[str]) -> str:
    return f"<ul>{''.join(f'<li>{escape(each)}</li>' for each in sentences)}</ul>"


def pictures(table_: Distributions) -> str:
    """All pictures that the rows of the table allow."""
    several = len(table_.variants) > 1
    parts = [
        figure(to_svg(plots.errors(table_), "errors"), "Error of every layer on its own, and what has gathered from the input "
               "on the way to it. At the dashed line the error is as large as the signal."),
    ]  # fmt: skip
    for tensor, what in _MATRICES:
        if several and any(row.sqnr_db is not None for row in table_.rows if row.tensor == tensor):
            name = f"matrix-{tensor.replace('.', '-')}"
            parts.append(
                figure(to_svg(plots.matrix(table_, "sqnr_db", tensor), name), f"SQNR in dB of {what}; red is worst.")
            )
    for tensor in ("output", "between"):
        if _rows(table_, tensor):
            parts.append(figure(
                to_svg(plots.channel_ranges(table_, tensor), f"channels-{tensor}"), f"How much of the layer's range its channels "
                f"use: {_WHERE[tensor]}. Where a row turns dark soon, a few channels set the scale for all."))  # fmt: skip
            parts.append(figure(
                to_svg(plots.ranges(table_, tensor), f"ranges-{tensor}"), f"Values {_WHERE[tensor]}: line from smallest "
                "to largest, bar 1 to 99 %, dark bar the middle half. Orange dashes: the ends of the grid."))  # fmt: skip
    return "".join(parts)


_MATRICES = (("between", "what stands between the factors"), ("spatial.weight", "the weights of the spatial factors"),
             ("pointwise.weight", "the weights of the pointwise factors"))  # fmt: skip
_WHERE = {"output": "at the output of each layer, behind its batch norm", "between": "between the factors"}


def _rows(table_: Distributions, tensor: str) -> list[Distribution]:
    return [row for row in table_.rows if row.tensor == tensor and row.variant != ORIGINAL]


def worst_histograms(table_: Distributions, count: int = 3) -> str:
    """Histograms of all tensors at the sites that lose most, for the last variant (of a ladder: the finest)."""
    variant = table_.variants[-1]
    outputs = sorted(table_.where(variant=variant, tensor="output"), key=lambda row: -(row.layer_error or 0))[:count]
    parts = [f"<h3>Histograms at the layers that lose most: {escape(variant)}</h3>"]
    for index, output in enumerate(outputs):
        rows = [
            row for row in table_.where(variant=variant, site=output.site) if row.bins is not None and row.bins.after
        ]
        caption = f"{output.site}: before rounding (grey) and after (orange; ticks: the levels), counts on a logarithmic scale. "
        caption += "Output and composed weight: the original network (grey) and this one (orange)."
        if rows:
            parts.append(figure(to_svg(plots.histograms(rows), f"histogram-{index}"), caption))
    return "".join(parts)


_HEADS = ("site", "tensor", "bits", "min", "max", "mean", "std", "1 %", "99 %", "peak/std", "zeros", "channel ratio", "QMSE",
          "SQNR, dB", "KL, nats", "clipped", "levels used", "dead before", "dead after", "alone", "unrounded", "accumulated",
          "compared with", "note")  # fmt: skip


def rows_table(table_: Distributions) -> str:
    """Every row of the table, a fold for each variant."""
    return "".join(
        folded(f"{name}: {len(rows)} rows", table(_HEADS, [_cells(row) for row in rows], left=2, long=(23,)), name)
        for name in (ORIGINAL, *table_.variants)
        for rows in [table_.where(variant=name)]
    )


def _cells(row: Distribution) -> Sequence[Any]:
    spread = (row.min, row.max, row.mean, row.std, row.p1, row.p99, row.peak_to_std)
    loss = (row.qmse, row.sqnr_db, row.kl)
    errors = (row.layer_error, row.unrounded_error, row.accumulated_error)
    return (
        row.site, row.tensor, row.bits, *map(_three, spread), _percent(row.zeros), f"{row.channel_range_ratio:.2f}",
        *map(_three, loss), _percent(row.clipped), _percent(row.levels_used), row.dead_channels, row.dead_after,
        *map(_percent, errors), row.compared_with, row.note,
    )  # fmt: skip


def _three(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.1%}"
