"""The result of an exploration: its candidates as a table, their Pareto front, the best under limits, a picture."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError
from fxfactor.exploration.pareto import hypervolume, pareto_front
from fxfactor.exploration.state_file import Candidate, read
from fxfactor.plan.plan import Plan
from fxfactor.rich_table import amount, as_text, bytes_as_text, new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


COSTS = ("bops", "macs", "total_weight_bits", "lut", "bram18", "dsp")
HARDWARE = ("LUT", "BRAM18", "DSP", "frames/s")


@dataclass(frozen=True)
class Exploration:
    """What `fxfactor.explore` returns: `candidates` in the order of the grid; print it with rich, or as text."""

    candidates: tuple[Candidate, ...]

    @classmethod
    def read(cls, path: str | Path) -> Exploration:
        """What a state file holds so far, while a run writes it or after. Raises PreconditionError where it is none."""
        return cls(tuple(read(path)[0]))

    @property
    def done(self) -> tuple[Candidate, ...]:
        """The candidates with a metric."""
        return tuple(each for each in self.candidates if each.status == "done")

    def front(self, cost: str = "bops") -> tuple[Candidate, ...]:
        """The candidates that no other one beats in metric and cost.

        cost: "bops", "macs", "total_weight_bits" or, where a board was given, "lut", "bram18", "dsp".
        """
        return tuple(pareto_front(self._with(cost), lambda each: getattr(each, cost), lambda each: each.metric or 0.0))

    def _with(self, cost: str) -> tuple[Candidate, ...]:
        """The candidates with a metric whose cost is known."""
        if cost not in COSTS:
            raise PreconditionError(f"cost must be one of {', '.join(COSTS)}, found {cost!r}")
        return tuple(each for each in self.done if getattr(each, cost) is not None)

    def hypervolume(self, cost: str = "bops", most: float | None = None, least: float = 0.0) -> float:
        """Area under the front, up to the cost `most` (that of the most expensive candidate) and down to the metric `least`."""
        points = [(float(getattr(each, cost)), float(each.metric or 0.0)) for each in self.front(cost)]
        largest = max((float(getattr(each, cost)) for each in self._with(cost)), default=0.0)
        return hypervolume(points, (largest if most is None else most, least))

    def best(
        self,
        *,
        min_accuracy: float | None = None,
        max_bops: float | None = None,
        max_macs: float | None = None,
        max_weight_bits: float | None = None,
        max_lut: float | None = None,
        max_bram18: float | None = None,
        max_dsp: float | None = None,
        min_fps: float | None = None,
    ) -> Candidate:
        """The candidate of fewest BOPs that reaches `min_accuracy`, or, where that is not given, of the best metric.

        All limits hold together. `Plan.from_json(candidate.plan)` is its plan. Raises PreconditionError where nothing is
        within the limits, with what comes closest. The last four are limits on FINN's estimates; a candidate without any is
        not within them.
        """
        limits = {"bops": max_bops, "macs": max_macs, "total_weight_bits": max_weight_bits}
        limits |= {"lut": max_lut, "bram18": max_bram18, "dsp": max_dsp}
        affordable = [each for each in self.done if min_fps is None or (each.fps or 0.0) >= min_fps]
        for name, most in limits.items():
            if most is not None:
                affordable = [each for each in affordable if each in self._with(name) and getattr(each, name) <= most]
        good = [each for each in affordable if min_accuracy is None or (each.metric or 0.0) >= min_accuracy]
        if not good:
            closest = max((each.metric or 0.0 for each in affordable), default=None)
            found = "no candidate is within the costs" if closest is None else f"the best of those has {closest:.4g}"
            raise PreconditionError(
                f"no candidate with a metric of at least {min_accuracy} within {_named(limits, min_fps)}: {found}; "
                "relax a limit, or explore more levels and bits"
            )
        if min_accuracy is None:
            return max(good, key=lambda each: (each.metric or 0.0, -(each.bops or 0)))
        return min(good, key=lambda each: (each.bops or 0, -(each.metric or 0.0)))

    def table(self) -> Table:
        """One row per candidate; those on the front are bold."""
        table = new_table()
        priced = any(each.lut is not None for each in self.candidates)
        names = ("level", "W/A bits", "metric", "MACs", "BOPs", "weights", "s", *(HARDWARE if priced else ()))
        for name in names:
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("", overflow="fold")
        front = {each.key for each in self.front()}
        for each in self.candidates:
            texts = cells(each, each.key in front)
            table.add_row(*texts[: len(names)], texts[-1], style="bold" if each.key in front else "")
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self.table()
        yield f"{len(self.done)} of {len(self.candidates)} evaluated; bold: no other has fewer BOPs and a better metric"

    def __str__(self) -> str:
        return as_text(self, 120)

    def plot(self, path: str | Path, cost: str = "bops") -> Path:
        """Write a picture (.png, .svg or .pdf): metric over cost, a line for each level, the front on top."""
        from fxfactor.files import new_file

        drawn = self._with(cost)
        try:
            from matplotlib.figure import Figure
        except ModuleNotFoundError as error:
            raise PreconditionError(
                "a picture needs matplotlib, which is not installed; run pip install fxfactor[plot]"
            ) from error
        figure = Figure(figsize=(7, 4.5), layout="constrained")
        axes: Any = figure.subplots()
        for rung in dict.fromkeys(each.rung for each in drawn):
            points = sorted((getattr(each, cost), each.metric) for each in drawn if each.rung == rung)
            axes.plot(*zip(*points, strict=True), marker="o", markersize=4, linewidth=0.8, label=f"level {rung}")
        front = [(getattr(each, cost), each.metric) for each in self.front(cost)]
        if front:
            axes.step(*zip(*front, strict=True), where="post", color="black", linewidth=1.5, label="front", zorder=0)
        axes.set(xscale="log", xlabel=_LABELS[cost], ylabel="metric")
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
        with new_file(path, "drawing the exploration") as temporary:
            figure.savefig(temporary, dpi=150)
        return Path(path)


def plan_of(candidate: Candidate) -> Plan:
    """The plan of a candidate, for `fxfactor.transform(model, plan=…)`. Raises PreconditionError for a failed one."""
    if candidate.plan is None:
        raise PreconditionError(f"candidate {candidate.key} has no plan: it {candidate.status}: {candidate.message}")
    return Plan.from_json(candidate.plan)


_LABELS = {
    "bops": "BOPs for one image",
    "macs": "MACs for one image",
    "total_weight_bits": "bits of all weights",
    "lut": "look-up tables, FINN's estimate",
    "bram18": "block RAMs of 18 kbit, FINN's estimate",
    "dsp": "DSPs, FINN's estimate",
}


def cells(candidate: Candidate, on_front: bool = False) -> tuple[str, ...]:
    """The texts of a candidate's row: costs, FINN's estimates, and what is to be said of it."""
    prices = (candidate.lut, candidate.bram18, candidate.dsp, candidate.fps)
    return (
        candidate.rung,
        f"{candidate.weight_bits or 32}/{candidate.activation_bits or 32}",
        "" if candidate.metric is None else f"{candidate.metric:.4f}",
        "" if candidate.macs is None else amount(candidate.macs),
        "" if candidate.bops is None else amount(candidate.bops),
        "" if candidate.total_weight_bits is None else bytes_as_text(candidate.total_weight_bits / 8),
        f"{candidate.seconds:.1f}",
        *("" if price is None else f"{price:,.0f}" for price in prices),
        candidate.message or ("front" if on_front else ""),
    )


def _named(limits: dict[str, float | None], min_fps: float | None) -> str:
    given = [f"{name} ≤ {most:,.0f}" for name, most in limits.items() if most is not None]
    given += [] if min_fps is None else [f"frames/s ≥ {min_fps:,.0f}"]
    return " and ".join(given) or "all costs"
