"""Search: budgets, the integer program against enumeration, measured losses, plans that explain themselves."""

from __future__ import annotations

import itertools
import math
import random

import pytest
import torch
from networks import Lambda, ResidualNet, conv_bn_relu, fingerprint, randomized
from torch import nn

import fxfactor
from fxfactor import Budget, LayerPlan, Plan, PreconditionError
from fxfactor.plan.budget import UNITS
from fxfactor.planning.integer_program import solve
from fxfactor.planning.plans import best_plan, candidates, distance, uniform_plan
from fxfactor.planning.search import BITS, LEVELS
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import Option, Shape, SiteOptions, sharing, space_of
from fxfactor.quantization.levels import rounded_weight
from fxfactor.quantization.plain_copy import freeze

pytest.importorskip("scipy")


def _images(count: int = 24, size: int = 16) -> list[torch.Tensor]:
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3)).split(8))


# ---- budgets ----


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
    with pytest.raises(PreconditionError, match=f"at least one of {', '.join(UNITS)}"):
        Budget()
    with pytest.raises(PreconditionError, match="number of clock cycles, not a share"):
        Budget(cycles=0.5)


# ---- the integer program ----


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


# ---- the space ----


def test_costs_of_the_space_are_those_of_the_network_that_the_plan_makes() -> None:
    model, images = randomized(ResidualNet(16)), _images()
    graph = fxfactor.capture(model, images[0][:1])
    space = space_of(graph, (0, 1, 2, "depthwise"), (2, 4), widths=(0.5, 1))
    draw = random.Random(0)
    for _ in range(5):
        chosen = {name: draw.choice(list(space.layers(name))) for name in space.shapes}
        plan = Plan({name: layer for name, (_, layer) in chosen.items()}, join_bits=8)
        found = fxfactor.cost(fxfactor.transform(model, plan=plan, example_inputs=images[0][:1]))
        costs = [space.costs(name, shape, layer) for name, (shape, layer) in chosen.items()]
        assert sum(each["macs"] for each in costs) == found.macs
        assert sum(each["bops"] for each in costs) == found.bops
        assert sum(each["weight_bits"] for each in costs) == found.total_weight_bits


def test_layers_behind_one_tensor_share_a_quantizer() -> None:
    net = Lambda(
        lambda m, x: m.b(m.a(x)) + m.c(m.a_again(x)),
        a=conv_bn_relu(3, 16), a_again=conv_bn_relu(3, 16), b=nn.Conv2d(16, 8, 3, padding=1), c=nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    apart = sharing(fxfactor.capture(net, torch.randn(1, 3, 8, 8)))
    assert apart["b"] != apart["c"]
    assert apart["a.0"] == apart["a_again.0"]
    forked = Lambda(
        lambda m, x: m.b(y := m.a(x)) + m.c(y),
        a=conv_bn_relu(3, 16), b=nn.Conv2d(16, 8, 3, padding=1), c=nn.Conv2d(16, 8, 1),
    )  # fmt: skip
    together = sharing(fxfactor.capture(forked, torch.randn(1, 3, 8, 8)))
    assert together["b"] == together["c"]


def test_kept_sites_stay_whole_and_finn_gets_few_branches() -> None:
    graph = fxfactor.capture(ResidualNet(64), torch.randn(1, 3, 8, 8))
    space = space_of(graph, (*range(7), "depthwise"), (4,), keep=("block.conv1",), most_branches=8)
    assert space.shapes["block.conv1"] == (Shape(),)
    assert [shape.groups for shape in space.shapes["block.conv2"]] == [None, 2, 4, 8, 64]
    assert space.weight_bits["stem.0"] == (8,)


# ---- sensitivity ----


def test_weights_are_rounded_as_brevitas_rounds_them() -> None:
    qmodel = fxfactor.transform(randomized(ResidualNet(16)), level=0, bits=3, example_inputs=torch.randn(1, 3, 16, 16))
    layer = qmodel.get_submodule("block.conv1")
    torch.testing.assert_close(rounded_weight(layer.weight.detach(), 3), layer.quant_weight().value.detach())


def test_errors_fall_with_bits_and_vanish_in_floating_point() -> None:
    model, images = randomized(ResidualNet(16)), _images()
    before = fingerprint(model)
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (1, 3), (2, 4, 8, None))
    errors = measure_errors(graph, images, space)
    assert fingerprint(model) == before
    assert all(parameter.requires_grad for parameter in graph.parameters())
    for measure in ("both", "loss", "output", "weighted"):
        at = [errors["block.conv1"].of(Shape(), LayerPlan(None, None, b, b), measure) for b in (2, 4, 8, None)]
        assert at == sorted(at, reverse=True)
        assert at[-1] == 0
    coarse, fine = (errors["block.conv2"].of(Shape(g), LayerPlan(g), "output") for g in (2, 8))
    assert 0 < coarse < fine < 1


def test_the_second_order_predicts_the_loss_of_a_small_change() -> None:
    model, images = randomized(ResidualNet(16)), _images(64)
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (8, 4), boundary_bits=None)
    errors = measure_errors(graph, images, space)
    predicted = (
        errors["block.conv1"].of(Shape(), LayerPlan(None, None, 4, None), "loss")
        if False
        else float(errors["block.conv1"].weights[Shape(), 4][0])
    )
    changed = fxfactor.capture(model, images[0][:1]).eval()
    conv = changed.get_submodule("block.conv1")
    conv.weight.data = rounded_weight(conv.weight.data, 4)
    judged = torch.cat(images)[32:]
    with torch.no_grad():
        p, q = ((net(judged) / 4).log_softmax(1) for net in (graph, changed))
    actual = float((p.exp() * (p - q)).sum(1).mean()) * 16
    assert 0.5 < predicted / actual < 2


# ---- search ----


def test_a_searched_plan_is_within_the_budget_explains_itself_and_survives_json(tmp_path: object) -> None:
    model, images = randomized(ResidualNet(16)), _images()
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


def test_a_looser_budget_loses_less() -> None:
    model, images = randomized(ResidualNet(16)), _images()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, 2, 3), (2, 3, 4, 6, 8))
    errors = measure_errors(graph, images, space)
    losses = []
    for share in (0.0075, 0.01, 0.02, 0.05):
        plan = best_plan(space, errors, Budget(bops=share).limits(space.whole), "both", 8)
        losses.append(sum(each.loss for each in plan.explain().layers.values()))
    assert losses == sorted(losses, reverse=True)


def test_without_bits_only_groups_are_chosen() -> None:
    plan = fxfactor.search(randomized(ResidualNet(16)), _images(), Budget(macs=0.6), bits=(None,))
    assert plan.join_bits is None
    assert {layer.weight_bits for layer in plan.layers.values()} == {None}
    assert any(layer.groups for layer in plan.layers.values())


def test_of_several_measures_the_plan_closest_to_the_original_is_taken() -> None:
    model, images = randomized(ResidualNet(16)), _images()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, LEVELS, BITS)
    errors = measure_errors(graph, images, space)
    plans = candidates(space, errors, Budget(bops=0.008).limits(space.whole), ("loss", "output"), 8)
    best = fxfactor.search(model, images, Budget(bops=0.008), measure=("loss", "output"))
    assert best in plans
    assert distance(model, best, images) == min(distance(model, each, images) for each in plans)


def test_the_simpler_plans_are_among_the_candidates() -> None:
    model, images = randomized(ResidualNet(16)), _images()
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
    model, images = randomized(ResidualNet(16)), _images()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    narrow, wide = (space_of(graph, (0, 1, 2), (3, 4), widths=widths) for widths in ((1,), (1, 2)))
    errors = measure_errors(graph, images, wide)
    limits = Budget(bops=0.015).limits(wide.whole)
    plans = candidates(wide, errors, limits, ("both", "output"), 8)
    alone = best_plan(narrow, errors, limits, "both", 8)
    assert alone in plans
    assert any(layer.groups is not None for layer in alone.layers.values())
    assert alone != best_plan(wide, errors, limits, "both", 8)


def test_a_plan_that_was_edited_does_not_explain_itself() -> None:
    plan = fxfactor.search(randomized(ResidualNet(16)), _images(), Budget(bops=0.05))
    with pytest.raises(PreconditionError, match=r"only a plan that fxfactor\.search has found, unchanged"):
        plan.with_layer("block.conv1", weight_bits=8).explain()
    damaged = plan.to_json().replace('"measure"', '"Measure"')
    with pytest.raises(PreconditionError, match="explanation is damaged"):
        Plan.from_json(damaged)


def test_refusals() -> None:
    model = randomized(ResidualNet(16))
    with pytest.raises(
        PreconditionError, match=r"measure must be one or several of 'both', 'loss', 'output', 'weighted', found 'L2'"
    ):
        fxfactor.search(model, _images(), Budget(bops=0.05), measure="L2")  # type: ignore[arg-type]
    with pytest.raises(PreconditionError, match="found an empty loader"):
        fxfactor.search(model, [], Budget(bops=0.05))
    with pytest.raises(PreconditionError, match="at least 2 images, found 1"):
        fxfactor.search(model, [_images()[0][:1]], Budget(bops=0.05))
    with pytest.raises(PreconditionError, match="at least one of bits|at least one of weight_bits"):
        fxfactor.search(model, _images(), Budget(bops=0.05), bits=())
    with pytest.raises(PreconditionError, match="no choice meets the budget: at most"):
        fxfactor.search(model, _images(), Budget(bops=1000))
    with pytest.raises(PreconditionError, match=r"Budget\(lut=…\)"):
        fxfactor.search(model, _images(), Budget(lut=0.5))


# ---- frozen ----


@pytest.mark.parametrize(("level", "bits"), [(0, 8), (2, 4), (3, (None, 3)), (2, (2, None))])
def test_a_frozen_network_gives_the_same_outputs(level: int, bits: object) -> None:
    images = _images()
    qmodel = fxfactor.transform(randomized(ResidualNet(16)), level=level, bits=bits, calibration=images)  # type: ignore[arg-type]
    before = fingerprint(qmodel)
    frozen = freeze(qmodel)
    assert not any(type(module).__module__.startswith("brevitas") for module in frozen.modules())
    with torch.no_grad():
        torch.testing.assert_close(frozen(images[0]), qmodel.eval()(images[0]), rtol=0, atol=1e-6)
    assert fingerprint(qmodel) == before
