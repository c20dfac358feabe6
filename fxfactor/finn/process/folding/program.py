"""Choose one candidate for every layer so that all are fast enough, all together fit the board, and the least of it is used.

    minimise   Σ_r cost_r / limit_r                       the sum of the shares of what the board has
    subject to cost_r = Σ_u Σ_c cost_r(c)·x(u, c) + Σ_e Σ_wv converter_r(w, v)·z(e, w, v) ≤ limit_r
               Σ_c x(u, c) = 1                             for every unit u, over candidates of at most the wanted cycles
               Σ_v z(e, w, v) = Σ_{c: width w} x(u, c)     for every stream e from u, and every width w; likewise for its
               Σ_w z(e, w, v) = Σ_{c: width v} x(t, c)     reader t
               x ∈ {0, 1}, z ≥ 0

Where two layers write and read a stream in words of different widths, a width converter stands between them: z picks its price.
The sum of shares and not the largest share is minimised, so that what is scarce on the board is dear, and so that a layer
that does not touch the scarcest resource is folded well too. Solved by HiGHS (Huangfu and Hall 2018) through
scipy.optimize.milp, on one thread and without a clock, so that the same problem has the same answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

RESOURCES = ("lut", "bram18", "dsp", "uram")
Costs = tuple[float, float, float, float]
"""LUTs, 18 kbit block RAMs, DSP slices, UltraRAMs."""

_GAP = 1e-3
_ROUGH = 0.05
"""Relative distance from the optimum: of a choice that is kept, and of one that only shows that something fits."""
_NODES = 1_000
"""Branches of the solver's tree after which its best answer is taken: a count, since a clock would not be deterministic."""


@dataclass(frozen=True)
class Candidate:
    """One way to fold a unit: FINN's attributes for each of its nodes, cycles per frame, what it costs, and the bits in one
    word of each of its streams, by the name of the tensor.
    """

    attributes: Mapping[str, Mapping[str, Any]]
    cycles: int
    costs: Costs
    widths: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Stream:
    """A tensor on its way from one unit to another one; `converter` gives the costs between words of two widths."""

    tensor: str
    writer: int
    reader: int
    converter: Callable[[int, int], Costs]


class Infeasible(Exception):
    """No choice is fast enough, or none fits. `facts`: what was asked, and the least that it needs."""

    def __init__(self, **facts: Any) -> None:
        super().__init__(str(facts))
        self.facts = facts


def add(*costs: Costs) -> Costs:
    """Sum, resource by resource."""
    lut, bram18, dsp, uram = (sum(each) for each in zip(*costs, strict=True)) if costs else (0.0, 0.0, 0.0, 0.0)
    return lut, bram18, dsp, uram


def choose(
    units: Sequence[Sequence[Candidate]], streams: Sequence[Stream], cycles: int, limits: Costs | None, objective: Costs
) -> list[Candidate]:
    """The candidate of every unit, none of more than `cycles` per frame.

    `objective`: what the shares are shares of, 0 where the board has none of it; `limits`: what may be used, None for no
    limit. Raises Infeasible: with `unit` and `fastest` where a unit has no candidate that is fast enough, else with
    `resource`, `limit` and `least`, the one that binds and the least that it needs.
    """
    fast = [[each for each in unit if each.cycles <= cycles] for unit in units]
    for index, unit in enumerate(fast):
        if not unit:
            raise Infeasible(unit=index, fastest=min(each.cycles for each in units[index]))
    weights = _weights(objective)
    chosen = _Program(promising(fast, streams, weights), streams).solve(weights, None)
    assert chosen is not None
    if limits is None or fits(total(chosen, streams), limits):
        return chosen
    program = _Program(pareto(fast, streams), streams)
    within = program.solve(weights, limits) if program.bound(weights, limits) is not None else None
    if within is None:
        raise Infeasible(**_binding(program, limits))
    return within


def fits(costs: Costs, limits: Costs) -> bool:
    """Whether so much is within the limits."""
    return all(cost <= limit + 1e-6 for cost, limit in zip(costs, limits, strict=True))


def _weights(objective: Costs) -> list[float]:
    return [1 / there if there else 0.0 for there in objective]


def total(chosen: Sequence[Candidate], streams: Iterable[Stream]) -> Costs:
    """What the chosen candidates cost, with the converters between them."""
    between = (
        stream.converter(chosen[stream.writer].widths[stream.tensor], chosen[stream.reader].widths[stream.tensor])
        for stream in streams
    )
    return add(*(each.costs for each in chosen), *between)


def fastest(
    units: Sequence[Sequence[Candidate]],
    streams: Sequence[Stream],
    limits: Costs,
    objective: Costs,
    at_least: int = 0,
) -> tuple[int, list[Candidate]]:
    """The fewest cycles per frame, `at_least` or more, that fit the limits, and the choice of the least shares at these.

    Raises Infeasible where not even the slowest candidates fit.
    """
    steps = sorted({each.cycles for unit in units for each in unit})
    first = max(min(each.cycles for each in unit) for unit in units)
    steps = [each for each in steps if each >= max(first, min(at_least, steps[-1]))]
    choose(units, streams, steps[-1], limits, objective)
    low, high, middle = 0, len(steps) - 1, 0 if at_least else len(steps) // 2
    while low < high:  # at steps[high] something fits
        middle = min(middle, high - 1)
        fast = [[each for each in unit if each.cycles <= steps[middle]] for unit in units]
        program = _Program(pareto(fast, streams), streams)
        possible = program.bound(_weights(objective), limits) is not None
        if possible and program.solve(_weights(objective), limits, gap=_ROUGH) is not None:
            high = middle
        else:
            low = middle + 1
        middle = (low + high) // 2
    return steps[high], choose(units, streams, steps[high], limits, objective)


def pareto(units: Sequence[Sequence[Candidate]], streams: Sequence[Stream]) -> list[list[Candidate]]:
    """The units without candidates that another one of the unit beats whatever its neighbours are.

    One beats another if it costs no more of anything: with equal widths as they are, else with the costliest converters that
    it could need and none for the other. Of equals the first stays.
    """
    ends = _costliest(units, streams)
    return [_undominated(unit, ends[index]) for index, unit in enumerate(units)]


def promising(
    units: Sequence[Sequence[Candidate]], streams: Sequence[Stream], weights: Sequence[float]
) -> list[list[Candidate]]:
    """The units without candidates whose weighted costs exceed those of another one and its costliest converters.

    Where no limit holds, these are never chosen.
    """
    ends, kept = _costliest(units, streams), []
    for index, unit in enumerate(units):
        least = [_weighted(each.costs, weights) for each in unit]
        most = [
            own + sum(_weighted(costliest[each.widths[name]], weights) for name, costliest in ends[index])
            for own, each in zip(least, unit, strict=True)
        ]
        kept.append([each for own, each in zip(least, unit, strict=True) if own <= min(most)])
    return kept


def _weighted(costs: Costs, weights: Sequence[float]) -> float:
    return sum(weight * cost for weight, cost in zip(weights, costs, strict=True))


def _costliest(
    units: Sequence[Sequence[Candidate]], streams: Sequence[Stream]
) -> dict[int, list[tuple[str, dict[int, Costs]]]]:
    """For each end of a stream at a unit: its tensor, and what a converter costs at most for each width."""
    ends: dict[int, list[tuple[str, dict[int, Costs]]]] = defaultdict(list)
    for stream in streams:
        written = sorted({each.widths[stream.tensor] for each in units[stream.writer]})
        read = sorted({each.widths[stream.tensor] for each in units[stream.reader]})
        prices = {(w, v): stream.converter(w, v) for w in written for v in read}
        ends[stream.writer].append((stream.tensor, {w: _most(prices[w, v] for v in read) for w in written}))
        ends[stream.reader].append((stream.tensor, {v: _most(prices[w, v] for w in written) for v in read}))
    return ends


def _most(costs: Iterable[Costs]) -> Costs:
    lut, bram18, dsp, uram = (max(each) for each in zip(*costs, strict=True))
    return lut, bram18, dsp, uram


def _undominated(unit: Sequence[Candidate], ends: Sequence[tuple[str, Mapping[int, Costs]]]) -> list[Candidate]:
    import numpy as np

    costs = np.array([each.costs for each in unit])
    costliest = np.array([add(each.costs, *(most[each.widths[name]] for name, most in ends)) for each in unit])
    words = [tuple(each.widths[name] for name, _ in ends) for each in unit]
    alike = np.array([[mine == yours for yours in words] for mine in words])
    reach = np.where(alike[:, :, None], costs[:, None], costliest[:, None])  # what i costs at most in the place of j
    beats = (reach <= costs[None]).all(2)
    equal = beats & beats.T
    first = np.arange(len(unit))[:, None] < np.arange(len(unit))[None]
    beaten: Any = ((beats & ~equal) | (equal & first)).any(axis=0)
    return [each for each, lost in zip(unit, beaten, strict=True) if not lost]


class _Program:
    """The integer program of some units and streams, to be solved for different aims."""

    def __init__(self, units: Sequence[Sequence[Candidate]], streams: Sequence[Stream]) -> None:
        self.units, self.streams = units, streams
        self.costs: list[Costs] = [each.costs for unit in units for each in unit]
        self.starts = [0]
        for unit in units:
            self.starts.append(self.starts[-1] + len(unit))
        self.choices = len(self.costs)
        self.rows: list[tuple[list[int], list[float], float]] = [
            (list(range(start, stop)), [1.0] * (stop - start), 1.0)
            for start, stop in zip(self.starts, self.starts[1:], strict=False)
        ]
        for stream in streams:
            self._add(stream)

    def _add(self, stream: Stream) -> None:
        writers, readers = self._by_width(stream.writer, stream.tensor), self._by_width(stream.reader, stream.tensor)
        prices = {(w, v): stream.converter(w, v) for w in writers for v in readers}
        if not any(any(price) for price in prices.values()):
            return
        columns = {pair: len(self.costs) + index for index, pair in enumerate(prices)}
        self.costs.extend(prices.values())
        for width, choices in writers.items():
            mine = [column for (w, _), column in columns.items() if w == width]
            self.rows.append((mine + choices, [1.0] * len(mine) + [-1.0] * len(choices), 0.0))
        for width, choices in readers.items():
            mine = [column for (_, v), column in columns.items() if v == width]
            self.rows.append((mine + choices, [1.0] * len(mine) + [-1.0] * len(choices), 0.0))

    def _by_width(self, unit: int, tensor: str) -> dict[int, list[int]]:
        found: dict[int, list[int]] = defaultdict(list)
        for column, each in enumerate(self.units[unit], self.starts[unit]):
            found[each.widths[tensor]].append(column)
        return dict(sorted(found.items()))

    def solve(
        self, weights: Sequence[float], limits: Sequence[float | None] | None, gap: float = _GAP
    ) -> list[Candidate] | None:
        """The choice of the least weighted cost within the limits (None: no limit), None where there is none."""
        import numpy as np

        found = self._run(weights, limits, whole=True, gap=gap)
        if found is None:
            return None
        return [
            unit[int(np.argmax(found[start : start + len(unit)]))]
            for unit, start in zip(self.units, self.starts, strict=False)
        ]

    def bound(self, weights: Sequence[float], limits: Sequence[float | None] | None) -> float | None:
        """A weighted cost that no choice within the limits stays below, None where there is certainly no choice.

        Candidates may be mixed for it (the linear relaxation).
        """
        import numpy as np

        found = self._run(weights, limits, whole=False, gap=_GAP)
        return None if found is None else float(np.array(self.costs, dtype=float) @ np.array(weights) @ found)

    def _run(self, weights: Sequence[float], limits: Sequence[float | None] | None, whole: bool, gap: float) -> Any:
        """The solver's variables, None where it finds none; choices are whole or may be mixed."""
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array

        costs = np.array(self.costs, dtype=float)
        matrix, right = self._matrix()
        constraints = [LinearConstraint(matrix, right, right)]
        for index, limit in enumerate(limits or ()):
            if limit is not None and costs[:, index].any():
                scale = max(limit, 1.0)
                constraints.append(LinearConstraint(csr_array(costs[None, :, index] / scale), -np.inf, limit / scale))
        aim = costs @ np.array(weights, dtype=float)
        choices = np.ones(self.choices) if whole else np.zeros(self.choices)
        found = milp(
            aim / (float(np.abs(aim).max()) or 1.0),
            integrality=np.concatenate([choices, np.zeros(len(costs) - self.choices)]),
            bounds=Bounds(0, 1),
            constraints=constraints,
            options={"mip_rel_gap": gap, "node_limit": _NODES},
        )
        return found.x

    def _matrix(self) -> tuple[Any, Any]:
        """The equations: one candidate for each unit, and streams as wide as their ends."""
        import numpy as np
        from scipy.sparse import csr_array

        entries = [
            (row, column, value)
            for row, (columns, values, _) in enumerate(self.rows)
            for column, value in zip(columns, values, strict=True)
        ]
        row, column, value = (np.array(each) for each in zip(*entries, strict=True))
        matrix = csr_array((value, (row, column)), shape=(len(self.rows), len(self.costs)))
        return matrix, np.array([each for _, _, each in self.rows])


def _binding(program: _Program, limits: Costs) -> dict[str, Any]:
    """The resource that most lacks, by itself or beside the limits of the others, and the least that it needs."""
    for beside in (tuple(None for _ in limits), limits):
        over = []
        for index, limit in enumerate(limits):
            bound = program.bound(_only(index), _others(beside, index))
            if bound is not None and bound > limit * (1 + 1e-6):
                over.append((bound / max(limit, 1.0), index, bound))
        if over:
            _, index, bound = max(over)
            return _told(program, index, limits, beside, bound)
    for index in range(len(limits)):  # only mixtures of candidates fit
        told = _told(program, index, limits, limits, 0.0)
        if told["least"] > limits[index]:
            return told
    return {"resource": None}


def _told(program: _Program, index: int, limits: Costs, beside: Sequence[float | None], bound: float) -> dict[str, Any]:
    chosen = program.solve(_only(index), _others(beside, index))
    least = bound if chosen is None else total(chosen, program.streams)[index]
    return {"resource": RESOURCES[index], "limit": limits[index], "least": least, "beside": beside is limits}


def _only(index: int) -> list[float]:
    return [float(index == each) for each in range(len(RESOURCES))]


def _others(limits: Sequence[float | None], index: int) -> list[float | None]:
    return [None if each == index else limit for each, limit in enumerate(limits)]
