"""What a searched plan says about itself."""

from __future__ import annotations

import pytest
from networks import ResidualNet, random_batches, randomized

import fxfactor
from fxfactor import Budget, Plan, PreconditionError

pytest.importorskip("scipy")


def test_a_plan_that_was_edited_does_not_explain_itself() -> None:
    plan = fxfactor.search(randomized(ResidualNet(16)), random_batches(), Budget(bops=0.05))
    with pytest.raises(PreconditionError, match=r"only a plan that fxfactor\.search has found, unchanged"):
        plan.with_layer("block.conv1", weight_bits=8).explain()
    damaged = plan.to_json().replace('"measure"', '"Measure"')
    with pytest.raises(PreconditionError, match="explanation is damaged"):
        Plan.from_json(damaged)
