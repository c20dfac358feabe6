"""Does a graph compute what the model computes? Model and graph are run side by side, in evaluation and in training.

In evaluation on another batch and another image size than those of the capture, where the model takes them: what was read
from the shapes while tracing shows there. The model is run twice: what it remembers from one call to the next shows in the
second. In training once, both from one seed: outputs, buffers and gradients. Small images keep this cheap (64×64 in
place of 224×224). All of it happens on copies, and the random number generators are put back.
"""

from __future__ import annotations

import copy
import random
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.graph.differences import (
    TOLERANCE,
    Verdict,
    difference_in_float64,
    difference_of,
    first_line,
    first_to_differ,
    outputs_of,
)
from fxfactor.graph.faithful_in_training import compare_training
from fxfactor.graph.other_inputs import variants
from fxfactor.graph.tracing import silent

SECONDS = 60.0
"""How long the comparison may take: no run is begun after that."""

_PLAIN = (bool, int, float, str)


def compare(model: nn.Module, graph: GraphModule, inputs: tuple[Any, ...], seconds: float = SECONDS) -> Verdict:
    """Compare a traced graph with the model it was traced from, on random values of the shapes of `inputs` and beside.

    Neither is changed. Where the model itself does not run (on the meta device, say) there is nothing to compare with.
    """
    verdict = Verdict()
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return verdict
    ends = time.monotonic() + seconds
    with _random_state_kept(), silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's code warns where the user runs it
        candidate = copy.deepcopy(graph).eval()
        reference: nn.Module | None = None
        taken: set[tuple[str, ...]] = set()
        for changed, alternatives in variants(inputs):
            if changed in taken:
                continue
            for tried in alternatives:
                if time.monotonic() > ends:
                    verdict.notes.append(f"not compared to the end: {seconds:.0f} s were over")
                    return verdict
                reference = evaluate(copy.deepcopy(model)) if reference is None else reference
                before = _state(reference)
                try:
                    wanted = outputs_of(reference, tried)
                except Exception:  # whatever the user's code raises on what it is not made for
                    reference = None
                    continue
                taken.add(changed)
                ran = tried
                verdict.difference = _in_evaluation(reference, candidate, tried, wanted, before, verdict.notes)
                if verdict.difference is not None:
                    break
            if changed not in taken:
                continue
            if verdict.difference is not None and changed:
                candidate, reference = copy.deepcopy(graph).eval(), None
                verdict.fixed = (*verdict.fixed, *changed)
                continue  # perhaps right for the shapes of the capture
            break
        else:
            return verdict
        verdict.fixed = tuple(dict.fromkeys(each for each in verdict.fixed if each not in changed))
        if verdict.difference is None:
            if has_its_mode_baked_in(model):
                verdict.notes.append("not compared in training: torch.export made it for evaluation")
            elif time.monotonic() > ends:
                verdict.notes.append(f"not compared in training: {seconds:.0f} s were over")
            else:
                reference = evaluate(copy.deepcopy(model)) if reference is None else reference
                compare_training(model, reference, graph, candidate, ran, verdict)
    return verdict


def _in_evaluation(
    reference: nn.Module,
    candidate: GraphModule,
    inputs: tuple[Any, ...],
    wanted: Any,
    before: dict[str, Any],
    notes: list[str],
) -> str | None:
    """What differs in evaluation, or None; `wanted` is what the model gave, `before` its state before that."""
    after = _state(reference)
    started = _state(candidate)
    try:
        found = outputs_of(candidate, inputs)
    except Exception as error:  # whatever torch raises where a size is frozen
        return f"only the model runs, the graph stops with {first_line(error)}"
    if type(found) is not type(wanted) and isinstance(wanted, Mapping | tuple | list):
        note = f"the model returns a {type(wanted).__name__}, the graph a {type(found).__name__} of the same tensors"
        if note not in notes:
            notes.append(note)
    difference = difference_of(found, wanted)
    if difference > TOLERANCE:
        difference = difference_in_float64(reference, candidate, inputs, difference)
    if difference > TOLERANCE:
        return f"the outputs differ by {difference:.1g} of the largest value{first_to_differ(reference, candidate, inputs)}"
    kept = _state(candidate)
    for name in sorted(name for name in after if isinstance(after[name], Tensor) and name in before):
        if not _equal(before[name], after[name]) and not (
            name in kept and not _equal(started[name], kept[name]) and _equal(kept[name], after[name])
        ):
            return f"the model's forward changes the buffer {name!r}, the graph's does not"
    again = outputs_of(reference, inputs)
    last = _state(reference)
    if difference_of(again, wanted) > TOLERANCE:
        return f"the model gives something else when it is called a second time{_changed(after, last)}"
    changed = _changed(after, last)
    return f"every call changes what the model remembers{changed}" if changed else None


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in after if name not in before or not _equal(before[name], after[name])]
    return f" ({', '.join(sorted(names)[:3])})" if names else ""


def _state(network: nn.Module) -> dict[str, Any]:
    """Buffers, and what stands in plain attributes, by path."""
    state: dict[str, Any] = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and name not in ("training", "call_super_init"):
                state[f"{path}.{name}" if path else name] = value
    return state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), 1e-4, 1e-6, equal_nan=True))
    return type(a) is type(b) and a == b


def evaluate(model: nn.Module) -> nn.Module:
    """`model.eval()`, also for what torch.export made, which refuses that and has its mode baked in."""
    try:
        model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False
    return model


def has_its_mode_baked_in(model: nn.Module) -> bool:
    """Whether torch.export made the module: it was in one mode then, whatever its modules say now."""
    return isinstance(model, GraphModule) and "eval" in vars(model)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)
