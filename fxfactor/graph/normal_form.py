"""The normal form of a captured network: its checks, its shapes, and the few edits that passes make.

The normal form is what `fxfactor.capture` gives and every pass must keep:

1. `graph.lint()` passes and no node is dead.
2. A module without parameters and buffers is called by exactly one node. One that has some may be called by several:
   a layer is then one site with several calls. Branches that meet share an activation quantizer on purpose. No module
   stands at two paths, and no two modules share a parameter.
3. Convolutions, linear layers, normalisations, activations and poolings are `call_module` nodes of their own.
4. Every `call_module` node that gives one tensor knows its shape (`shape_of`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
    unset_fake_temporarily,
)
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import _extract_tensor_metadata
from torch.utils._pytree import tree_map_only

from fxfactor.errors import GraphError, PreconditionError
from fxfactor.graph.questions import is_parameter, is_quantizer, shape_of

SEVERAL = "fxfactor.several"
"""Key of a node's `meta`: how many values it gives where they are several (a recurrent layer's output and state)."""


class _ShapePropagation(Interpreter):
    """Runs the graph on fake tensors; keeps shapes on the nodes and plain numbers in `numbers`."""

    def __init__(self, graph: GraphModule, mode: FakeTensorMode) -> None:
        super().__init__(graph)
        self.mode = mode
        self.numbers: dict[Node, Any] = {}
        self.failed_at: Node | None = None

    def run_node(self, node: Node) -> Any:
        self.failed_at = node
        value = super().run_node(node)
        if isinstance(value, Tensor):
            node.meta["tensor_meta"] = _extract_tensor_metadata(value)
        elif isinstance(value, tuple | list) and not isinstance(value, torch.Size):
            node.meta[SEVERAL] = len(value)
        elif isinstance(value, int | float | torch.Size):
            self.numbers[node] = value
        return value

    def call_module(self, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return call_on_fakes(self.fetch_attr(target), self.mode, args, kwargs)


def call_on_fakes(call: Callable[..., Any], mode: FakeTensorMode, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What a module's call gives for fake tensors; where shapes inside depend on values, for random numbers of these shapes."""
    try:
        return call(*args, **kwargs)
    except (DataDependentOutputException, DynamicOutputShapeException):
        with unset_fake_temporarily():
            numbers, named = tree_map_only(Tensor, _random_like, (args, kwargs))
            found = call(*numbers, **named)
        return tree_map_only(Tensor, mode.from_tensor, found)


def _random_like(fake: Tensor) -> Tensor:
    shape = tuple(map(int, fake.shape))
    if not fake.is_floating_point():
        return torch.zeros(shape, dtype=fake.dtype, device=fake.device)
    generator = torch.Generator(fake.device).manual_seed(0)
    return torch.rand(shape, dtype=fake.dtype, device=fake.device, generator=generator)


def propagate_shapes(graph: GraphModule, example_inputs: tuple[Any, ...]) -> dict[Node, Any]:
    """Record at every node the shape it has for `example_inputs`; nothing is computed (fake tensors).

    Returns the nodes whose value is a plain number or a size, with that value. Raises PreconditionError, naming the
    layer, where the inputs do not fit the network.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    run = _ShapePropagation(graph, mode)
    with mode, torch.no_grad():
        inputs = tree_map_only(Tensor, mode.from_tensor, example_inputs)
        try:
            run.run(*inputs, enable_io_processing=False)
        except (RuntimeError, ValueError, TypeError, IndexError, AssertionError) as error:
            node = run.failed_at
            shapes = [tuple(x.shape) if isinstance(x, Tensor) else type(x).__name__ for x in example_inputs]
            where = f"{node.target!r}" if node is not None else "its start"
            detail = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise PreconditionError(
                f"the example inputs {shapes} do not fit the network: it fails at {where} with {detail!r}; "
                "pass example_inputs= of the shape that the network was made for"
            ) from error
    return run.numbers


def check_graph(graph: GraphModule) -> None:
    """Raise GraphError unless `graph` is in the normal form (see the module docstring)."""
    graph.graph.lint()
    users: dict[str, list[Node]] = defaultdict(list)
    for node in graph.graph.nodes:
        if not node.users and node.op not in ("output", "placeholder") and not node.is_impure():
            raise GraphError(f"node {node.name!r} ({node.op} {node.target}) is dead: nothing uses it; erase it")
        if node.op == "call_module":
            users[str(node.target)].append(node)
            if SEVERAL not in node.meta:
                shape_of(node)
        form = _functional_form(node)
        if form is not None:
            raise GraphError(f"node {node.name!r} calls {form} as a function; the normal form has a module there")
    paths: dict[int, str] = {}
    for path, nodes in users.items():
        module = graph.get_submodule(path)
        if is_quantizer(module):
            continue
        if len(nodes) > 1 and not has_state(module):
            names = ", ".join(node.name for node in nodes)
            raise GraphError(
                f"module {path!r} ({type(module).__name__}), which has no parameters, is called by {len(nodes)} nodes "
                f"({names}); give each its own copy"
            )
        if id(module) in paths:
            raise GraphError(f"modules {paths[id(module)]!r} and {path!r} are one object; give each its own copy")
        paths[id(module)] = path


def has_state(module: nn.Module) -> bool:
    """Whether a module has parameters or buffers, so that a copy of it would be another one after training."""
    return next(module.parameters(), None) is not None or next(module.buffers(), None) is not None


def _functional_form(node: Node) -> str | None:
    """Name of the layer that a call_function node computes on parameters of its own, if it does."""
    functions = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d, nn.functional.linear)
    if node.op != "call_function" or node.target not in functions or len(node.args) < 2:
        return None
    weight = node.args[1]
    return getattr(node.target, "__name__", str(node.target)) if is_parameter(weight) else None


def finish(graph: GraphModule) -> GraphModule:
    """After edits: drop what nothing calls any more and generate the code anew."""
    graph.graph.eliminate_dead_code()
    graph.delete_all_unused_submodules()
    graph.recompile()
    return graph


def restore_training(graph: GraphModule, training: dict[str, bool]) -> None:
    """Give every module the mode it had; a new module takes the mode of the nearest one above it that had one."""
    for name, module in graph.named_modules():
        parent = name
        while parent not in training:
            parent = parent.rpartition(".")[0]
        module.training = training[parent]
