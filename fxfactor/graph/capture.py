"""nn.Module → graph in normal form (defined in `fxfactor.graph`).

Three ways of tracing are tried in turn (`fxfactor.graph.tracing`). The first gives the most readable graph; the other two
read shapes at capture, so what they give is run once beside the original before it is trusted.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.errors import CaptureError, GraphError, PreconditionError
from fxfactor.graph.compare import relative_difference
from fxfactor.graph.normal_form import check_graph, finish, restore_training
from fxfactor.graph.normalize import normalize, rewrites_functions
from fxfactor.graph.questions import CONVOLUTIONS, TRANSPOSED, placeholders, shape_of
from fxfactor.graph.tracing import is_random_drop, trace_concrete, trace_export, trace_symbolic

ASSUMED = "fxfactor.assumed_input"
"""Key of `graph.meta` that is True where the input's size was inferred and not given."""

# Sizes tried, in turn, where no example is given: ImageNet's, then those that small networks insist on.
_SIZES = (224, 299, 32, 28, 64, 96, 128, 256, 16, 8)
_LENGTHS = (1024, 16000, 512, 256, 128, 2048, 64, 100)


def capture(model: nn.Module, example_inputs: Tensor | tuple[Any, ...] | None = None) -> GraphModule:
    """Return the network as a torch.fx.GraphModule in normal form, a copy that computes the same; `model` is untouched.

    `example_inputs` (a tensor, or the tuple of all arguments) fixes the shapes at every node. Without it the input is
    inferred: channels from the first convolution, size from `model.default_cfg` (timm) or the first of 224, 299, 32,
    28 … pixels that the network accepts; `graph.meta["fxfactor.assumed_input"]` then says so.

    The graph is that of the model in eval mode; each module keeps the mode it had. Dropout and stochastic depth stay
    where the model was in training mode, and are dropped where it was in eval.

    Raises PreconditionError where `model` is no module, or the inputs do not fit it or cannot be inferred, and
    CaptureError where a module with parameters is called twice or no way of tracing works.
    """
    if not isinstance(model, nn.Module):
        raise PreconditionError(
            f"capture needs a torch.nn.Module, found {type(model).__name__}; pass the network itself, built and loaded"
        )
    inputs = None if example_inputs is None else _as_tuple(example_inputs)
    if isinstance(model, GraphModule) and inputs is None and _is_normal(model):
        return copy.deepcopy(model)
    training = {name: module.training for name, module in model.named_modules()}
    graph = _capture(model, inputs)
    graph.meta[ASSUMED] = inputs is None
    finish(graph)
    restore_training(graph, training)
    check_graph(graph)
    return graph


def _is_normal(graph: GraphModule) -> bool:
    try:
        check_graph(graph)
    except GraphError:
        return False
    return True


def _as_tuple(example_inputs: Tensor | tuple[Any, ...]) -> tuple[Any, ...]:
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, tuple | list) and any(isinstance(x, Tensor) for x in example_inputs):
        return tuple(example_inputs)
    raise PreconditionError(
        f"example_inputs must be a tensor or a tuple of the model's arguments, found {type(example_inputs).__name__}; "
        "pass torch.randn(1, channels, height, width), say"
    )


def _capture(model: nn.Module, inputs: tuple[Any, ...] | None) -> GraphModule:
    refusals = []
    try:
        graph = trace_symbolic(_in_eval(model))
    except Exception as error:  # the user's own code runs on symbolic values here and may raise anything
        refusals.append(f"torch.fx.symbolic_trace: {_first_line(error)}")
    else:
        rewritten = rewrites_functions(graph)
        try:
            graph, known = _normalized(graph, model, inputs)
        except PreconditionError as error:
            if inputs is None or not _runs(model, inputs):
                raise
            refusals.append(f"torch.fx.symbolic_trace: {_first_line(error)}")
        else:
            difference = _difference(model, graph, known) if rewritten else 0.0
            if not difference > 1e-4:  # NaN tells nothing
                return graph
            refusals.append(_something_else("torch.fx.symbolic_trace", difference))
    known = inputs if inputs is not None else _accepted_inputs(model)
    for name, trace in (("tracing with known shapes", trace_concrete), ("torch.export", trace_export)):
        try:
            graph = trace(_in_eval(model, drop=trace is trace_export), known)
        except Exception as error:  # as above
            refusals.append(f"{name}: {_first_line(error)}")
            continue
        normalize(graph, known)
        difference = _difference(model, graph, known)
        if difference <= 1e-4:
            return graph
        refusals.append(_something_else(name, difference))
    raise CaptureError(
        f"no way of tracing {type(model).__name__} works. " + "; ".join(refusals) + ". Control flow must not depend on "
        "the values of tensors; move such code out of the model, or split the model around it"
    )


def _in_eval(model: nn.Module, drop: bool = False) -> nn.Module:
    """A copy in eval mode, in which only what drops at random remembers that it was training (unless `drop`)."""
    working = copy.deepcopy(model)
    remembered = [m for m in working.modules() if is_random_drop(m) and m.training]
    working.eval()
    for module in [] if drop else remembered:
        module.training = True
    return working


def _something_else(name: str, difference: float) -> str:
    return f"{name}: the graph computes something else (relative difference {difference:.1g})"


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"


def _normalized(
    graph: GraphModule, model: nn.Module, inputs: tuple[Any, ...] | None
) -> tuple[GraphModule, tuple[Any, ...]]:
    """The traced graph in normal form for `inputs`, or for the first inferred ones that fit; and these."""
    if inputs is not None:
        return normalize(graph, inputs), inputs
    misfit: PreconditionError | None = None
    for candidate in _candidates(model):
        try:
            return normalize(graph, candidate), candidate
        except PreconditionError as error:
            misfit = error
    raise _cannot_infer(model, misfit) from misfit


def _candidates(model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Inputs that the network may be made for: channels of the first convolution, usual sizes."""
    first = next((m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, *TRANSPOSED))), None)
    parameter = next(model.parameters(), None)
    if first is None or parameter is None:
        return
    dimensions = len(first.kernel_size)
    config = getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        yield (torch.zeros(1, *config["input_size"]).to(parameter),)
    for size in _LENGTHS if dimensions == 1 else _SIZES if dimensions == 2 else (32, 16, 64):
        yield (torch.zeros(1, first.in_channels, *[size] * dimensions).to(parameter),)


def _cannot_infer(model: nn.Module, reason: Exception | None) -> PreconditionError:
    why = f"the last one tried was refused: {reason}" if reason is not None else "no usual size runs through it"
    return PreconditionError(
        f"the input of {type(model).__name__} cannot be inferred: {why}. "
        "Pass example_inputs=torch.randn(1, channels, height, width), or the tuple of all the model's arguments"
    )


def _accepted_inputs(model: nn.Module) -> tuple[Tensor, ...]:
    """The first inferred inputs that the model itself runs on."""
    for candidate in _candidates(model):
        if _runs(model, candidate):
            return candidate
    raise _cannot_infer(model, None)


def _runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(*inputs)
    except Exception:  # whatever the user's code raises on a shape it is not made for
        return False
    return True


def _difference(model: nn.Module, graph: GraphModule, inputs: tuple[Any, ...]) -> float:
    """Relative difference between model and graph, both in eval on the CPU, on random values of these shapes.

    In float64; in the model's own precision where the code has it fixed (`torch.zeros(n)`). Infinite where only the model
    runs, NaN where the model itself does not: then there is nothing to compare with.
    """
    own = next((p.dtype for p in model.parameters() if p.is_floating_point()), torch.float32)
    difference = math.nan
    for dtype in dict.fromkeys((torch.float64, own)):
        generator = torch.Generator().manual_seed(0)
        random = tuple(torch.randn(x.shape, generator=generator, dtype=dtype) if _is_real(x) else x for x in inputs)
        try:
            wanted = _outputs(model, random, dtype)
        except Exception:  # whatever the user's code raises in this precision or on this device
            continue
        try:
            return relative_difference(_outputs(graph, random, dtype), wanted)
        except RuntimeError:
            difference = math.inf
    return difference


def _outputs(model: nn.Module, inputs: tuple[Any, ...], dtype: torch.dtype) -> Any:
    with torch.no_grad():
        return copy.deepcopy(model).eval().to(dtype).cpu()(*inputs)


def _is_real(x: Any) -> bool:
    return isinstance(x, Tensor) and x.is_floating_point()


def as_graph(model: nn.Module, like: GraphModule) -> GraphModule:
    """A copy of `model` in normal form and eval mode, captured on inputs of the shapes that `like` takes.

    In the precision and on the device of `like`. A graph is copied and not traced anew: that would rename its nodes.
    """
    inputs = None
    if isinstance(model, nn.Module) and not isinstance(model, GraphModule):
        own = next(model.parameters(), torch.empty(0))
        inputs = tuple(torch.zeros(shape_of(node)).to(own) for node in placeholders(like))
    return capture(model, inputs).eval().to(next(like.parameters(), torch.empty(0)))
