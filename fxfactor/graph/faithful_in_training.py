"""Does a graph do in training what the model does there? Both run once from one seed: outputs, buffers and gradients."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_map_only

from fxfactor.graph.differences import TOLERANCE, Verdict, difference_of, first_line, first_to_differ, leaves, seed
from fxfactor.graph.lifting import COMPUTED
from fxfactor.graph.normal_form import restore_training


def compare_training(
    model: nn.Module,
    reference: nn.Module,
    graph: GraphModule,
    candidate: GraphModule,
    inputs: tuple[Any, ...],
    verdict: Verdict,
) -> None:
    """Outputs, buffers and gradients in training, both from one seed; what differs goes into `verdict`."""
    reference.train()
    modes = {name: module.training for name, module in reference.named_modules()}
    idle = [name for name, on in modes.items() if not on]
    if idle:
        verdict.notes.append(
            f"the model's train() keeps {_names(idle)} in evaluation; the graph's does not: call .eval() on them after it"
        )
    restore_training(candidate, modes)
    try:
        wanted = _trained(reference, inputs)
    except Exception:  # asks for labels, or for larger images
        verdict.notes.append("not compared in training: there the model does not run on inputs alone")
        return
    unused: set[str] = set()
    difference = _training_difference(candidate, inputs, wanted, unused)
    if unused:
        verdict.notes.append(f"no output depends on {_names(sorted(unused))}: not in the graph")
    if difference is None:
        return
    with torch.no_grad():
        counts = [
            len(list(leaves(each)))
            for each in (wanted.outputs, candidate(*tree_map_only(Tensor, Tensor.clone, inputs)))
        ]
    if counts[0] > counts[1] and not model.training:  # GoogLeNet, Inception: made for evaluation, they lose nothing
        verdict.notes.append(
            f"in training the model returns {counts[0]} values, in evaluation {counts[1]}: the graph has no auxiliary outputs"
        )
        return
    exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        exact_model, exact_graph = copy.deepcopy(model).double(), copy.deepcopy(graph).double()
        exact_model.train()
        restore_training(exact_graph, modes)
        difference = _training_difference(exact_graph, exact, _trained(exact_model, exact), unused)
    except Exception:  # code that has its precision fixed
        pass
    if difference is not None:
        where = "" if difference.startswith("the gradient") else first_to_differ(reference, candidate, inputs)
        verdict.training = difference + where


def _names(paths: Sequence[str]) -> str:
    return ", ".join(repr(path) for path in paths[:3]) + (" …" if len(paths) > 3 else "")


def _training_difference(
    candidate: GraphModule, inputs: tuple[Any, ...], wanted: _Trained, unused: set[str]
) -> str | None:
    """What differs, or None. Modules that the graph never calls, and that the model changes in training, go into `unused`."""
    try:
        found = _trained(candidate, inputs)
    except Exception as error:  # whatever torch raises
        return f"only the model runs in training, the graph stops with {first_line(error)}"
    difference = difference_of(found.outputs, wanted.outputs)
    if difference > TOLERANCE:
        return "the outputs differ in training" + (
            f" by {difference:.1g}" if math.isfinite(difference) else " in number"
        )
    for name, value in wanted.buffers.items():
        if name not in found.buffers or difference_of(found.buffers[name], value) <= 10 * TOLERANCE:
            continue
        if _is_unused(name, candidate):
            unused.add(name.rpartition(".")[0])
        else:
            return f"the buffer {name!r} differs after a step of training"
    largest = max((float(g.abs().max()) for g in wanted.gradients.values() if g is not None and g.numel()), default=0.0)
    computed = {name for names in candidate.meta.get(COMPUTED, {}).values() for name in names}
    for name, gradient in wanted.gradients.items():
        if name not in found.gradients or name in computed:
            continue  # a layer with another name, or one that trains what the model computes from its parameters
        a, b = (torch.zeros(()) if g is None else g.float() for g in (found.gradients[name], gradient))
        if float((a - b).abs().max()) > 1e-3 * largest:
            return f"the gradient of {name!r} differs"
    return None


def _is_unused(buffer: str, graph: GraphModule) -> bool:
    """Whether no node calls the module that a buffer of the graph's is in, nor one above it, or reads the buffer."""
    targets = {str(node.target) for node in graph.graph.nodes if node.op in ("call_module", "get_attr")}
    parts = buffer.split(".")
    return not any(".".join(parts[:end]) in targets for end in range(1, len(parts) + 1))


@dataclass
class _Trained:
    outputs: Any
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor | None]


def _trained(network: nn.Module, inputs: tuple[Any, ...]) -> _Trained:
    """What a network gives in its present modes, its buffers afterwards, and the gradients of a sum of all it gives."""
    seed()
    given = {
        f"input {index}": x.detach().clone().requires_grad_()
        for index, x in enumerate(inputs)
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    with torch.enable_grad():
        outputs = network(
            *(given[f"input {index}"].clone() if f"input {index}" in given else x for index, x in enumerate(inputs))
        )
        real = [x for x in leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
        # weights that differ for every value: the sum of what a softmax gives is constant
        weights = (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape) for x in real)
        total = [(x * weight).sum() for x, weight in zip(real, weights, strict=True) if x.requires_grad]
        tensors = {**given, **{n: p for n, p in network.named_parameters() if p.requires_grad}}
        grads: Sequence[Tensor | None] = [None] * len(tensors)
        if total:
            ones = [torch.ones_like(x) for x in total]
            grads = torch.autograd.grad(total, list(tensors.values()), ones, allow_unused=True)
    buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    return _Trained(outputs, buffers, dict(zip(tensors, grads, strict=True)))
