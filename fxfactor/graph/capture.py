"""nn.Module → graph in normal form (defined in `fxfactor.graph`).

Four ways of tracing are tried in turn (`fxfactor.graph.tracing`): the first gives the most readable graph and keeps
every size open, the last takes most networks. Whatever they give is run beside the model, in evaluation and in training
(`fxfactor.graph.faithful`), before it is trusted.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fxfactor.errors import CaptureError, GraphError, PreconditionError
from fxfactor.graph.differences import Verdict, first_line
from fxfactor.graph.example_inputs import accepted, as_tuple, candidates, cannot_infer, runs, why_not
from fxfactor.graph.faithful import compare as compared
from fxfactor.graph.faithful import evaluate, has_its_mode_baked_in
from fxfactor.graph.guards import fix_shapes
from fxfactor.graph.lifting import COMPUTED
from fxfactor.graph.normal_form import check_graph, finish, restore_training
from fxfactor.graph.normalize import drop_idle, normalize
from fxfactor.graph.questions import placeholders, shape_of
from fxfactor.graph.refusals import inner_model, refuse_unready
from fxfactor.graph.tracing import KEPT_WHOLE, silent, trace_around, trace_concrete, trace_export, trace_symbolic
from fxfactor.progress import heartbeat

ASSUMED = "fxfactor.assumed_input"
"""Key of `graph.meta` that is True where the input's size was inferred and not given."""

SYMBOLIC = "torch.fx.symbolic_trace"

AROUND = "tracing around what cannot be traced"

NOTES = "fxfactor.notes"
"""Key of `graph.meta` under which stands what `fxfactor.summary` says about the capture."""


def capture(
    model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None, *, compare: bool = True
) -> GraphModule:
    """Return the network as a torch.fx.GraphModule in normal form, a copy that computes the same; `model` is untouched.

    `example_inputs` (a tensor, or the tuple of all arguments) fixes the shapes at every node. Without it the input is
    inferred: channels from the first convolution, size from `model.default_cfg` (timm) or the first of 224, 299, 32,
    28 … pixels that the network accepts; `graph.meta["fxfactor.assumed_input"]` then says so. Arguments that are not
    given keep their defaults and are no inputs of the graph.

    Model and graph are run side by side on small random inputs, in evaluation (also on another batch and image size)
    and in training from one seed (outputs, buffers, gradients): where they differ, the model is refused with what
    differs. With `compare=False` the graph is given all the same, and `fxfactor.summary` lists what differs. A graph that
    is right only for the batch or size of the capture raises PreconditionError when it is run on another.

    Each module keeps the mode it had. Dropout and stochastic depth stay where the model was in training mode, and are
    dropped where it was in eval. Of DataParallel, DistributedDataParallel, AveragedModel and torch.compile the
    model inside is taken.

    Raises PreconditionError where `model` is no module, or the inputs do not fit it or cannot be inferred, and
    CaptureError where two modules share a parameter, no way of tracing works, or the graph computes something else.
    """
    if not isinstance(model, nn.Module):
        raise PreconditionError(
            f"capture needs a torch.nn.Module, found {type(model).__name__}; pass the network itself, built and loaded"
        )
    if not isinstance(compare, bool):
        raise PreconditionError(f"compare must be True or False, found {compare!r}")
    model = inner_model(model)
    inputs = None if example_inputs is None else as_tuple(example_inputs)
    if isinstance(model, GraphModule) and inputs is None and _is_normal(model):
        return copy.deepcopy(model)
    refuse_unready(model)
    training = {name: module.training for name, module in model.named_modules()}
    graph, notes = _capture(model, inputs, compare)
    if has_its_mode_baked_in(model):
        training = dict.fromkeys(training, False)
    graph.meta[ASSUMED] = inputs is None
    graph.meta[NOTES] = tuple(notes)
    restore_training(graph, training)
    drop_idle(graph)
    finish(graph)
    check_graph(graph)
    return graph


def _is_normal(graph: GraphModule) -> bool:
    try:
        check_graph(graph)
    except GraphError:
        return False
    return True


@dataclass
class _Attempt:
    """A graph that one way of tracing gave, and how it compares with the model."""

    way: str
    graph: GraphModule
    inputs: tuple[Any, ...]
    verdict: Verdict


def _capture(model: nn.Module, inputs: tuple[Any, ...] | None, compare: bool) -> tuple[GraphModule, list[str]]:
    """The first graph that computes what the model computes, and what the user should know about it."""
    refusals: list[str] = []
    best: _Attempt | None = None
    for attempt in _attempts(model, inputs, refusals):
        if attempt.verdict.difference is None and (best is None or best.verdict.difference is not None):
            best = attempt  # right in evaluation
        if attempt.verdict.difference is None and attempt.verdict.training is None:
            best = attempt
            break
        if attempt.verdict.difference is not None:
            refusals.append(f"{attempt.way}: {attempt.verdict.difference}")
        best = best or attempt
    if best is None:
        raise CaptureError(
            f"no way of tracing {type(model).__name__} works. {'; '.join(refusals)}. {_remedy(refusals)}"
        )
    verdict = best.verdict
    notes = [*_notes(model, best), *verdict.notes]
    if verdict.difference is not None or verdict.training is not None:
        what = verdict.difference or verdict.training
        if compare:
            raise _unfaithful(model, verdict, refusals)
        notes.insert(0, f"computes something else than the model: {what}")
    if verdict.fixed:
        fix_shapes(best.graph, verdict.fixed)
        notes.append(f"right only for the {' and '.join(verdict.fixed)} of the capture: the model's forward reads it")
    return best.graph, notes


def _attempts(model: nn.Module, inputs: tuple[Any, ...] | None, refusals: list[str]) -> Iterator[_Attempt]:
    """Graphs in normal form, in the order of trust. What cannot be traced goes into `refusals`."""
    hooked = _hooked(model)
    for keep_hooks in (False, True) if hooked else (False,):
        way = SYMBOLIC + (" with hooks" if keep_hooks else "")
        try:
            graph = trace_symbolic(_working_copy(model, keep_hooks), 1 if inputs is None else len(inputs))
        except Exception as error:  # the user's own code runs on symbolic values here and may raise anything
            refusals.append(f"{way}: {first_line(error)}")
            continue
        try:
            graph, known = _normalized(graph, model, inputs)
        except PreconditionError as error:
            if inputs is None or not runs(model, inputs):
                raise
            refusals.append(f"{way}: {first_line(error)}")
        else:
            yield _Attempt(way, graph, known, compared(model, graph, known))
    known = inputs if inputs is not None else accepted(model)
    if (misfit := why_not(model, known)) is not None:
        shapes = ", ".join("×".join(map(str, x.shape)) for x in tree_leaves(known) if isinstance(x, Tensor))
        raise PreconditionError(
            f"example inputs of shape {shapes} do not fit the network, {type(model).__name__} itself raises "
            f"{first_line(misfit)}. Pass example_inputs of a shape that its forward takes"
        )
    exporting = partial(trace_export, beat=heartbeat("tracing with torch.export"))
    ways: dict[str, Callable[..., GraphModule]]
    ways = {"tracing with known shapes": trace_concrete, "torch.export": exporting, AROUND: trace_around}
    for way, trace in ways.items():
        try:
            with silent():
                graph = trace(_working_copy(model, bool(hooked)), known)
        except Exception as error:  # as above
            refusals.append(f"{way}: {first_line(error)}")
            continue
        normalize(graph, known)
        yield _Attempt(way, graph, known, compared(model, graph, known))


def _working_copy(model: nn.Module, keep_hooks: bool) -> nn.Module:
    """A copy in eval mode, without hooks unless they are to be traced."""
    working = evaluate(copy.deepcopy(model))
    for module in [] if keep_hooks else working.modules():
        for hooks in (module._forward_hooks, module._forward_pre_hooks, module._backward_hooks):
            hooks.clear()
    return working


def _hooked(model: nn.Module) -> list[str]:
    """Paths of the modules that have hooks on their forward or backward pass."""
    return [
        path or "the model itself"
        for path, module in model.named_modules()
        if module._forward_hooks or module._forward_pre_hooks or module._backward_hooks
    ]


def _unfaithful(model: nn.Module, verdict: Verdict, refusals: list[str]) -> CaptureError:
    """The refusal of a graph that computes something else."""
    if verdict.difference is not None:
        return CaptureError(
            f"no way of tracing {type(model).__name__} works. {'; '.join(refusals)}. {_remedy(refusals, _hooked(model))}"
        )
    return CaptureError(
        f"in training {type(model).__name__} computes what its graph does not: {verdict.training}. A graph has no branch on "
        "`self.training`, no `torch.no_grad()` and no gradient of its own (torch.autograd.Function) inside: write it as a "
        "module such as nn.Dropout, freeze parameters with requires_grad_(False), switch auxiliary outputs off, or capture "
        "with compare=False, and fxfactor.summary will list it"
    )


def _remedy(refusals: list[str], hooked: list[str] | None = None) -> str:
    """What to do about a model that no way of tracing works on."""
    told = " ".join(refusals)
    if hooked:
        return f"It has hooks ({', '.join(hooked[:3])}): remove them, or write what they do into forward"
    if "second time" in told or "remembers" in told or "changes the buffer" in told:
        return "A graph has no memory from call to call: hand such state in and out as tensors, or move it out of the model"
    if "control flow" in told or "data-dependent" in told or "DataDependent" in told:
        return (
            "Control flow must not depend on the values of tensors; move such code out of the model, or split the model "
            "around it"
        )
    return "Move the code that is named out of the model, or split the model around it"


def _notes(model: nn.Module, attempt: _Attempt) -> list[str]:
    """What a captured graph does not keep of the model although it computes the same."""
    notes = []
    hooked = _hooked(model)
    if hooked:
        kept = "hooks are not kept" if attempt.way == SYMBOLIC else "what hooks do is part of the graph"
        notes.append(f"{kept}: {', '.join(hooked)}")
    computed = list(attempt.graph.meta.get(COMPUTED, ()))
    if computed:
        notes.append(
            f"weights that the model computes in every call are trained as they came out: {', '.join(computed)}"
        )
    if whole := attempt.graph.meta.get(KEPT_WHOLE):
        notes.append(f"modules that no tracing sees through are called as they are: {', '.join(whole)}")
    defaults = _defaults_kept(model, len(attempt.inputs))
    if defaults:
        notes.append(f"arguments that keep their defaults and are no inputs: {', '.join(defaults)}")
    return notes


def _defaults_kept(model: nn.Module, given: int) -> list[str]:
    parameters = list(inspect.signature(model.forward).parameters.values())[given:]
    variadic = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [f"{p.name}={p.default!r}" for p in parameters if p.default is not p.empty and p.kind not in variadic]


def _normalized(
    graph: GraphModule, model: nn.Module, inputs: tuple[Any, ...] | None
) -> tuple[GraphModule, tuple[Any, ...]]:
    """The traced graph in normal form for `inputs`, or for the first inferred ones that fit; and these."""
    if inputs is not None:
        return normalize(graph, inputs), inputs
    misfit: PreconditionError | None = None
    for candidate in candidates(model):
        try:
            return normalize(graph, candidate), candidate
        except PreconditionError as error:
            misfit = error
    raise cannot_infer(model, misfit) from misfit


def as_graph(model: nn.Module, like: GraphModule) -> GraphModule:
    """A copy of `model` in normal form and eval mode, captured on inputs of the shapes that `like` takes.

    In the precision and on the device of `like`. A graph is copied and not traced anew: that would rename its nodes. Raises
    PreconditionError where its outputs have other shapes than those of `like`, which was made of another model then.
    """
    inputs = None
    if isinstance(model, nn.Module) and not isinstance(model, GraphModule):
        own = next(model.parameters(), torch.empty(0))
        inputs = tuple(torch.zeros(shape_of(node)).to(own) for node in placeholders(like))
    # compared when it was captured first, where that was asked for
    graph = capture(model, inputs, compare=False).eval().to(next(like.parameters(), torch.empty(0)))
    if (wanted := _output_shapes(like)) != (found := _output_shapes(graph)):
        raise PreconditionError(
            f"the original network and the one made from it must have outputs of the same shapes; found: {found} and {wanted}; "
            "pass the model that was transformed"
        )
    return graph


def _output_shapes(graph: GraphModule) -> list[tuple[int, ...]]:
    output = next(node for node in graph.graph.nodes if node.op == "output")
    return [shape_of(node)[1:] for node in output.all_input_nodes]
