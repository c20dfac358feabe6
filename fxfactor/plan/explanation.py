"""Why a searched plan is as it is: what every layer costs and loses, and what one step finer or coarser would do."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError
from fxfactor.plan.budget import UNITS
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.rich_table import as_text, new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


@dataclass(frozen=True)
class Alternative:
    """What another choice at one site would change: `loss` and `cost` (of the tightest budget) against the chosen one."""

    layer: LayerPlan
    loss: float
    cost: float


@dataclass(frozen=True)
class SiteExplanation:
    """What the choice at one site loses and costs, and its best alternatives: `finer` loses less, `coarser` costs less."""

    layer: LayerPlan
    loss: float
    costs: Mapping[str, float]
    finer: Alternative | None = None
    coarser: Alternative | None = None


@dataclass(frozen=True)
class Explanation:
    """What `Plan.explain()` returns; print it with rich, or as text.

    measure: what the losses are (`fxfactor.planning.sensitivity`). budget: the limits, absolute. totals: what the plan takes of
    each. whole: the same for the network in one piece at 32 bits, or for what the board has. target: which board, at what
    speed; its totals are FINN's estimate of the whole network, costs of layers are those of their own hardware.
    """

    measure: str
    budget: Mapping[str, float]
    totals: Mapping[str, float]
    whole: Mapping[str, float]
    layers: Mapping[str, SiteExplanation]
    target: str = ""

    @property
    def tightest(self) -> str:
        """The budget that is used up most; cycles, which do not add up, only where there is no other."""
        return tightest(self.budget, self.totals)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionaries and numbers, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, data: object) -> Explanation:
        """Undo `to_dict`. Raises PreconditionError where `data` is something else."""
        try:
            entries: Any = data
            layers = {
                site: SiteExplanation(
                    LayerPlan(**entry["layer"]),
                    entry["loss"],
                    entry["costs"],
                    *map(_step, (entry["finer"], entry["coarser"])),
                )
                for site, entry in entries["layers"].items()
            }
            return cls(
                entries["measure"],
                entries["budget"],
                entries["totals"],
                entries["whole"],
                layers,
                entries.get("target", ""),
            )
        except (KeyError, TypeError, AttributeError) as error:
            raise PreconditionError(
                f"the plan's explanation is damaged ({type(error).__name__}: {error}); delete it from the JSON, the plan is "
                "complete without"
            ) from error

    def __str__(self) -> str:
        return as_text(self, 150)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        yield self._table()
        if self.target:
            yield self.target
        for name, limit in self.budget.items():
            used = self.totals[name]
            share = f" ({used / self.whole[name]:.2%} of {self.whole[name]:,.0f})" if self.whole.get(name) else ""
            yield f"{UNITS[name]}: {used:,.0f} of at most {limit:,.0f}{share}"
        yield f"expected loss: {sum(each.loss for each in self.layers.values()):.4g} ({LOSSES[self.measure]})"
        yield (
            "finer, coarser: the alternative at this site alone that gains or gives up least loss for its cost; a finer one "
            "costs more than what is left, unless the solver can pay for it elsewhere at a lower loss."
        )

    def _table(self) -> Table:
        cost = self.tightest
        table = new_table(row_styles=["", "dim"])
        table.add_column("site", no_wrap=True)
        table.add_column("choice")
        for name in (cost, "share", "loss", "share"):
            table.add_column(name, justify="right", no_wrap=True)
        table.add_column("finer")
        table.add_column("coarser")
        losses = max(sum(each.loss for each in self.layers.values()), 1e-30)
        total = max(sum(each.costs[cost] for each in self.layers.values()), 1e-30)
        for site, each in self.layers.items():
            table.add_row(
                site,
                describe(each.layer),
                f"{each.costs[cost]:,.4g}",
                f"{each.costs[cost] / total:.1%}",
                f"{each.loss:.3g}",
                f"{each.loss / losses:.1%}",
                *(_describe_step(step) for step in (each.finer, each.coarser)),
            )
        return table


def tightest(limits: Mapping[str, float], totals: Mapping[str, float]) -> str:
    """The limit that is used up most; cycles, which do not add up, only where there is no other."""
    summed = [name for name in limits if name != "cycles"] or list(limits)
    return max(summed, key=lambda name: totals[name] / limits[name])


LOSSES = {
    "both": "√(loss · output), summed over the sites",
    "loss": "Kullback-Leibler divergence of the softened output, second order, summed over the sites",
    "recovered": 'what is left after training of the error that "both" predicts: rounded weights count less, activations more',
    "weighted": "lost share of each site's own outputs, weighted by what such a share does to the network's output",
    "output": "lost share of each site's own outputs, summed over the sites",
}
"""What the numbers of each measure are."""


def describe(layer: LayerPlan) -> str:
    """ "g8 4/4": groups, then weight and activation bits; "whole" for a layer in one piece, 32 for floating point."""
    shape = "whole" if layer.groups is None else f"g{layer.groups}" + (f" mid {layer.mid}" if layer.mid else "")
    return f"{shape} {layer.weight_bits or 32}/{layer.activation_bits or 32}"


def _describe_step(step: Alternative | None) -> str:
    return "" if step is None else f"{describe(step.layer)}: loss {step.loss:+.2g}, cost {step.cost:+.2g}"


def _step(entry: Any) -> Alternative | None:
    return None if entry is None else Alternative(LayerPlan(**entry["layer"]), entry["loss"], entry["cost"])
