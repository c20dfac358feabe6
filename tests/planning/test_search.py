"""search: plans within a budget that explain themselves, and what is refused."""

from __future__ import annotations

from typing import Any

import pytest
from networks import ResidualNet, random_batches, randomized

import fxfactor
from fxfactor import Budget, Plan, PreconditionError

pytest.importorskip("scipy")


def test_a_searched_plan_is_within_the_budget_explains_itself_and_survives_json(tmp_path: object) -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    plan = fxfactor.search(model, images, Budget(bops=0.01, weight_bits=0.1), bits=(2, 4, 8))
    qmodel = fxfactor.transform(model, plan=plan, calibration=images)
    found, whole = fxfactor.cost(qmodel), fxfactor.cost(fxfactor.capture(model, images[0][:1]))
    assert found.bops <= 0.01 * whole.bops
    assert found.total_weight_bits <= 0.1 * whole.total_weight_bits
    assert plan.explain().totals == {"bops": found.bops, "weight_bits": found.total_weight_bits}
    again = Plan.from_json(plan.to_json())
    assert again == plan
    assert again.explain() == plan.explain()
    text = str(plan.explain())
    assert "block.conv1" in text
    assert "BOPs:" in text
    assert (
        fxfactor.search(model, images, Budget(bops=0.01, weight_bits=0.1), bits=(2, 4, 8)).to_json() == plan.to_json()
    )


def test_without_bits_only_groups_are_chosen() -> None:
    plan = fxfactor.search(randomized(ResidualNet(16)), random_batches(), Budget(macs=0.6), bits=(None,))
    assert plan.join_bits is None
    assert {layer.weight_bits for layer in plan.layers.values()} == {None}
    assert any(layer.groups for layer in plan.layers.values())


def test_refusals() -> None:
    model = randomized(ResidualNet(16))
    with pytest.raises(
        PreconditionError,
        match=r"measure must be one or several of 'both', 'loss', 'output', 'weighted', 'recovered', found 'L2'",
    ):
        fxfactor.search(model, random_batches(), Budget(bops=0.05), measure="L2")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="found an empty loader"):
        fxfactor.search(model, [], Budget(bops=0.05))
    with pytest.raises(PreconditionError, match="at least 2 images, found 1"):
        fxfactor.search(model, [random_batches()[0][:1]], Budget(bops=0.05))
    with pytest.raises(PreconditionError, match="at least one of bits|at least one of weight_bits"):
        fxfactor.search(model, random_batches(), Budget(bops=0.05), bits=())
    with pytest.raises(PreconditionError, match="no choice meets the budget: at most"):
        fxfactor.search(model, random_batches(), Budget(bops=1000))
    with pytest.raises(PreconditionError, match=r"Budget\(lut=…\)"):
        fxfactor.search(model, random_batches(), Budget(lut=0.5))


@pytest.mark.parametrize(
    ("budget", "settings", "message"),
    [
        (Budget(bops=1000), {}, "no choice meets the budget: at most 1,000 BOPs where the least is .*; raise the budget"),
        pytest.param(
            Budget(lut=100), {"board": "Pynq-Z2", "bits": (2, 4), "levels": (0, 2)},
            "at most 100 look-up tables where the least is .*; or lower join_bits, ask for fewer frames/s or choose a larger board",
            marks=pytest.mark.finn,
        ),
    ],
)  # fmt: skip
def test_a_budget_that_nothing_meets_is_known_before_anything_is_measured(
    budget: Budget, settings: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def measured(*_: Any) -> None:
        raise AssertionError("measured before the costs were compared with the budget")

    monkeypatch.setattr("fxfactor.planning.search.measure_errors", measured)
    with pytest.raises(PreconditionError, match=message):
        fxfactor.search(randomized(ResidualNet(16)), random_batches(), budget, **settings)
