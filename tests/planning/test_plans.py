"""Candidates for the plan, and the one that is taken."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from networks import ResidualNet, random_batches, randomized

import fxfactor
from fxfactor import Budget, Plan, PreconditionError
from fxfactor.planning.plans import Limits, best_plan, candidates, distance, for_all, require_place, uniform_plan
from fxfactor.planning.search import BITS, LEVELS
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import Space, space_of
from fxfactor.quantization.levels import Bits

pytest.importorskip("scipy")


def _limits(space: Space, share: float) -> Limits:
    return for_all(space.join_bits, Budget(bops=share).limits(space.whole))


def test_a_looser_budget_loses_less() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, 2, 3), (2, 3, 4, 6, 8))
    errors = measure_errors(graph, images, space)
    losses = []
    for share in (0.0075, 0.01, 0.02, 0.05):
        plan = best_plan(space, errors, _limits(space, share), "both")
        losses.append(sum(each.loss for each in plan.explain().layers.values()))
    assert losses == sorted(losses, reverse=True)


def test_of_several_measures_the_plan_closest_to_the_original_is_taken() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, LEVELS, BITS)
    errors = measure_errors(graph, images, space)
    plans = candidates(space, errors, _limits(space, 0.008), ("loss", "output"))
    best = fxfactor.search(model, images, Budget(bops=0.008), measure=("loss", "output"))
    assert best in plans
    assert distance(model, best, images) == min(distance(model, each, images) for each in plans)


def test_the_simpler_plans_are_among_the_candidates() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, 2), (2, 3, 4))
    errors = measure_errors(graph, images, space)
    limits = _limits(space, 0.02)
    plans = candidates(space, errors, limits, ("both", "output"))
    assert any(all(layer.groups is None for layer in plan.layers.values()) for plan in plans)
    assert all(plan.explain().totals["bops"] <= limits[8]["bops"] for plan in plans)
    (uniform,) = uniform_plan(space, errors, limits, "both")
    assert uniform in plans
    inner = [uniform.layers[name] for name in ("block.conv1", "block.conv2")]
    assert inner[0] == inner[1]
    best = best_plan(space, errors, limits, "both")
    assert candidates(space, errors, limits, ("both",)) == [best]
    assert list(uniform_plan(space, errors, {8: {"bops": 1000.0}}, "both")) == []


def test_with_several_widths_the_plan_of_width_1_is_among_the_candidates() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    narrow, wide = (space_of(graph, (0, 1, 2), (3, 4), widths=widths) for widths in ((1,), (1, 2)))
    errors = measure_errors(graph, images, wide)
    limits = _limits(wide, 0.015)
    plans = candidates(wide, errors, limits, ("both", "output"))
    alone = best_plan(narrow, errors, limits, "both")
    assert alone in plans
    assert any(layer.groups is not None for layer in alone.layers.values())
    assert alone != best_plan(wide, errors, limits, "both")


def test_the_distance_is_that_on_images_not_calibrated_on() -> None:
    model, images = randomized(ResidualNet(16)), torch.cat(random_batches())
    plan = Plan.uniform(fxfactor.capture(model, images[:1]), 0, 4, 4)
    first, second = images[:12], images[12:]
    assert distance(model, plan, [first, 10 * second]) > 3 * distance(model, plan, [first, second])


def _with_hardware(space: Space, luts: dict[Bits, tuple[dict[str, float], ...]]) -> Space:
    """Every choice at every site has these foldings, by the bits that enter additions."""
    keys = [(name, shape, layer, bits) for name in space.shapes for shape, layer in space.layers(name) for bits in luts]
    return replace(space, hardware={key: luts[key[-1]] for key in keys})


def test_of_several_foldings_each_site_has_the_one_that_the_limits_leave() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (4,))
    errors = measure_errors(graph, images, space)
    count = len(space.shapes)
    priced = _with_hardware(space, {8: ({"lut": 10.0, "dsp": 1.0}, {"lut": 1.0, "dsp": 5.0})})
    for limits in ({"lut": 10 * count, "dsp": count}, {"lut": 10 * count - 9, "dsp": count + 4}):
        plan = best_plan(priced, errors, {8: limits}, "both")
        assert plan.explain().totals == limits
    with pytest.raises(PreconditionError, match="no choice meets the budget"):
        best_plan(priced, errors, {8: {"lut": 10 * count - 9, "dsp": count + 3}}, "both")
    with pytest.raises(PreconditionError, match=f"at most 3 look-up tables where the least is {count}"):
        require_place(priced, {8: {"lut": 3, "dsp": 1000}})


def test_bits_that_enter_additions_are_chosen_by_what_they_cost_and_lose() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (4,), join_bits=(3, 8))
    errors = measure_errors(graph, images, space)
    count = len(space.shapes)
    priced = _with_hardware(space, {3: ({"lut": 1.0},), 8: ({"lut": 2.0},)})
    for limit, wanted in ((2 * count, 8), (2 * count - 1, 3)):
        assert best_plan(priced, errors, for_all((3, 8), {"lut": limit}), "both").join_bits == wanted
    assert best_plan(priced, errors, {3: {"lut": 2 * count}, 8: {"lut": count}}, "both").join_bits == 3
    with pytest.raises(PreconditionError, match=f"where the least is {count}"):  # the message is of the fewest bits
        best_plan(priced, errors, for_all((3, 8), {"lut": count - 1}), "both")


def test_what_additions_lose_counts_beside_what_layers_lose() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (2, 8), boundary_bits=None, join_bits=(2, 8))
    errors = measure_errors(graph, images, space)
    (join,) = [name for name in errors if name not in space.shapes]
    keys = [
        (name, shape, layer, bits) for name in space.shapes for shape, layer in space.layers(name) for bits in (2, 8)
    ]

    def bits_where_finer_layers_or_finer_additions_fit(weight: float) -> tuple[Bits, set[Bits]]:
        costs = {
            k: ({"lut": 1.0 + (k[2].weight_bits == 8) + (k[2].activation_bits == 8) + 2 * (k[3] == 8)},) for k in keys
        }
        mine = errors[join]
        scaled = {**errors, join: replace(mine, activations={k: weight * v for k, v in mine.activations.items()})}
        plan = best_plan(
            replace(space, hardware=costs), scaled, for_all((2, 8), {"lut": 3.0 * len(space.shapes)}), "both"
        )
        return plan.join_bits, {layer.weight_bits for layer in plan.layers.values()}

    assert bits_where_finer_layers_or_finer_additions_fit(1e-6) == (2, {8})
    assert bits_where_finer_layers_or_finer_additions_fit(1e6) == (8, {2})
