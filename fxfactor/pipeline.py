"""What a pass is, what it reports, and how passes are put in a row.

A pass is a frozen dataclass with one method, `rewrite(graph)`, that edits the graph in place and yields what it changed
and what it left alone. Calling a pass never touches the graph it is given: it works on a copy and checks the result.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, final

import torch
from torch.fx import GraphModule

from fxfactor.errors import GraphError, PreconditionError
from fxfactor.graph.compare import random_inputs, relative_difference
from fxfactor.graph.normal_form import check_graph, finish, restore_training

HISTORY = "fxfactor.history"
"""Key of `graph.meta` under which the changes and skips of all passes so far stand, in order, and what was judged after."""


@dataclass(frozen=True)
class Change:
    """At `site`, a module path of the user's model, something became `into` (module paths or a short description).

    `relative_error` is ‖W − W'‖ / ‖W‖ in the Frobenius norm where weights were approximated, else None. `output_error`
    is the same for what leaves the site on the calibration images, as a share of its standard deviation, where such
    images were used.
    """

    site: str
    into: tuple[str, ...]
    relative_error: float | None = None
    output_error: float | None = None


@dataclass(frozen=True)
class Skip:
    """At `site` nothing was done, because of `reason`."""

    site: str
    reason: str


@dataclass(frozen=True)
class Judged:
    """How near the network's outputs came to the original's after `step`, on `images` that it was not fitted to.

    `output_error`: the share of the outputs' standard deviation that is missed. `agreement`: the share of the images on which
    both have the same largest output, where there is one output of classes. `kept` is False where the step was taken back.
    """

    step: str
    output_error: float
    agreement: float | None
    images: int
    kept: bool = True


def forget_judged(graph: GraphModule) -> None:
    """Drop what was judged of a network that is about to change."""
    if HISTORY in graph.meta:
        graph.meta[HISTORY] = tuple(each for each in graph.meta[HISTORY] if not isinstance(each, Judged))


@dataclass(frozen=True)
class PassResult:
    """What a pass or a pipeline returns: the new graph, what changed, and what was left alone and why."""

    graph: GraphModule
    changes: tuple[Change, ...]
    skips: tuple[Skip, ...]


class Pass(ABC):
    """Graph in, graph out. Subclasses are frozen dataclasses that define `rewrite` and say whether they are `exact`.

    An exact pass keeps the function that the graph computes, up to rounding.
    """

    exact: ClassVar[bool] = False

    @abstractmethod
    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        """Edit `graph` in place; yield a Change or a Skip for every site looked at. A second run yields only skips."""

    def check(self, graph: GraphModule) -> None:
        """Raise PreconditionError where the pass cannot work on `graph`. The default accepts every normal form."""
        return

    @final
    def __call__(self, graph: GraphModule) -> PassResult:
        """Run on a copy of `graph`. Raises PreconditionError on a bad input, GraphError on a defect of the pass."""
        return Pipeline(self)(graph)


@dataclass(frozen=True)
class Pipeline:
    """Passes in a row: `Pipeline(FactorizeDepth(level=3), Quantize(weight_bits=4, activation_bits=4))(graph)`.

    With `verify=True` every exact pass is tried in float64 first: the graphs before and after it are run on one random
    input, and a relative difference above 1e-10 raises GraphError. (In float32 a small bug hides behind rounding.)
    """

    passes: tuple[Pass, ...]
    verify: bool = False

    def __init__(self, *passes: Pass, verify: bool = False) -> None:
        object.__setattr__(self, "passes", passes)
        object.__setattr__(self, "verify", verify)

    def __call__(self, graph: GraphModule) -> PassResult:
        """Run the passes on a copy of `graph` (from `fxfactor.capture`); the given graph is not changed."""
        _require_normal_form(graph)
        working = copy.deepcopy(graph)
        training = {name: module.training for name, module in working.named_modules()}
        working.eval()
        records: list[Change | Skip] = []
        for each in self.passes:
            each.check(working)
            if self.verify and each.exact:
                _verify(working, each)
            try:
                records.extend(each.rewrite(working))
                finish(working)
                check_graph(working)
            except GraphError as error:
                raise GraphError(f"{error}; while running {each!r}") from error
        working.meta[HISTORY] = (*graph.meta.get(HISTORY, ()), *records)
        restore_training(working, training)
        changes = tuple(record for record in records if isinstance(record, Change))
        skips = tuple(record for record in records if isinstance(record, Skip))
        return PassResult(working, changes, skips)


def _require_normal_form(graph: GraphModule) -> None:
    if not isinstance(graph, GraphModule):
        raise PreconditionError(
            f"a pass works on a graph in normal form, found {type(graph).__name__}; call fxfactor.capture(model) first"
        )
    try:
        check_graph(graph)
    except GraphError as error:
        raise GraphError(
            f"{error}; the graph was not in normal form before the first pass: call fxfactor.capture(model) first"
        ) from error


def _verify(graph: GraphModule, by: Pass) -> None:
    """Run the pass on a float64 copy, where its own rounding does not show, and compare before and after."""
    before = copy.deepcopy(graph).double()
    after = copy.deepcopy(before)
    for _ in by.rewrite(after):
        pass
    finish(after)
    inputs = random_inputs(before)
    with torch.no_grad():
        difference = relative_difference(after(*inputs), before(*inputs))
    if not difference <= 1e-10:
        raise GraphError(
            f"{by!r} calls itself exact but changed the function: relative difference {difference:.2g} in float64, "
            "at most 1e-10 was required; this is a defect of the pass"
        )
