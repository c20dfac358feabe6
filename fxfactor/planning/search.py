"""Search: groups and bits for every layer, so that the network loses least under a budget.

Sensitivity of every choice at every site (`fxfactor.planning.sensitivity`), summed over the sites, then an integer
program (`fxfactor.planning.integer_program`), then a look at the networks that its plans make
(`fxfactor.planning.plans`). HAQ's question (Wang et al. 2019, arXiv 1811.08886), with a solver in the place of
reinforcement learning.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import capture
from fxfactor.graph.watching import images_of
from fxfactor.plan.budget import HARDWARE, UNITS, Budget
from fxfactor.plan.ladder import Level
from fxfactor.plan.plan import Plan
from fxfactor.planning.plans import Limits, best_plan, candidates, closest, for_all, require_place
from fxfactor.planning.sensitivity import MEASURES, Measure, measure_errors
from fxfactor.planning.space import space_of
from fxfactor.quantization.levels import Bits
from fxfactor.workers import Crew, Engine

if TYPE_CHECKING:
    from fxfactor.finn.target import Target


LEVELS: tuple[Level, ...] = (*range(7), "depthwise")
BITS = (2, 3, 4, 5, 6, 8)
"""For FINN: groups of a convolution that is not depthwise, at most. FINN gets each as a convolution of its own."""


@checked
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
    join_bits: Bits | Sequence[Bits] = 8,
    keep: Iterable[str] = (),
    measure: Measure | Sequence[Measure] = ("both", "output", "weighted"),
    images: int = 512,
    board: str | None = None,
    clock_ns: float = 5.0,
    target_fps: int = 1000,
    python: str | Path | None = None,
    workers: int = 1,
    engine: Engine = "local",
) -> Plan:
    """Find the plan that loses least under a budget: groups, mid, weight bits and activation bits of every layer.

    Before: a trained network and batches of images, labels unseen. After: a plan for
    `fxfactor.transform(model, plan=plan, calibration=loader)`; `print(plan.explain())` says what each layer costs and why.

    budget: `Budget(bops=0.05)`, one limit or several. levels: their groups are the shapes to choose from, one piece is
    always among them. bits: for weights and activations; `weight_bits` and `activation_bits` where they differ; (None,)
    for floating point. widths: channels between the factors, as multiples of the input channels. boundary_bits: of the
    first layer and the last, None to let the search choose. join_bits: of tensors that enter additions, the same for all;
    several for the search to choose from. keep: module paths that are not factorized. images: so many of `loader` are used,
    at most.
    measure: "both", "loss", "output", "weighted" or, for a network that is trained afterwards, "recovered"; see
    `fxfactor.planning.sensitivity`. One gives the plan that the integer
    program finds by it. Of several each gives one, others are added (`fxfactor.planning.plans`), and the one whose network,
    made and run on the images, is closest to the original is returned.

    board: a name of `fxfactor.finn.BOARDS`,
    for budgets in lut, bram, dsp and cycles. Every choice is then priced by FINN's own cost functions, folded to
    `target_fps` frames per second at a clock of `clock_ns` nanoseconds (or to the budget's cycles), and the plan is within
    what the board has and within the budget, as `fxfactor.finn.estimate` counts the whole network. `python`: the
    interpreter of an environment with finn-plus, this one if not given.

    workers: prices and losses are worked out by so many processes, with one thread each. engine: "local" for processes of this
    machine, "ray" for a Ray cluster. The plan is that of one process with one thread.

    The losses are measured with one layer changed at a time, and added; the program on top is solved to optimality.
    Raises PreconditionError where nothing meets the budget (known before any loss is measured), on values out of range, and
    without images; FinnError where FINN is missing or refuses.
    """
    measures = _checked((measure,) if isinstance(measure, str) else tuple(measure))
    crew = Crew(workers, engine)
    target = _target(budget, board, clock_ns, target_fps, python)
    batches = [batch.to(next(model.parameters(), batch)) for batch in images_of(loader, "a search", images)]
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
        join_bits,
    )
    if space.weight_bits and all(
        each == (None,) for each in (*space.weight_bits.values(), *space.activation_bits.values())
    ):
        space = replace(space, join_bits=(None,))
    if target is None:
        limits = for_all(space.join_bits, budget.limits(space.whole))
        require_place(space, limits)
        errors = measure_errors(graph, batches, space, crew)
        return closest(model, candidates(space, errors, limits, measures), batches)
    from fxfactor.planning.board import board_limits, plan_within, price_space, require_place_for_sites

    space = price_space(graph, space, target, crew)
    within = board_limits(budget, space.whole, target)
    require_place_for_sites(space, within)
    errors = measure_errors(graph, batches, space, crew)

    def quick(limits: Limits) -> Plan:
        return best_plan(space, errors, limits, measures[0])

    def thorough(limits: Limits) -> Plan:
        return closest(model, candidates(space, errors, limits, measures), batches)

    return plan_within(space, within, quick, thorough, model, batches[0][:1], target)


def _target(
    budget: Budget, board: str | None, clock_ns: float, target_fps: int, python: str | Path | None
) -> Target | None:
    """What the network shall run on, None where that does not matter."""
    hardware = [name for name in budget.given() if name in HARDWARE]
    if board is None and hardware:
        raise PreconditionError(
            f'Budget({hardware[0]}=…), {UNITS[hardware[0]]}, needs a board: board="ZCU104", say, with finn-plus installed '
            "here or in python=; see fxfactor.finn.BOARDS"
        )
    if board is None:
        return None
    from fxfactor.planning.board import target_of

    return target_of(board, clock_ns, target_fps, budget, python)


def _checked(measures: tuple[Measure, ...]) -> tuple[Measure, ...]:
    unknown = [each for each in measures if each not in MEASURES]
    if unknown or not measures:
        found = repr(unknown[0]) if unknown else "none"
        raise PreconditionError(f"measure must be one or several of {', '.join(map(repr, MEASURES))}, found {found}")
    return measures
