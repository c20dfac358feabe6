"""Choose one option for every site so that the summed loss is least and every budget holds: an integer program.

    minimise   Σ_s Σ_o loss(s, o)·x(s, o)
    subject to Σ_o x(s, o) = 1                                for every site s
               Σ_s Σ_o cost_k(s, o)·x(s, o) ≤ limit_k         for every budget k
               Σ_{o: activation bits b} x(s, o) − x(t, o) = 0 for sites s, t that read one quantizer, and every b
               x ∈ {0, 1}

An option is a layer plan, on a board in one of its foldings. A multiple-choice knapsack with couplings, solved to proven
optimality by HiGHS (Huangfu and Hall 2018) through scipy.optimize.milp. Mixed-precision search by integer programming:
HAWQ-V3 (Yao et al. 2021, arXiv 2011.10680).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from fxfactor.errors import PreconditionError
from fxfactor.plan.budget import UNITS
from fxfactor.planning.space import Option, SiteOptions

_TIME_LIMIT_S = 60.0


def solve(sites: Sequence[SiteOptions], limits: Mapping[str, float]) -> list[Option]:
    """The best option for every site, in the order of `sites`.

    Of two solutions of equal loss any may be given; the same input gives the same one. A limit on cycles holds for
    every site by itself, since FINN's layers work side by side; all others hold for the sum over the sites.
    Raises PreconditionError where no choice meets the limits, with the least that each of them could be.
    """
    fitting = [_prune(_within_cycles(site, limits.get("cycles")), limits) for site in sites]
    summed = {name: limit for name, limit in limits.items() if name != "cycles"}
    chosen = _solve_program(fitting, summed)
    if chosen is None:
        raise PreconditionError(_infeasible(fitting, summed))
    return chosen


def _within_cycles(site: SiteOptions, most: float | None) -> SiteOptions:
    if most is None:
        return site
    options = tuple(option for option in site.options if option.costs["cycles"] <= most)
    if not options:
        least = min(option.costs["cycles"] for option in site.options)
        raise PreconditionError(
            f"no option of {site.site!r} takes at most {most:,.0f} cycles per frame, the fastest takes {least:,.0f}; "
            "allow more cycles"
        )
    return SiteOptions(site.site, site.shares, options)


def _prune(site: SiteOptions, limits: Mapping[str, float]) -> SiteOptions:
    """Without options that another one with the same activation bits beats in loss and in every limited cost."""
    names = list(limits)
    kept: list[Option] = []
    for option in sorted(site.options, key=lambda o: (o.loss, *(o.costs[name] for name in names))):
        same = [o for o in kept if o.layer.activation_bits == option.layer.activation_bits]
        if not any(all(o.costs[name] <= option.costs[name] for name in names) for o in same):
            kept.append(option)
    return SiteOptions(site.site, site.shares, tuple(kept))


def _solve_program(sites: Sequence[SiteOptions], limits: Mapping[str, float]) -> list[Option] | None:
    try:
        import numpy as np
        from scipy.optimize import Bounds, LinearConstraint, milp
        from scipy.sparse import csr_array
    except ModuleNotFoundError as error:
        raise PreconditionError(
            "a search needs scipy's solver, which is not installed; run pip install fxfactor[search]"
        ) from error
    options = [(index, option) for index, site in enumerate(sites) for option in site.options]
    losses = np.array([option.loss for _, option in options])
    scale = max(float(np.median([max(o.loss for o in site.options) for site in sites])), 1e-30)
    rows = [*_one_each(sites), *_agreements(sites)]
    data = [
        (index, column, value)
        for index, (columns, values, _) in enumerate(rows)
        for column, value in zip(columns, values, strict=True)
    ]
    row, column, value = (np.array(each) for each in zip(*data, strict=True))
    equal = csr_array((value, (row, column)), shape=(len(rows), len(options)))
    wanted = [right for _, _, right in rows]
    constraints = [LinearConstraint(equal, wanted, wanted)]
    for margin in (0.0, 1e-6, 1e-5, 1e-4):  # HiGHS may overstep a row by its tolerance: ask for that much less
        budgets = [
            LinearConstraint(np.array([[o.costs[name] / limit for _, o in options]]), -np.inf, 1 - margin)
            for name, limit in limits.items()
        ]
        found = milp(
            losses / scale,
            integrality=np.ones(len(options)),
            bounds=Bounds(0, 1),
            constraints=[*constraints, *budgets],
            options={"mip_rel_gap": 1e-6, "time_limit": _TIME_LIMIT_S},
        )
        if found.x is None:
            continue
        chosen = [option for value, (_, option) in zip(found.x, options, strict=True) if value > 0.5]
        if all(sum(o.costs[name] for o in chosen) <= limit for name, limit in limits.items()):
            return chosen
    return None


Row = tuple[list[int], list[float], float]


def _one_each(sites: Sequence[SiteOptions]) -> Iterator[Row]:
    start = 0
    for site in sites:
        columns = list(range(start, start + len(site.options)))
        start += len(columns)
        yield columns, [1.0] * len(columns), 1.0


def _agreements(sites: Sequence[SiteOptions]) -> Iterator[Row]:
    """For every site after the first that reads a quantizer: its bits are those of the first one."""
    start, members = 0, defaultdict(list)
    for site in sites:
        by_bits = defaultdict(list)
        for column, option in enumerate(site.options, start):
            by_bits[option.layer.activation_bits].append(column)
        start += len(site.options)
        members[site.shares].append(by_bits)
    for first, *others in members.values():
        for other in others:
            for bits in {**first, **other}:
                mine, yours = first.get(bits, []), other.get(bits, [])
                yield mine + yours, [1.0] * len(mine) + [-1.0] * len(yours), 0.0


def _infeasible(sites: Sequence[SiteOptions], limits: Mapping[str, float]) -> str:
    parts = []
    for name, limit in limits.items():
        least = sum(min(option.costs[name] for option in site.options) for site in sites)
        parts.append(f"at most {limit:,.0f} {UNITS[name]} where the least is {least:,.0f}")
    return f"no choice meets the budget: {' and '.join(parts)}; raise the budget, or allow fewer bits or higher levels"
