"""A traced graph becomes the normal form: functions become modules, spellings become one, nothing works in place.

Each step is a function over the whole graph, in the order of `normalize`.
"""

from __future__ import annotations

import copy
import inspect
import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from fxfactor.errors import CaptureError
from fxfactor.graph.dataflow import operation_name
from fxfactor.graph.edits import free_path, put_module, set_shape
from fxfactor.graph.lifting import (
    ancestors,
    bind,
    erase_unused,
    global_pooling,
    is_dropout,
    lift_dropouts,
    lift_layers,
    lift_stateless,
    replace_by_module,
    value_without_input,
)
from fxfactor.graph.normal_form import has_state, propagate_shapes
from fxfactor.graph.pooling import fix_uneven_pooling
from fxfactor.graph.questions import module_of, owner_path, shape_of
from fxfactor.graph.tracing import MODE_OF, is_random_drop

aten = torch.ops.aten

_IN_PLACE_OPERATORS = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def normalize(graph: GraphModule, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Bring a traced graph into the normal form, in place; every node then knows its shape for `example_inputs`.

    Raises CaptureError where two modules share a parameter.
    """
    _drop_identities(graph)
    _fold_constant_positions(graph)
    numbers = propagate_shapes(graph, example_inputs)
    _work_out_of_place(graph, numbers)
    lift_dropouts(graph)
    lift_layers(graph, numbers)
    lift_stateless(graph, numbers)
    _unify_global_pooling(graph)
    _unify_padded_shortcut(graph)
    _call_by_one_path(graph)
    _refuse_tied_parameters(graph)
    _copy_shared_modules(graph)
    fix_uneven_pooling(graph)
    return graph


def _drop_identities(graph: GraphModule) -> None:
    """Erase nn.Identity, and dropout that was called with `training=False`."""
    for node in list(graph.graph.nodes):
        if isinstance(module_of(node), nn.Identity) or _is_idle_dropout(node):
            node.replace_all_uses_with(cast(Node, node.args[0]))
            graph.graph.erase_node(node)


def drop_idle(graph: GraphModule) -> None:
    """Erase what drops at random, where it is in evaluation."""
    for node in list(graph.graph.nodes):
        module = module_of(node)
        if module is not None and is_random_drop(module) and not module.training:
            node.replace_all_uses_with(cast(Node, node.args[0]))
            graph.graph.erase_node(node)


def _is_idle_dropout(node: Node) -> bool:
    if MODE_OF in node.meta or not is_dropout(node):
        return False
    return bind(node, ("input", "p", "training")).get("training", node.kwargs.get("train", True)) is False


def _fold_constant_positions(graph: GraphModule) -> None:
    """`ones(n, n).triu().nonzero()` becomes a buffer: how many positions come out is in the values, not in the shapes."""
    for node in list(graph.graph.nodes):
        if operation_name(node) != "nonzero":
            continue
        value = value_without_input(graph, node, {})
        if value is None:
            continue
        path = free_path(graph, "positions")
        graph.register_buffer(path, value)
        with graph.graph.inserting_before(node):
            node.replace_all_uses_with(graph.graph.get_attr(path))
        erase_unused(graph, ancestors(node))


def _work_out_of_place(graph: GraphModule, numbers: dict[Node, Any]) -> None:
    """`y = relu_(x); use(x)` becomes `y = relu(x); use(y)`: what came after an in-place operation saw its result."""
    for node in list(graph.graph.nodes):
        if not _make_out_of_place(node) or node in numbers:  # numbers do not change: `n += 1` makes a new one
            continue
        changed, seen = node.args[0], False
        for later in graph.graph.nodes:
            if seen:
                later.replace_input_with(changed, node)
            seen = seen or later is node


def _make_out_of_place(node: Node) -> bool:
    """Turn the one node into its form that leaves its input alone; says whether it was in place."""
    module = module_of(node)
    if module is not None:
        was = getattr(module, "inplace", False) is True
        if was:
            module.inplace = False  # type: ignore[assignment]
        return was
    if node.kwargs.get("inplace") is True:
        node.kwargs = {**node.kwargs, "inplace": False}
        return True
    if node.op == "call_method" and str(node.target).endswith("_") and not str(node.target).endswith("__"):
        node.target = str(node.target)[:-1]
        return True
    if node.op != "call_function":
        return False
    if not node.users and _is_users_own(node.target):
        return bool(node.args) and isinstance(node.args[0], Node)  # called for what it does to its first argument
    other = _IN_PLACE_OPERATORS.get(cast(Any, node.target)) or _functional_twin(node.target)
    if other is not None:
        node.target = other
    return other is not None


def _is_users_own(function: Any) -> bool:
    """Whether it is a function of somebody's own that tracing did not look into (torch.fx.wrap)."""
    package = (getattr(function, "__module__", None) or "torch").partition(".")[0]
    return inspect.isfunction(function) and package not in ("torch", "operator", "fxfactor")


def _functional_twin(target: Any) -> Callable[..., Any] | None:
    """torch.relu_ → torch.relu, aten.add_.Tensor → aten.add.Tensor; None where `target` is not in place."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
        return getattr(getattr(aten, name[:-1]), target._overloadname) if name.endswith("_") else None
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)


def _unify_global_pooling(graph: GraphModule) -> None:
    """`x.mean((2, 3))` becomes AdaptiveAvgPool2d(1) and, where it drops the dimensions, a flatten."""
    for node in list(graph.graph.nodes):
        keep = _mean_over_image(node)
        if keep is None:
            continue
        source = node.all_input_nodes[0]
        shape = shape_of(source)
        owner = owner_path(node)
        path = free_path(graph, f"{owner}.avgpool" if owner else "avgpool")
        new = replace_by_module(graph, node, path, global_pooling(len(shape)))
        new.args = (source,)
        set_shape(new, source, (*shape[:2], *[1] * (len(shape) - 2)))
        if not keep:
            users = list(new.users)
            with graph.graph.inserting_after(new):
                flat = graph.graph.call_function(torch.flatten, (new, 1))
            for user in users:
                user.replace_input_with(new, flat)
            set_shape(flat, source, shape[:2])


def _mean_over_image(node: Node) -> bool | None:
    """Whether the reduced dimensions stay, if the node averages each channel over the whole image; else None."""
    called = node.op in ("call_function", "call_method")  # a buffer or an argument may be called "mean", too
    if not called or node.target not in ("mean", torch.mean, aten.mean.dim):
        return None
    bound = bind(node, ("input", "dim", "keepdim"))
    rank = len(shape_of(node.all_input_nodes[0]))
    dims = bound.get("dim")
    dims = (dims,) if isinstance(dims, int) else dims
    if rank < 3 or not isinstance(dims, list | tuple) or {d % rank for d in dims} != set(range(2, rank)):
        return None
    return bool(bound.get("keepdim", False))


def _unify_padded_shortcut(graph: GraphModule) -> None:
    """`pad(x[:, :, ::s, ::s], channels)` (He et al. 2015, option A) becomes a fixed 1×1 convolution of stride s.

    Its weight is 1 where a channel is passed on and 0 elsewhere, and is not trained: the function stays the same.
    """
    for node in list(graph.graph.nodes):
        if operation_name(node) not in ("pad", "constant_pad_nd"):
            continue
        bound = bind(node, ("input", "pad", "mode", "value"))
        pad, source = bound.get("pad"), bound["input"]
        with_zeros = (bound.get("mode", "constant"), bound.get("value") or 0) == ("constant", 0)
        if not with_zeros or not isinstance(pad, list | tuple) or len(pad) != 6 or any(pad[:4]) or min(pad) < 0:
            continue
        if len(shape_of(node)) != 4 or not any(pad):  # of videos it would be time that is padded, as often by nothing
            continue
        stride = _subsampling(source)
        origin = source if stride is None else source.args[0]
        channels, after = shape_of(origin)[1], shape_of(node)[1]
        conv = nn.Conv2d(channels, after, 1, stride=stride or (1, 1), bias=False)
        identity = torch.zeros(after, channels, 1, 1)
        identity[pad[4] : pad[4] + channels] = torch.eye(channels)[:, :, None, None]
        parameter = next(graph.parameters())
        conv.weight = nn.Parameter(identity.to(parameter), requires_grad=False)
        owner = owner_path(node)
        new = replace_by_module(graph, node, free_path(graph, f"{owner}.conv" if owner else "shortcut"), conv)
        new.args = (origin,)
    graph.graph.eliminate_dead_code()


def _subsampling(node: Node) -> tuple[int, int] | None:
    """(s, t) if the node is `x[:, :, ::s, ::t]`."""
    if node.target is not operator.getitem or not isinstance(node.args[1], tuple) or len(node.args[1]) != 4:
        return None
    parts = node.args[1]
    if not all(isinstance(part, slice) and part.start in (None, 0) and part.stop is None for part in parts):
        return None
    steps = [cast(slice, part).step or 1 for part in parts]
    return (steps[2], steps[3]) if steps[:2] == [1, 1] else None


def _calls(graph: GraphModule) -> dict[int, list[Node]]:
    """The nodes that call each module, by the identity of the module object."""
    calls: dict[int, list[Node]] = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if module is not None:
            calls.setdefault(id(module), []).append(node)
    return calls


def _call_by_one_path(graph: GraphModule) -> None:
    """A module that stands at several paths is called by the first of them only."""
    for nodes in _calls(graph).values():
        for node in nodes[1:]:
            node.target = nodes[0].target


def _refuse_tied_parameters(graph: GraphModule) -> None:
    seen: dict[int, str] = {}
    for nodes in _calls(graph).values():
        path = str(nodes[0].target)
        for name, parameter in cast(nn.Module, module_of(nodes[0])).named_parameters():
            first = seen.setdefault(id(parameter), f"{path}.{name}")
            if first != f"{path}.{name}":
                raise CaptureError(
                    f"every parameter must belong to one module, but {first!r} and '{path}.{name}' are the same tensor; "
                    "give each module its own copy, or call one module in both places"
                )


def _copy_shared_modules(graph: GraphModule) -> None:
    """The second and later calls of a module without parameters and buffers get copies of their own."""
    for nodes in _calls(graph).values():
        module = cast(nn.Module, module_of(nodes[0]))
        for node in [] if has_state(module) else nodes[1:]:
            path = free_path(graph, str(node.target))
            put_module(graph, path, copy.deepcopy(module))
            node.target = path
