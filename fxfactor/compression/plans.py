"""Which plans a compression tries: from the smallest that the board allows to the one that loses least."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.errors import PreconditionError
from fxfactor.finn.target import Target
from fxfactor.graph.capture import capture
from fxfactor.plan.ladder import Level
from fxfactor.plan.plan import Plan
from fxfactor.planning.board import board_has, limits_of_sites, price_space
from fxfactor.planning.plans import Limits, best_plan, for_all, options_of, require_place
from fxfactor.planning.sensitivity import Measure, SiteErrors, measure_errors
from fxfactor.planning.space import Space, space_of
from fxfactor.quantization.levels import Bits
from fxfactor.workers import ALONE, Crew

_MEASURE: Measure = "recovered"
_LEAST_SLACK = 1.1
"""The smallest budget as a multiple of the least that the layers can cost."""
_STEP = 2**0.5
"""How exactly the highest speed of a kind is looked for: a candidate's own is then found by `fxfactor.finn.estimate`."""
KINDS = ("whole", "factorized", "free")


@dataclass(frozen=True)
class Choices:
    """What plans may choose: groups of these levels, weight and activation bits, channels between the factors."""

    levels: Sequence[Level]
    bits: Sequence[int]
    widths: Sequence[float]
    boundary_bits: int | None
    join_bits: Sequence[Bits]
    keep: tuple[str, ...]


def plans_for(
    model: nn.Module, batches: Sequence[Tensor], choices: Choices, target: Target, count: int, crew: Crew = ALONE
) -> dict[str, Plan]:
    """Plans by name, at most `count` of each kind: whole (no factors), factorized (all that can be), free; none of them twice.

    Each loses least, as far as measured on `batches` one layer at a time, among those of its kind that take at most a share of
    the board; the shares lie between the least possible and that of the plan that loses least. For as many frames per second
    as fit, each loses least at a speed at which it fits the board; every speed is half of the next, the last one the highest
    of its kind. What a factorized layer loses is measured untrained, where it looks worse than it is after training: hence plans
    that must be factorized. What the network needs beside its layers is known from an estimate of one plan, and taken off the
    board for all. Before anything is measured, the prices say whether the board is large and fast enough. Raises
    PreconditionError where it is not.
    """
    graph = capture(model, batches[0][:1]).eval()
    space = space_of(
        graph,
        choices.levels,
        choices.bits,
        widths=choices.widths,
        boundary_bits=choices.boundary_bits,
        keep=choices.keep,
        join_bits=choices.join_bits,
    )
    prices = _Priced(graph, space, target, crew)
    rows: dict[str, Iterable[Plan]]
    if target.target_fps == "max":
        steps = {kind: prices.speeds(kind, count) for kind in KINDS}
        errors = measure_errors(graph, batches, space, crew)
        rows = {kind: [prices.best_plan(kind, step, errors) for step in steps[kind]] for kind in KINDS}
    else:
        prices.require_place()
        errors = measure_errors(graph, batches, space, crew)
        priced = prices.at(target)

        def plan_in(limits: Limits) -> Plan:
            return best_plan(priced, errors, limits, _MEASURE)

        within = limits_of_sites(priced, _limits(target), plan_in, model, batches[0][:1], target)
        rows = {kind: _front(_of_kind(priced, kind), errors, within, count) for kind in KINDS}
    found: dict[str, Plan] = {}
    for kind, row in rows.items():
        number = 0
        for plan in row:
            if plan not in found.values():
                number += 1
                found[f"{kind} {number}"] = plan
    return found


def _of_kind(space: Space, kind: str) -> Space:
    """What plans of a kind may choose from."""
    if kind == "whole":
        return replace(space, shapes={name: shapes[:1] for name, shapes in space.shapes.items()})
    if kind == "factorized":
        return replace(space, shapes={name: shapes[1:] or shapes for name, shapes in space.shapes.items()})
    return space


def _limits(target: Target) -> dict[str, float]:
    """What the board has, and the cycles for one frame."""
    return {**{name: limit for name, limit in board_has(target).items() if limit > 0}, "cycles": float(target.cycles)}


class _Priced:
    """A space with its prices at one speed or several, each asked for once."""

    def __init__(self, graph: GraphModule, space: Space, target: Target, crew: Crew) -> None:
        self.graph, self.space, self.target, self.crew = graph, space, target, crew
        self.known: dict[tuple[int, bool], Space] = {}

    def at(self, target: Target, smallest: bool = False) -> Space:
        """The space priced for a target; with the fewest bits alone where only the smallest choices matter."""
        key = target.cycles, smallest
        if key not in self.known:
            space = _with_fewest_bits(self.space) if smallest else self.space
            self.known[key] = with_shares(price_space(self.graph, space, target, self.crew), target)
        return self.known[key]

    def require_place(self) -> None:
        """Raise PreconditionError where not even the smallest choices fit: known without a measurement."""
        self._require("free", self.at(self.target), self.target)

    def speeds(self, kind: str, count: int) -> list[Target]:
        """`count` targets from slow to fast, the last one the fastest that the smallest choices of the kind have a place at.

        None where they have no place at any speed; of kind "free" that is a PreconditionError.
        """
        fastest = self._of_cycles(1)
        at_most = _of_kind(self.at(fastest, smallest=True), kind)
        start = max(
            min(costs["cycles"] for _, _, costs in at_most.options(name, at_most.join_bits[0]))
            for name in at_most.shapes
        )
        low, high = 0, math.ceil(math.log2(_clock_hz(self.target) / start) / math.log2(_STEP))
        try:
            self._try(kind, self._of_cycles(start * _STEP**high))
        except PreconditionError:
            if kind == "free":
                raise
            return []
        while low < high:  # speeds are steps from the fastest; below `high` all fit
            middle = (low + high) // 2
            try:
                self._try(kind, self._of_cycles(start * _STEP**middle))
                high = middle
            except PreconditionError:
                low = middle + 1
        return [self._of_cycles(start * _STEP**low * 2**power) for power in reversed(range(count))]

    def best_plan(self, kind: str, target: Target, errors: dict[str, SiteErrors]) -> Plan:
        """The plan of a kind that loses least at a speed."""
        priced = _of_kind(self.at(target), kind)
        return best_plan(priced, errors, for_all(priced.join_bits, _limits(target)), _MEASURE)

    def _of_cycles(self, cycles: float) -> Target:
        return replace(self.target, target_fps=max(1, math.floor(_clock_hz(self.target) / cycles)))

    def _try(self, kind: str, target: Target) -> None:
        self._require(kind, self.at(target, smallest=True), target)

    def _require(self, kind: str, priced: Space, target: Target) -> None:
        require_place(_of_kind(priced, kind), for_all(priced.join_bits, _limits(target)))


def _with_fewest_bits(space: Space) -> Space:
    fewest = {
        name: {site: bits[:1] for site, bits in getattr(space, name).items()}
        for name in ("weight_bits", "activation_bits")
    }
    return replace(space, **fewest, join_bits=space.join_bits[:1])


def _clock_hz(target: Target) -> float:
    return 1e9 / target.clock_ns


def is_whole(plan: Plan) -> bool:
    """Whether a plan leaves every layer in one piece."""
    return all(layer.groups is None for layer in plan.layers.values())


def with_shares(space: Space, target: Target) -> Space:
    """The space in which every choice has its share of the board, in thousandths."""
    there = {name: count for name, count in board_has(target).items() if count > 0}
    hardware = {
        key: tuple(
            {**prices, "share": 1000 * sum(prices[name] / count for name, count in there.items())}
            for prices in foldings
        )
        for key, foldings in space.hardware.items()
    }
    return replace(space, hardware=hardware)


def _front(space: Space, errors: dict[str, SiteErrors], limits: Limits, count: int) -> Iterator[Plan]:
    """The plan that loses least, and those of less and less share of the board."""

    def of_share(share: float) -> Plan:
        return best_plan(space, errors, {bits: {**each, "share": share} for bits, each in limits.items()}, _MEASURE)

    fewest = next(bits for bits in space.join_bits if bits in limits)
    options, cycles = options_of(space, errors, _MEASURE, fewest), limits[fewest]["cycles"]
    with suppress(PreconditionError):
        most = of_share(1e12)
        yield most
        within = [[option for option in site.options if option.costs["cycles"] <= cycles] for site in options]
        least = _LEAST_SLACK * sum(min(option.costs["share"] for option in site) for site in within)
        top = most.explain().totals["share"]
        for share in _between(top, least, count):
            with suppress(PreconditionError):
                yield of_share(share)


def _between(top: float, least: float, count: int) -> Iterable[float]:
    """`count` - 1 numbers below `top`, down to `least`, each the same part of the one before."""
    if least >= top or count < 2:
        return ()
    return [float(each) for each in np.geomspace(top, least, count)[1:]]
