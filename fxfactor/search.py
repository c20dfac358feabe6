"""Search: groups and bits for every layer, so that the network loses least under a budget.

Sensitivity of every choice at every site (`fxfactor.sensitivity`), summed over the sites, then an integer program
(`fxfactor.solve`). HAQ's question (Wang et al. 2019, arXiv 1811.08886), with a solver in the place of reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxfactor.budget import HARDWARE, Budget
from fxfactor.calibrate import inputs_of
from fxfactor.capture import capture
from fxfactor.errors import PreconditionError
from fxfactor.explanation import Explanation, SiteExplanation, Step
from fxfactor.frozen import freeze
from fxfactor.options import Bits, Option, SiteOptions, Space, space_of
from fxfactor.plan import Level, Plan
from fxfactor.sensitivity import MEASURES, Measure, SiteErrors, measure_errors
from fxfactor.solve import solve
from fxfactor.transform import transform

LEVELS: tuple[Level, ...] = (*range(7), "depthwise")
BITS = (2, 3, 4, 5, 6, 8)
MOST_BRANCHES = 16
"""With finn=True: groups of a convolution that is not depthwise, at most. FINN gets each as a convolution of its own."""


def search(
    model: nn.Module,
    loader: Iterable[Any],
    budget: Budget,
    *,
    levels: Iterable[Level] = LEVELS,
    bits: Sequence[Bits] = BITS,
    weight_bits: Sequence[Bits] | None = None,
    activation_bits: Sequence[Bits] | None = None,
    widths: Sequence[float] = (1,),
    boundary_bits: Bits = 8,
    join_bits: Bits = 8,
    keep: Iterable[str] = (),
    measure: Measure | Sequence[Measure] = "both",
    images: int = 512,
    finn: bool = False,
) -> Plan:
    """Find the plan that loses least under a budget: groups, mid, weight bits and activation bits of every layer.

    Before: a trained network and batches of images, labels unseen. After: a plan for
    `fxfactor.transform(model, plan=plan, calibration=loader)`; `print(plan.explain())` says what each layer costs and why.

    budget: `Budget(bops=0.05)`, one limit or several. levels: their groups are the shapes to choose from, one piece is
    always among them. bits: for weights and activations; `weight_bits` and `activation_bits` where they differ; (None,)
    for floating point. widths: channels between the factors, as multiples of the input channels. boundary_bits: of the
    first layer and the last, None to let the search choose. join_bits: of tensors that enter additions. keep: module
    paths that are not factorized. measure: "both", "loss", "output" or "weighted", see `fxfactor.sensitivity`; of several of them
    each gives a plan, and the one whose network, made and run on the images, is closest to the original is returned.
    images: so many of `loader` are used, at most. finn: no grouped convolution of more than 16 groups, unless it is depthwise.

    The losses are measured with one layer changed at a time, and added; the program on top is solved to optimality.
    Raises PreconditionError where nothing meets the budget, on values out of range, and without images.
    """
    measures = _checked((measure,) if isinstance(measure, str) else tuple(measure))
    _require_software(budget)
    batches = first_images(loader, images)
    graph = capture(model, batches[0][:1]).eval()
    space = space_of(
        graph,
        levels,
        bits,
        weight_bits,
        activation_bits,
        widths,
        boundary_bits,
        keep,
        MOST_BRANCHES if finn else None,
    )
    if space.weight_bits and all(
        each == (None,) for each in (*space.weight_bits.values(), *space.activation_bits.values())
    ):
        join_bits = None
    limits = budget.limits(space.whole)
    errors = measure_errors(graph, batches, space)
    plans: list[Plan] = []
    for each in measures:
        plan = best_plan(space, errors, limits, each, join_bits)
        if plan not in plans:
            plans.append(plan)
    return plans[0] if len(plans) == 1 else min(plans, key=lambda plan: distance(model, plan, batches))


def distance(model: nn.Module, plan: Plan, batches: Sequence[Tensor]) -> float:
    """How far the network that a plan makes from the first half of the images is from the original on the second half.

    For logits (N, K) the mean Kullback-Leibler divergence of the two softmaxes, in nats; for any other output
    ‖f − f̂‖² / ‖f‖², summed over the outputs.
    """
    images = torch.cat(list(batches))
    fit, judge = images.split((len(images) + 1) // 2)
    made = freeze(transform(model, plan=plan, calibration=fit.split(len(batches[0]))))
    original, total = capture(model, images[:1]).eval(), 0.0
    with torch.no_grad():
        for part in judge.split(len(batches[0])):
            for wanted, found in zip(tree_leaves(original(part)), tree_leaves(made(part)), strict=True):
                if wanted.dim() == 2 and wanted.shape[1] > 1:
                    p, q = wanted.log_softmax(1), found.log_softmax(1)
                    total += float((p.exp() * (p - q)).sum()) / len(judge)
                else:
                    lost = float((found - wanted).square().sum() / wanted.square().sum().clamp_min(1e-30))
                    total += lost * len(part) / len(judge)
    return total


def _checked(measures: tuple[Measure, ...]) -> tuple[Measure, ...]:
    unknown = [each for each in measures if each not in MEASURES]
    if unknown or not measures:
        found = repr(unknown[0]) if unknown else "none"
        raise PreconditionError(f"measure must be one or several of {', '.join(map(repr, MEASURES))}, found {found}")
    return measures


def best_plan(
    space: Space, errors: dict[str, SiteErrors], limits: dict[str, float], measure: Measure, join_bits: Bits
) -> Plan:
    """Solve for one budget; measured errors serve many."""
    options = options_of(space, errors, measure)
    chosen = solve(options, limits)
    layers = {site.site: option.layer for site, option in zip(options, chosen, strict=True)}
    return Plan(layers, join_bits, explain(options, chosen, limits, space, measure))


def options_of(space: Space, errors: dict[str, SiteErrors], measure: Measure) -> list[SiteOptions]:
    """Every choice at every site with its loss and costs."""
    return [
        SiteOptions(
            name,
            space.sharing[name],
            tuple(
                Option(layer, errors[name].of(shape, layer, measure), space.costs(name, shape, layer))
                for shape, layer in space.layers(name)
            ),
        )
        for name in space.shapes
    ]


def explain(
    sites: Sequence[SiteOptions], chosen: Sequence[Option], limits: dict[str, float], space: Space, measure: str
) -> Explanation:
    """What every choice costs and loses, with the alternatives that come closest."""
    totals = {name: sum(option.costs[name] for option in chosen) for name in limits}
    tightest = max(limits, key=lambda name: totals[name] / limits[name])
    layers = {
        site.site: SiteExplanation(
            option.layer,
            option.loss,
            option.costs,
            _alternative(site, option, tightest, finer=True),
            _alternative(site, option, tightest, finer=False),
        )
        for site, option in zip(sites, chosen, strict=True)
    }
    return Explanation(measure, limits, totals, {name: space.whole[name] for name in limits}, layers)


def _alternative(site: SiteOptions, chosen: Option, cost: str, finer: bool) -> Step | None:
    """The finer choice that gains most per cost, or the coarser one that gives up least per cost saved."""
    sign = 1 if finer else -1
    others = [
        option
        for option in site.options
        if sign * (chosen.loss - option.loss) > 0 and sign * (option.costs[cost] - chosen.costs[cost]) > 0
    ]
    if not others:
        return None

    def price(option: Option) -> float:
        return sign * (option.loss - chosen.loss) / abs(option.costs[cost] - chosen.costs[cost])

    best = min(others, key=lambda option: sign * price(option) if finer else -price(option))
    return Step(best.layer, best.loss - chosen.loss, best.costs[cost] - chosen.costs[cost])


def first_images(loader: Iterable[Any], count: int) -> list[Tensor]:
    """Batches of the first `count` images of a loader. Raises PreconditionError where there are none."""
    batches: list[Tensor] = []
    left = count
    for batch in loader:
        batches.append(inputs_of(batch)[:left])
        left -= len(batches[-1])
        if left <= 0:
            break
    if not batches:
        raise PreconditionError("calibration images are needed, found an empty loader; pass batches (N, C, H, W)")
    return batches


def _require_software(budget: Budget) -> None:
    hardware = [name for name in budget.given() if name in HARDWARE]
    if hardware:
        raise PreconditionError(
            f"Budget({hardware[0]}=…) needs FINN's cost of every choice, which is not connected yet; give macs, bops or "
            "weight_bits, and look at the result with fxfactor.finn.estimate"
        )
