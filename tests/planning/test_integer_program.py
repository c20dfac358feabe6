"""The integer program against enumeration."""

from __future__ import annotations

import itertools
import math
import random

import pytest

from fxfactor import LayerPlan, PreconditionError
from fxfactor.planning.integer_program import solve
from fxfactor.planning.space import Option, SiteOptions

pytest.importorskip("scipy")


def _random_sites(seed: int, sites: int, names: tuple[str, ...]) -> list[SiteOptions]:
    draw = random.Random(seed)
    found = []
    for index in range(sites):
        options = tuple(
            Option(LayerPlan(groups, None, 4, bits), draw.random(), {name: draw.randint(1, 30) for name in names})
            for groups in (None, 2)
            for bits in (2, 4, 8)
        )
        found.append(SiteOptions(f"site{index}", f"quantizer{index // 2 if seed % 2 else index}", options))
    return found


def _enumerate(sites: list[SiteOptions], limits: dict[str, float]) -> float:
    best = math.inf
    for chosen in itertools.product(*(site.options for site in sites)):
        bits: dict[str, set[int | None]] = {}
        for site, option in zip(sites, chosen, strict=True):
            bits.setdefault(site.shares, set()).add(option.layer.activation_bits)
        agree = all(len(each) == 1 for each in bits.values())
        if agree and all(sum(option.costs[name] for option in chosen) <= limit for name, limit in limits.items()):
            best = min(best, sum(option.loss for option in chosen))
    return best


@pytest.mark.parametrize("seed", range(12))
def test_the_solution_is_the_optimum_that_enumeration_finds(seed: int) -> None:
    names = ("bops",) if seed < 6 else ("bops", "macs")
    sites = _random_sites(seed, 5, names)
    limits = {name: 55.0 for name in names}
    wanted = _enumerate(sites, limits)
    chosen = solve(sites, limits)
    assert sum(option.loss for option in chosen) == pytest.approx(wanted, rel=1e-6)
    assert all(sum(option.costs[name] for option in chosen) <= limit for name, limit in limits.items())


def test_cycles_hold_for_every_site_by_itself() -> None:
    fast, slow = (Option(LayerPlan(weight_bits=b), loss, {"cycles": c}) for b, loss, c in ((2, 1.0, 10), (8, 0.1, 90)))
    sites = [SiteOptions(name, name, (fast, slow)) for name in "ab"]
    assert solve(sites, {"cycles": 90}) == [slow, slow]
    assert solve(sites, {"cycles": 89}) == [fast, fast]
    with pytest.raises(
        PreconditionError, match="no option of 'a' takes at most 5 cycles per frame, the fastest takes 10"
    ):
        solve(sites, {"cycles": 5})


def test_a_budget_that_nothing_meets_is_refused_with_the_least_that_is_possible() -> None:
    with pytest.raises(PreconditionError, match="at most 2 BOPs where the least is"):
        solve(_random_sites(0, 4, ("bops",)), {"bops": 2.0})


def test_a_budget_is_kept_to_the_last_digit() -> None:
    """HiGHS takes a row as kept within a tolerance of a millionth; the budget knows none."""
    over, under = (
        Option(LayerPlan(weight_bits=b), loss, {"bops": c}) for b, loss, c in ((8, 0.0, 100.00005), (2, 1.0, 60.0))
    )
    assert solve([SiteOptions("a", "a", (over, under))], {"bops": 100.0}) == [under]
