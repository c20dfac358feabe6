"""Candidates for the plan, and the one that is taken."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, random_batches, randomized

import fxfactor
from fxfactor import Budget, Plan
from fxfactor.planning.plans import best_plan, candidates, distance, uniform_plan
from fxfactor.planning.search import BITS, LEVELS
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import space_of

pytest.importorskip("scipy")


def test_a_looser_budget_loses_less() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, 2, 3), (2, 3, 4, 6, 8))
    errors = measure_errors(graph, images, space)
    losses = []
    for share in (0.0075, 0.01, 0.02, 0.05):
        plan = best_plan(space, errors, Budget(bops=share).limits(space.whole), "both", 8)
        losses.append(sum(each.loss for each in plan.explain().layers.values()))
    assert losses == sorted(losses, reverse=True)


def test_of_several_measures_the_plan_closest_to_the_original_is_taken() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, LEVELS, BITS)
    errors = measure_errors(graph, images, space)
    plans = candidates(space, errors, Budget(bops=0.008).limits(space.whole), ("loss", "output"), 8)
    best = fxfactor.search(model, images, Budget(bops=0.008), measure=("loss", "output"))
    assert best in plans
    assert distance(model, best, images) == min(distance(model, each, images) for each in plans)


def test_the_simpler_plans_are_among_the_candidates() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, 2), (2, 3, 4))
    errors = measure_errors(graph, images, space)
    limits = Budget(bops=0.02).limits(space.whole)
    plans = candidates(space, errors, limits, ("both", "output"), 8)
    assert any(all(layer.groups is None for layer in plan.layers.values()) for plan in plans)
    assert all(plan.explain().totals["bops"] <= limits["bops"] for plan in plans)
    (uniform,) = uniform_plan(space, errors, limits, "both", 8)
    assert uniform in plans
    inner = [uniform.layers[name] for name in ("block.conv1", "block.conv2")]
    assert inner[0] == inner[1]
    best = best_plan(space, errors, limits, "both", 8)
    assert candidates(space, errors, limits, ("both",), 8) == [best]
    assert list(uniform_plan(space, errors, {"bops": 1000.0}, "both", 8)) == []


def test_with_several_widths_the_plan_of_width_1_is_among_the_candidates() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    narrow, wide = (space_of(graph, (0, 1, 2), (3, 4), widths=widths) for widths in ((1,), (1, 2)))
    errors = measure_errors(graph, images, wide)
    limits = Budget(bops=0.015).limits(wide.whole)
    plans = candidates(wide, errors, limits, ("both", "output"), 8)
    alone = best_plan(narrow, errors, limits, "both", 8)
    assert alone in plans
    assert any(layer.groups is not None for layer in alone.layers.values())
    assert alone != best_plan(wide, errors, limits, "both", 8)


def test_the_distance_is_that_on_images_not_calibrated_on() -> None:
    model, images = randomized(ResidualNet(16)), torch.cat(random_batches())
    plan = Plan.uniform(fxfactor.capture(model, images[:1]), 0, 4, 4)
    first, second = images[:12], images[12:]
    assert distance(model, plan, [first, 10 * second]) > 3 * distance(model, plan, [first, second])
