"""How far what a graph gives is from what the model gives, and where they part."""

from __future__ import annotations

import copy
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from fxfactor.graph.watching import watch

TOLERANCE = 1e-4
"""Largest relative difference between model and graph, in the model's own precision or else in float64."""


@dataclass
class Verdict:
    """What a comparison found.

    difference: what the graph does not do as the model does it, None where they agree. training: the same in training.
    fixed: "batch" or "size" where the graph is right only for the batch or image size of the capture. notes: what the user
    should know although nothing is wrong.
    """

    difference: str | None = None
    training: str | None = None
    fixed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def outputs_of(network: nn.Module, inputs: tuple[Any, ...]) -> Any:
    """What a network gives on copies of the inputs, from one seed, without gradients."""
    seed()
    with torch.no_grad():
        return network(*tree_map_only(Tensor, Tensor.clone, inputs))


def seed() -> None:
    """Set the random number generators of torch, NumPy and Python to one state."""
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def difference_of(found: Any, wanted: Any) -> float:
    """Largest difference of all tensors in two outputs, as a share of the largest value; infinite where a part is missing.

    Mappings, sequences and dataclasses are looked into, whatever their class; NaN is equal to NaN.
    """
    a, b = list(leaves(found)), list(leaves(wanted))
    if len(a) != len(b):
        return math.inf
    scale, largest = 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if not (x is y or x == y):
                return math.inf
            continue
        if x.shape != y.shape or x.isnan().any() != y.isnan().any():
            return math.inf
        x, y = (torch.nan_to_num(t.detach().double().cpu(), 0.0, 1e30, -1e30) for t in (x, y))
        if y.numel():
            scale, largest = max(scale, float(y.abs().max())), max(largest, float((x - y).abs().max()))
    return largest / scale if scale > 0 else largest


def leaves(output: Any) -> Iterator[Any]:
    """All values in mappings, sequences and dataclasses, with the keys of mappings."""
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield key
            yield from leaves(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from leaves(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for each in fields(output):
            yield from leaves(getattr(output, each.name))
    else:
        yield output


def difference_in_float64(
    reference: nn.Module, candidate: GraphModule, inputs: tuple[Any, ...], otherwise: float
) -> float:
    """The difference in float64, where rounding does not show; `otherwise` where the model does not run in it."""
    exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        wanted = outputs_of(copy.deepcopy(reference).double(), exact)
        return difference_of(outputs_of(copy.deepcopy(candidate).double(), exact), wanted)
    except Exception:  # code that has its precision fixed
        return otherwise


def first_to_differ(reference: nn.Module, candidate: GraphModule, inputs: tuple[Any, ...]) -> str:
    """Where model and graph part: the first node whose module gives something else in the model; "" if none does."""
    given: dict[str, Any] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            given.setdefault(path, _cloned(output))

        return hook

    hooks = [module.register_forward_hook(keep(path)) for path, module in reference.named_modules() if path]
    apart: list[str] = []

    def see(node: Node, arguments: tuple[Any, ...], value: Any) -> None:
        path = str(node.target)
        if node.op == "call_module" and path in given and not apart and difference_of(value, given[path]) > TOLERANCE:
            apart.append(f", first at node {node.name!r} (module {path!r})")

    try:
        outputs_of(reference, inputs)
        seed()
        with torch.no_grad():
            watch(candidate, tree_map_only(Tensor, Tensor.clone, inputs), see)
    except Exception:  # the graph stops: what was seen until then counts
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return apart[0] if apart else ", behind the last layer that both have"


def _cloned(output: Any) -> Any:
    """Tensors as they are now: what comes next may work on them in place."""
    return tree_map_only(Tensor, Tensor.clone, output)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error that others raised."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
