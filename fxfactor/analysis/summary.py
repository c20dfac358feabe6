"""The table of what became of every site: groups, bits, MACs, error, and why something was left alone."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.fx import GraphModule

from fxfactor.analysis.cost import FLOAT_BITS, Cost, cost
from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import ASSUMED, NOTES
from fxfactor.graph.questions import Site, hidden_convolutions, kept_whole, owner_path, placeholders, shape_of, sites
from fxfactor.pipeline import HISTORY, Change, Judged, Skip
from fxfactor.rich_table import amount, as_text, bytes_as_text, new_table, unit_for

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True)
class SiteSummary:
    """One row: a site of the user's model and what stands there now.

    macs_before is what the site cost in one piece. relative_error is ‖W − UV‖/‖W‖ of its factors; output_error is the
    share of the outputs' standard deviation that they miss on the calibration images, where there were such. note says
    why the site was not factorized. calls is how often the network calls the site; macs and macs_before are of all calls.
    """

    site: str
    before: str
    after: str
    groups: int | None
    weight_bits: int
    activation_bits: int
    macs_before: int
    macs: int
    relative_error: float | None
    output_error: float | None
    note: str
    calls: int = 1

    @property
    def error(self) -> float | None:
        """What the factors were fitted to decides: the outputs' error where images were given, else the weights'."""
        return self.relative_error if self.output_error is None else self.output_error


@dataclass(frozen=True)
class Summary:
    """What `fxfactor.summary` returns; print it with rich (`rich.print(summary)`) or look at its rows.

    hidden: convolutions that no pass can see, because their weights are computed from the network's input.
    kept_whole: what does a layer's work but is none that passes know, as "path (kind)": in floating point, not counted.
    notes: what the capture does not keep of the model. judged: how near `fxfactor.transform` brought the outputs to the
    original's, step by step, on calibration images that were held out.
    """

    rows: tuple[SiteSummary, ...]
    cost: Cost
    input_shape: tuple[int, ...]
    input_assumed: bool
    hidden: tuple[str, ...] = ()
    kept_whole: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    judged: tuple[Judged, ...] = ()

    @property
    def usable(self) -> bool | None:
        """Whether the network gives at least half of the original's answers (or half of its outputs' standard deviation, where
        it gives no classes) on images held out, as `transform` left it; None where there were no images.
        """
        kept = [each for each in self.judged if each.kept]
        if not kept:
            return None
        return kept[-1].output_error <= 0.5 if kept[-1].agreement is None else kept[-1].agreement >= 0.5

    @property
    def macs_before(self) -> int:
        """MACs of the network with every site in one piece."""
        return sum(row.macs_before for row in self.rows)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for JSON: the rows, and the totals of the network for one image."""
        return {
            "sites": [asdict(row) for row in self.rows],
            "macs_before": self.macs_before,
            "macs": self.cost.macs,
            "bops": self.cost.bops,
            "parameters": self.cost.parameters,
            "weight_bits": self.cost.total_weight_bits,
            "input_shape": list(self.input_shape),
            "input_assumed": self.input_assumed,
            "not_counted": list(self.hidden),
            "judged": [asdict(each) for each in self.judged],
            "usable": self.usable,
        }

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()
        yield self._totals()

    def __str__(self) -> str:
        return as_text(self, 160)

    def _table(self) -> Table:
        from rich.markup import escape

        table = new_table(row_styles=["", "dim"])
        table.add_column("site", overflow="fold")
        table.add_column("before → after, or why not", min_width=22)
        size, prefix = unit_for(max((row.macs_before for row in self.rows), default=0))
        for name in ("W/A bits", f"{prefix}MACs", "error"):
            table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            table.add_row(
                row.site if row.calls == 1 else f"{row.site} (called {row.calls} times)",
                f"{row.before} → {row.after}" if row.after else escape(f"{row.before}: {row.note}".removesuffix(": ")),
                f"{_bits(row.weight_bits)}/{_bits(row.activation_bits)}",
                _change(row.macs_before / size, row.macs / size),
                "" if row.error is None else f"{row.error:.1%}",
            )
        return table

    def _totals(self) -> str:
        total, float_bops = self.cost, self.macs_before * FLOAT_BITS**2
        shape = "×".join(map(str, self.input_shape))
        names = ", ".join(self.hidden)
        hidden = f"not counted, their weights are computed from the input: {names}\n" if names else ""
        whole = ", ".join(self.kept_whole)
        hidden += f"kept in floating point and not counted: {whole}\n" if whole else ""
        hidden += "".join(f"note: {note}\n" for note in self.notes)
        fitted = any(row.output_error is not None for row in self.rows)
        what = (
            "share of the outputs' standard deviation missed on the calibration images" if fitted else "‖W − UV‖ / ‖W‖"
        )
        errors = f"error: {what}\n" if any(row.error is not None for row in self.rows) else ""
        size, prefix = unit_for(max(self.macs_before, total.macs))
        assumed = " (assumed: pass example_inputs= for another)" if self.input_assumed else ""
        return (
            f"{hidden}{errors}{_as_judged(self.judged)}{'' if self.usable in (None, True) else _remedy(self.judged)}"
            f"input {shape}{assumed}\n"
            f"MACs {_change(self.macs_before / size, total.macs / size)} {prefix} ({total.macs / max(self.macs_before, 1):.0%})\n"
            f"BOPs {amount(total.bops)} ({total.bops / max(float_bops, 1):.1%} of the network in one piece at 32 bits)\n"
            f"parameters {total.parameters:,}, weights {bytes_as_text(total.total_weight_bits / 8)}"
        )


@partial(checked, but=("graph",))
def summary(graph: GraphModule, show: bool = True) -> Summary:
    """Print the table of a captured or transformed network and return it; with `show=False` only return it.

    Everything but the errors and reasons, which the passes noted in `graph.meta`, is read from the modules.
    Raises PreconditionError where `graph` is not a captured graph.
    """
    if not isinstance(graph, GraphModule):
        raise PreconditionError(
            f"summary needs a captured or transformed graph, found {type(graph).__name__}; "
            "call fxfactor.transform(model) or fxfactor.capture(model) first"
        )
    total = cost(graph)
    records = graph.meta.get(HISTORY, ())
    changes = {each.site: each for each in records if isinstance(each, Change)}
    reasons = {each.site: each.reason for each in reversed(records) if isinstance(each, Skip)}
    rows = tuple(_row(site, total, changes.get(name), reasons.get(name, "")) for name, site in sites(graph).items())
    hidden = tuple(owner_path(node) or node.name for node in hidden_convolutions(graph))
    whole = tuple(f"{path} ({kind})" for path, kind in kept_whole(graph).items() if path not in hidden)
    shape = shape_of(placeholders(graph)[0])
    notes = tuple(graph.meta.get(NOTES, ()))
    judged = tuple(each for each in records if isinstance(each, Judged))
    result = Summary(rows, total, shape, bool(graph.meta.get(ASSUMED)), hidden, whole, notes, judged)
    if show:
        from rich.console import Console

        Console().print(result)
    return result


def _as_judged(judged: tuple[Judged, ...]) -> str:
    """How far off the outputs were on images held out, a line for each step."""
    if not judged:
        return ""
    lines = [f"outputs beside the original's, as transform left them, on {judged[0].images} images held out"]
    for each in judged:
        answers = "" if each.agreement is None else f", {each.agreement:.0%} of the answers the same"
        taken_back = "" if each.kept else "; worse, taken back"
        lines.append(f"  {each.step}: {each.output_error:.0%} off{answers}{taken_back}")
    return "\n".join([*lines, ""])


def _remedy(judged: tuple[Judged, ...]) -> str:
    """What to do about a network that is not usable, the quickest first of what was not done yet."""
    done = {each.step for each in judged}
    quantized = "fitted" not in done
    steps = ['recover="round" (seconds)'] if quantized and "rounded" not in done else []
    steps += [] if "reconstructed" in done else ['recover="reconstruct" (minutes)']
    steps += ["fxfactor.finetune", "more bits, a lower level or width=2" if quantized else "a lower level or width=2"]
    return f"[bold red]not usable as it is[/]; try {', then '.join(steps)}\n"


def _row(site: Site, total: Cost, change: Change | None, reason: str) -> SiteSummary:
    parts = [layer for layer in total.layers if layer.path in {str(node.target) for node in site.nodes}]
    macs = sum(part.macs for part in parts)
    before = macs
    first, last = site.modules[0], site.modules[-1]
    if site.factorized:
        pixels = parts[-1].macs * last.groups // (last.in_channels * last.out_channels)
        before = first.in_channels * last.out_channels * math.prod(first.kernel_size) // last.groups * pixels
    return SiteSummary(
        site=site.name,
        before=_describe(first, first.in_channels, last.out_channels, last.groups)
        if site.factorized
        else _describe(first),
        after=_describe_factors(first, last) if site.factorized else "",
        groups=getattr(first, "groups", None),
        weight_bits=parts[0].weight_bits,
        activation_bits=parts[0].activation_bits,
        macs_before=before,
        macs=macs,
        relative_error=change.relative_error if site.factorized and change else None,
        output_error=change.output_error if site.factorized and change else None,
        note="" if site.factorized else reason,
        calls=len(site.calls),
    )


def _describe(layer: Any, inputs: int | None = None, outputs: int | None = None, groups: int | None = None) -> str:
    """ "64→128 3×3 g8" for a convolution, "512→1000" for a linear layer."""
    if not hasattr(layer, "kernel_size"):
        return f"{layer.in_features}→{layer.out_features}"
    groups = layer.groups if groups is None else groups
    kernel = "×".join(map(str, layer.kernel_size))
    return f"{inputs or layer.in_channels}→{outputs or layer.out_channels} {kernel}" + (
        f" g{groups}" if groups > 1 else ""
    )


def _describe_factors(spatial: Any, pointwise: Any) -> str:
    """ "g8 + 1×1", with the channels between the factors where they are not those that go in."""
    mid = "" if spatial.out_channels == spatial.in_channels else f" mid {spatial.out_channels}"
    grouped = f" g{pointwise.groups}" if pointwise.groups > 1 else ""
    return f"g{spatial.groups}{mid} + 1×1{grouped}"


def _bits(bits: int) -> str:
    return "–" if bits == FLOAT_BITS else str(bits)


def _change(before: float, after: float) -> str:
    digits = 1 if before >= 10 else 2
    return f"{before:,.{digits}f}" if before == after else f"{before:,.{digits}f} → {after:,.{digits}f}"
