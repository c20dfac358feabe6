"""What a searched plan says about itself."""

from __future__ import annotations

import pytest
from networks import ResidualNet, random_batches, randomized

import fxfactor
from fxfactor import Budget, LayerPlan, Plan, PreconditionError
from fxfactor.plan.explanation import Alternative, Explanation, SiteExplanation, describe, tightest

pytest.importorskip("scipy")


def test_a_plan_that_was_edited_does_not_explain_itself() -> None:
    plan = fxfactor.search(randomized(ResidualNet(16)), random_batches(), Budget(bops=0.05))
    with pytest.raises(PreconditionError, match=r"only a plan that fxfactor\.search has found, unchanged"):
        plan.with_layer("block.conv1", weight_bits=8).explain()
    damaged = plan.to_json().replace('"measure"', '"Measure"')
    with pytest.raises(PreconditionError, match="explanation is damaged"):
        Plan.from_json(damaged)


WHOLE, SPLIT = LayerPlan(None, None, 8, 8), LayerPlan(4, 16, 2, None)
EXPLAINED = Explanation(
    "output",
    {"bops": 200.0, "macs": 50.0, "cycles": 10.0},
    {"bops": 150.0, "macs": 45.0, "cycles": 10.0},
    {"bops": 1000.0},
    {
        "a": SiteExplanation(
            WHOLE, 0.25, {"bops": 100.0, "macs": 30.0, "cycles": 10.0}, coarser=Alternative(SPLIT, 0.5, -20.0)
        ),
        "b": SiteExplanation(
            SPLIT, 0.75, {"bops": 50.0, "macs": 10.0, "cycles": 5.0}, finer=Alternative(WHOLE, -0.5, 30.0)
        ),
    },
    "ZCU104 at 1,000 frames/s",
)


def test_a_choice_in_words() -> None:
    assert describe(WHOLE) == "whole 8/8"
    assert describe(SPLIT) == "g4 mid 16 2/32"
    assert describe(LayerPlan(2, None, None, 3)) == "g2 32/3"


def test_the_tightest_budget_is_the_one_used_up_most_and_cycles_only_alone() -> None:
    assert EXPLAINED.tightest == "macs"
    assert tightest({"cycles": 10.0, "bops": 100.0}, {"cycles": 10.0, "bops": 1.0}) == "bops"
    assert tightest({"cycles": 10.0}, {"cycles": 1.0}) == "cycles"


def test_every_site_has_a_row_with_shares_and_alternatives() -> None:
    text = str(EXPLAINED)
    rows = {line.split()[0]: line.split() for line in text.splitlines() if line.strip()[:2] in ("a ", "b ")}
    assert rows["a"][1:7] == ["whole", "8/8", "30", "75.0%", "0.25", "25.0%"]
    assert rows["b"][1:8] == ["g4", "mid", "16", "2/32", "10", "25.0%", "0.75"]
    assert "g4 mid 16 2/32: loss +0.5, cost -20" in text
    assert "whole 8/8: loss -0.5, cost +30" in text
    assert "BOPs: 150 of at most 200 (15.00% of 1,000)" in text
    assert "MACs: 45 of at most 50\n" in text
    assert "expected loss: 1 (lost share of each site's own outputs" in text
    assert "ZCU104 at 1,000 frames/s" in text
    assert Explanation.from_dict(EXPLAINED.to_dict()) == EXPLAINED
