"""Budgets: shares, numbers, refusals."""

from __future__ import annotations

import math

import pytest

from fxfactor import Budget, PreconditionError

pytest.importorskip("scipy")


def test_a_share_is_taken_of_the_whole_and_a_number_is_itself() -> None:
    whole = {"bops": 1000.0, "macs": 50.0}
    assert Budget(bops=0.05, macs=20).limits(whole) == {"bops": 50.0, "macs": 20.0}
    assert Budget(macs=1).limits(whole) == {"macs": 1.0}
    assert Budget(macs=1.0).limits(whole) == {"macs": 50.0}
    assert repr(Budget(bops=0.05)) == "Budget(bops=0.05)"


@pytest.mark.parametrize("value", [0, -1, math.nan, math.inf, True, "5%"])
def test_a_budget_that_is_no_positive_number_is_refused(value: object) -> None:
    with pytest.raises(PreconditionError, match=r"Budget\(bops=…\) must be a number above 0"):
        Budget(bops=value)  # type: ignore[arg-type]


def test_a_budget_needs_a_limit_and_cycles_are_no_share() -> None:
    with pytest.raises(
        PreconditionError, match="at least one of macs, bops, weight_bits, lut, bram, dsp, cycles, uram, found none"
    ):
        Budget()
    with pytest.raises(PreconditionError, match="number of clock cycles, not a share"):
        Budget(cycles=0.5)
