"""Plans that meet a budget: what the integer program finds by each measure, and simpler ones; and which is the best.

The losses of the program are predictions, added up from layers that were changed one at a time. So several plans are
made and run on images, and the one whose outputs are closest to the original's is taken. Among them are the best plan
without factorization, that of width 1 and the best uniform one: on these images a search is never further away than they are.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import product

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import capture
from fxfactor.plan.explanation import Alternative, Explanation, SiteExplanation, tightest
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import Plan
from fxfactor.planning.integer_program import solve
from fxfactor.planning.sensitivity import Measure, SiteErrors
from fxfactor.planning.space import Option, Shape, SiteOptions, Space
from fxfactor.quantization.levels import Bits
from fxfactor.quantization.plain_copy import freeze
from fxfactor.recipe import transform

Limits = Mapping[Bits, Mapping[str, float]]
"""Budgets by the bits of tensors that enter additions: what else the network needs beside its sites depends on these."""


def candidates(
    space: Space,
    errors: dict[str, SiteErrors],
    limits: Limits,
    measures: Sequence[Measure],
) -> list[Plan]:
    """Different plans within the limits: by each measure, and for several measures also in one piece and uniform.

    Raises PreconditionError where nothing meets the limits.
    """
    plans = [best_plan(space, errors, limits, measure) for measure in measures]
    if len(measures) > 1:
        for smaller in _smaller(space):
            for measure in measures:
                try:
                    plans.append(best_plan(smaller, errors, limits, measure))
                except PreconditionError:  # this space has nothing small enough for the budget
                    break
        for measure in measures:
            plans.extend(uniform_plan(space, errors, limits, measure))
    return [plan for index, plan in enumerate(plans) if plan not in plans[:index]]


def _smaller(space: Space) -> list[Space]:
    """Everything in one piece; and, where there is more to choose, no more channels between the factors than go in."""
    whole = {name: shapes[:1] for name, shapes in space.shapes.items()}
    narrow = {name: tuple(shape for shape in shapes if shape.mid is None) for name, shapes in space.shapes.items()}
    return [replace(space, shapes=each) for each in ([whole] if narrow in (whole, space.shapes) else [whole, narrow])]


def for_all(join_bits: Iterable[Bits], limits: Mapping[str, float]) -> Limits:
    """The same limits, whatever bits tensors that enter additions have."""
    return dict.fromkeys(join_bits, limits)


def best_plan(space: Space, errors: dict[str, SiteErrors], limits: Limits, measure: Measure) -> Plan:
    """Solve for one budget; measured errors serve many.

    Bits of tensors that enter additions are the same everywhere: the program is solved for each number of them that there are
    limits for, and the solution of the least loss, theirs with it, is the optimum over both.
    """
    return _solved(space, errors, limits, measure)[1]


def _solved(space: Space, errors: dict[str, SiteErrors], limits: Limits, measure: Measure) -> tuple[float, Plan]:
    """The loss of the best plan, and the plan."""
    found: list[tuple[float, Plan]] = []
    refused: PreconditionError | None = None
    for join_bits in (bits for bits in reversed(space.join_bits) if bits in limits):
        options = options_of(space, errors, measure, join_bits)
        try:
            chosen = solve(options, limits[join_bits])
        except PreconditionError as error:
            refused = error
            continue
        loss = sum(option.loss for option in chosen) + _loss_of_joins(errors, space, measure, join_bits)
        found.append((loss, _plan(options, chosen, limits[join_bits], space, measure, join_bits)))
    if not found:
        assert refused is not None
        raise refused  # with the fewest bits, which need the least
    return min(found, key=lambda each: each[0])


def _loss_of_joins(errors: Mapping[str, SiteErrors], space: Space, measure: Measure, bits: Bits) -> float:
    """What rounding the tensors that enter additions loses; not measured where there is no choice."""
    joins = [name for name in errors if name not in space.shapes]
    return sum(errors[name].of(Shape(), LayerPlan(activation_bits=bits), measure) for name in joins)


def require_place(space: Space, limits: Limits) -> None:
    """Raise PreconditionError where no choices are within the limits: costs tell, before any loss is measured."""
    best_plan(space, {name: _NoErrors() for name in space.shapes}, limits, "both")


class _NoErrors(SiteErrors):
    """Stands for errors that are not measured yet."""

    def of(self, *given: object) -> float:
        """None."""
        return 0.0


def uniform_plan(space: Space, errors: dict[str, SiteErrors], limits: Limits, measure: Measure) -> Iterator[Plan]:
    """The plan of least expected loss that has the same weight and activation bits and the same level everywhere.

    Nothing where none is within the limits. The first and the last layer keep their own bits. A level stands here for
    the n-th shape of every site, or its last.
    """
    found = []
    for smaller in _uniform(space):
        with suppress(PreconditionError):
            found.append(_solved(smaller, errors, limits, measure))
    if found:
        yield min(found, key=lambda each: each[0])[1]


def _uniform(space: Space) -> Iterator[Space]:
    """What every uniform plan may choose from: nothing but its folding."""
    inner = [name for name in space.shapes if len(space.weight_bits[name]) > 1 or len(space.activation_bits[name]) > 1]
    pairs = product(space.weight_bits[inner[0]], space.activation_bits[inner[0]]) if inner else ()
    for (weight, activation), level in product(pairs, range(max(map(len, space.shapes.values())))):
        yield replace(
            space,
            shapes={name: (shapes[min(level, len(shapes) - 1)],) for name, shapes in space.shapes.items()},
            weight_bits={n: (weight,) if n in inner else bits[:1] for n, bits in space.weight_bits.items()},
            activation_bits={n: (activation,) if n in inner else bits[:1] for n, bits in space.activation_bits.items()},
        )


def totals_of(chosen: Sequence[Option], limits: Mapping[str, float]) -> dict[str, float]:
    """What the chosen options cost together; of cycles the most."""
    return {name: (max if name == "cycles" else sum)(option.costs[name] for option in chosen) for name in limits}


def options_of(space: Space, errors: dict[str, SiteErrors], measure: Measure, join_bits: Bits) -> list[SiteOptions]:
    """Every choice at every site with its loss and costs, in every folding that may be best."""
    return [
        SiteOptions(
            name,
            space.sharing[name],
            tuple(
                Option(layer, errors[name].of(shape, layer, measure), costs)
                for shape, layer, costs in space.options(name, join_bits)
            ),
        )
        for name in space.shapes
    ]


def distance(model: nn.Module, plan: Plan, batches: Sequence[Tensor]) -> float:
    """How far the network that a plan makes from the first half of the images is from the original on the second half.

    For logits (N, K) the mean Kullback-Leibler divergence of the two softmaxes, in nats; for any other output
    ‖f − f̂‖² / ‖f‖², summed over the outputs.
    """
    images = torch.cat(list(batches))
    fit, judge = images.split((len(images) + 1) // 2)
    made = freeze(transform(model, plan=plan, calibration=fit.split(len(batches[0])), recover="none"))
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


def closest(model: nn.Module, plans: Sequence[Plan], batches: Sequence[Tensor]) -> Plan:
    """The plan whose network is closest to the original (`distance`); a single one is not run."""
    return plans[0] if len(plans) == 1 else min(plans, key=lambda plan: distance(model, plan, batches))


def _plan(
    sites: Sequence[SiteOptions],
    chosen: Sequence[Option],
    limits: Mapping[str, float],
    space: Space,
    measure: str,
    join_bits: Bits,
) -> Plan:
    layers = {site.site: option.layer for site, option in zip(sites, chosen, strict=True)}
    return Plan(layers, join_bits, join_bits, explain(sites, chosen, limits, space, measure))


def explain(
    sites: Sequence[SiteOptions], chosen: Sequence[Option], limits: Mapping[str, float], space: Space, measure: str
) -> Explanation:
    """What every choice costs and loses, with the alternatives that come closest."""
    totals = totals_of(chosen, limits)
    cost = tightest(limits, totals)
    layers = {
        site.site: SiteExplanation(
            option.layer,
            option.loss,
            option.costs,
            _alternative(site, option, cost, finer=True),
            _alternative(site, option, cost, finer=False),
        )
        for site, option in zip(sites, chosen, strict=True)
    }
    whole = {name: space.whole[name] for name in limits if name in space.whole}
    return Explanation(measure, dict(limits), totals, whole, layers)


def _alternative(site: SiteOptions, chosen: Option, cost: str, finer: bool) -> Alternative | None:
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
    return Alternative(best.layer, best.loss - chosen.loss, best.costs[cost] - chosen.costs[cost])
