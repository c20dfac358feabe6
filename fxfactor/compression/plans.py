"""Which plans a compression tries: from the smallest that the board allows to the one that loses least."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn

from fxfactor.errors import PreconditionError
from fxfactor.finn.target import Target
from fxfactor.graph.capture import capture
from fxfactor.plan.ladder import Level
from fxfactor.plan.plan import Plan
from fxfactor.planning.board import board_has, price_space
from fxfactor.planning.plans import best_plan, options_of
from fxfactor.planning.sensitivity import Measure, SiteErrors, measure_errors
from fxfactor.planning.space import Space, space_of

_MEASURE: Measure = "both"
_LEAST_SLACK = 1.1
"""The smallest budget as a multiple of the least that the layers can cost."""


@dataclass(frozen=True)
class Choices:
    """What plans may choose: groups of these levels, weight and activation bits, channels between the factors."""

    levels: Sequence[Level]
    bits: Sequence[int]
    widths: Sequence[float]
    boundary_bits: int | None
    join_bits: int
    keep: tuple[str, ...]


def plans_for(
    model: nn.Module, batches: Sequence[Tensor], choices: Choices, target: Target, count: int
) -> dict[str, Plan]:
    """Plans by name, at most `count` of each kind: whole (no factors), factorized (all that can be), free; none of them twice.

    Each loses least, as far as measured on `batches` one layer at a time, among those of its kind that take at most a share of
    the board; the shares lie between the least possible and that of the plan that loses least. What a factorized layer loses is
    measured untrained, where it looks worse than it is after training: hence plans that must be factorized. Before anything
    is measured, the prices say whether the board is large and fast enough. Raises PreconditionError where it is not.
    """
    graph = capture(model, batches[0][:1]).eval()
    space = space_of(
        graph, choices.levels, choices.bits, None, None, choices.widths, choices.boundary_bits, choices.keep
    )
    space = with_shares(price_space(graph, space, target, choices.join_bits), target)
    limits = {name: limit for name, limit in board_has(target).items() if limit > 0}
    limits["cycles"] = float(target.cycles)
    _require_place(space, limits, choices.join_bits)
    errors = measure_errors(graph, batches, space)
    kinds = {
        "whole": replace(space, shapes={name: shapes[:1] for name, shapes in space.shapes.items()}),
        "factorized": replace(space, shapes={name: shapes[1:] or shapes for name, shapes in space.shapes.items()}),
        "free": space,
    }
    found: dict[str, Plan] = {}
    for kind, each in kinds.items():
        number = 0
        for plan in _front(each, errors, limits, choices.join_bits, count):
            if plan.layers not in [known.layers for known in found.values()]:
                number += 1
                found[f"{kind} {number}"] = plan
    return found


def is_whole(plan: Plan) -> bool:
    """Whether a plan leaves every layer in one piece."""
    return all(layer.groups is None for layer in plan.layers.values())


def with_shares(space: Space, target: Target) -> Space:
    """The space in which every choice has its share of the board, in thousandths."""
    there = {name: count for name, count in board_has(target).items() if count > 0}
    hardware = {
        key: {**prices, "share": 1000 * sum(prices[name] / count for name, count in there.items())}
        for key, prices in space.hardware.items()
    }
    return replace(space, hardware=hardware)


def _require_place(space: Space, limits: Mapping[str, float], join_bits: int) -> None:
    """Raise PreconditionError where not even the smallest choices are within the limits: known without a measurement."""
    nothing_lost = {name: _NoErrors() for name in space.shapes}
    best_plan(space, nothing_lost, limits, _MEASURE, join_bits)  # type: ignore[arg-type]


class _NoErrors(SiteErrors):
    """Stands for errors that are not measured yet."""

    def of(self, *given: object) -> float:
        """None."""
        return 0.0


def _front(
    space: Space, errors: dict[str, SiteErrors], limits: Mapping[str, float], join_bits: int, count: int
) -> Iterator[Plan]:
    """The plan that loses least, and those of less and less share of the board."""
    options = options_of(space, errors, _MEASURE)
    with suppress(PreconditionError):
        most = best_plan(space, errors, {**limits, "share": 1e12}, _MEASURE, join_bits)
        yield most
        within = [[option for option in site.options if option.costs["cycles"] <= limits["cycles"]] for site in options]
        least = _LEAST_SLACK * sum(min(option.costs["share"] for option in site) for site in within)
        top = most.explain().totals["share"]
        for share in _between(top, least, count):
            with suppress(PreconditionError):
                yield best_plan(space, errors, {**limits, "share": share}, _MEASURE, join_bits)


def _between(top: float, least: float, count: int) -> Iterable[float]:
    """`count` - 1 numbers below `top`, down to `least`, each the same part of the one before."""
    if least >= top or count < 2:
        return ()
    return [float(each) for each in np.geomspace(top, least, count)[1:]]
