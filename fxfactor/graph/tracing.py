"""Four ways to get a graph out of a network, from the one that keeps most of it to the one that takes any.

`trace_symbolic` keeps every module and every shape open. `trace_concrete` lets shapes be numbers while tracing, so that
control flow on shapes works; the batch size stays open where the network lets it. `trace_export` uses torch.export and
gives a graph of ATen operators, which `fxfactor.graph.normalize` turns back into modules. `trace_around` calls modules that
nothing sees through, and that have no layers, as they are.

torch.export alone could stand for `trace_concrete`: on pytorchcv's 87 families the same convolutions are visible without it
(benchmarks/README.md). It stays because the six networks that need it are captured faster with it.
"""

from __future__ import annotations

import copy
import inspect
import io
import logging
import operator
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache
from typing import Any, cast

import torch
from torch import Tensor, fx, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Node, Proxy
from torch.fx.node import map_aggregate
from torch.utils import _pytree as pytree

from fxfactor.errors import CaptureError
from fxfactor.graph.edits import put_module
from fxfactor.graph.guards import require_shape
from fxfactor.graph.normal_form import call_on_fakes
from fxfactor.graph.pooling import UnevenAdaptiveAvgPool2d

_KNOWN = (
    *(nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear),
    *(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.LayerNorm, nn.GroupNorm),
)
_RANDOM_IN_TRAINING = ("StochasticDepth", "DropPath", "DropBlock2d")

EXPORT_SECONDS = 300.0
"""How long torch.export may run the model's forward."""

MODE_OF = "fxfactor.mode_of"
"""Key of a node's `meta`: path of the module whose `self.training` the call was given."""


KEPT_WHOLE = "fxfactor.kept_whole"
"""Key of `graph.meta` with the paths of modules of the user's own that are called as they are."""


class _Mode(int):
    """What `self.training` is while tracing: false, and known again where a function is called with it."""

    path: str

    def __new__(cls, path: str) -> _Mode:
        mode = super().__new__(cls, 0)
        mode.path = path
        return mode


class _Proxy(Proxy):
    """A proxy on which `x += y` is an in-place operation, as it is on a tensor: torch.fx takes it for `x = x + y`."""

    def __iadd__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.iadd, (self, other), {})

    def __isub__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.isub, (self, other), {})

    def __imul__(self, other: Any) -> Any:
        return self.tracer.create_proxy("call_function", operator.imul, (self, other), {})


class _Tracer(fx.Tracer):
    """Leaves are the layers of torch and Brevitas, subclasses that compute the same, and what drops at random.

    Arguments beyond the first `given` that have a default keep it, and are no inputs of the graph. Modules at `whole` are
    leaves too; `untraceable` is the path of the module without layers that tracing failed in, where it did.
    """

    def __init__(self, given: int = 1, whole: frozenset[str] = frozenset()) -> None:
        super().__init__(autowrap_functions=(require_shape,))  # a graph with one is traced anew when it is unpickled
        self.given, self.whole = given, whole
        self.untraceable: str | None = None

    def trace(self, root: Any, concrete_args: dict[str, Any] | None = None) -> fx.Graph:
        modes = {module: module.training for module in root.modules()}
        for path, module in root.named_modules():
            if not isinstance(module, torch.jit.ScriptModule) and (not path or not self.is_leaf_module(module, path)):
                vars(module)["training"] = _Mode(path)
        try:
            return super().trace(root, concrete_args)
        finally:
            for module, mode in modes.items():
                if isinstance(module.training, _Mode):
                    module.training = mode

    def create_args_for_root(self, root_fn: Any, is_module: bool, concrete_args: Any = None) -> Any:
        fn, args = super().create_args_for_root(root_fn, is_module, concrete_args)
        parameters = inspect.signature(root_fn).parameters
        for index in range(1 + self.given, len(args)):
            node = args[index].node
            parameter = parameters.get(str(node.target))
            if parameter is not None and parameter.default is not inspect.Parameter.empty:
                self.graph.erase_node(node)
                args[index] = parameter.default
        return fn, args

    def create_arg(self, a: Any) -> Any:
        return False if isinstance(a, _Mode) else super().create_arg(a)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        proxy = super().create_proxy(kind, target, args, kwargs, *rest, **named)
        for each in (*args, *kwargs.values()):
            if isinstance(each, _Mode):
                proxy.node.meta[MODE_OF] = each.path
        return proxy

    def proxy(self, node: Node) -> Proxy:
        return _Proxy(node, self)

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        if m._forward_hooks or m._forward_pre_hooks:
            return False  # traced through, so that what the hook does is seen
        if is_random_drop(m) or isinstance(m, UnevenAdaptiveAvgPool2d) or type(m).__module__.startswith("brevitas."):
            return True
        if module_qualified_name in self.whole:
            return True
        for known in _KNOWN:
            if isinstance(m, known):
                return _computes_like(type(m), known)
        return super().is_leaf_module(m, module_qualified_name)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        try:
            return super().call_module(m, forward, args, kwargs)
        except Exception:
            if self.untraceable is None and not any(isinstance(each, _KNOWN) for each in m.modules()):
                self.untraceable = self.path_of_module(m)
            raise


def _computes_like(kind: type[nn.Module], known: type[nn.Module]) -> bool:
    """Whether a subclass inherits what its forward does: then it may stand for its base class."""
    return all(getattr(kind, name, None) is getattr(known, name, None) for name in ("forward", "_conv_forward"))


def is_random_drop(module: nn.Module) -> bool:
    """Whether `module` drops values at random in training and is the identity in eval (dropout, stochastic depth)."""
    return isinstance(module, nn.modules.dropout._DropoutNd) or type(module).__name__ in _RANDOM_IN_TRAINING


def trace_symbolic(model: nn.Module, given: int = 1) -> GraphModule:
    """Trace with symbolic values, `given` of them; needs no inputs. Raises whatever the model's code raises on one."""
    return _module(_Tracer(given), model)


def trace_concrete(model: nn.Module, inputs: tuple[Any, ...]) -> GraphModule:
    """Trace with the shapes of `inputs` known as numbers; the size of dimension 0 stays open where it can."""
    return _module(_ConcreteTracer(inputs), model)


def trace_around(model: nn.Module, inputs: tuple[Any, ...]) -> GraphModule:
    """`trace_concrete`, with modules that cannot be traced kept whole, as calls of themselves, where no layer is inside.

    Cannot be traced: what raises, and what calls a torch.autograd.Function, whose gradient would be lost. Their paths are
    in `graph.meta[KEPT_WHOLE]`. Raises what tracing raises where there is no such module to leave out.
    """
    whole: frozenset[str] = frozenset()
    while True:
        tracer = _ConcreteTracer(inputs, whole)
        try:
            with _functions_refused():
                graph = _module(tracer, model)
        except Exception:
            if tracer.untraceable is None or tracer.untraceable in whole:
                raise
            whole |= {tracer.untraceable}
        else:
            graph.meta[KEPT_WHOLE] = tuple(sorted(whole))
            return graph


@contextmanager
def _functions_refused() -> Iterator[None]:
    """Calls of a torch.autograd.Function on values that stand for others raise TraceError."""
    apply = torch.autograd.Function.__dict__["apply"]

    def refuse(cls: Any, *args: Any, **kwargs: Any) -> Any:
        if any(isinstance(each, Proxy) for each in args):
            raise fx.proxy.TraceError(f"torch.autograd.Function {cls.__name__} has a gradient of its own")
        return apply.__get__(None, cls)(*args, **kwargs)

    torch.autograd.Function.apply = classmethod(refuse)  # type: ignore[method-assign, assignment]
    try:
        yield
    finally:
        torch.autograd.Function.apply = apply  # type: ignore[method-assign]


def _module(tracer: fx.Tracer, model: nn.Module) -> GraphModule:
    graph = tracer.trace(model)
    for node in graph.nodes:
        if isinstance(node.type, str):
            node.type = None  # an annotation kept as text; before torch 2.14 a graph with one cannot be pickled
    graph._tracer_cls = (
        _Tracer  # what unpickling traces the graph's own code with: any tracer of ours, made without inputs
    )
    return GraphModule(tracer.root, graph, type(model).__name__)


class _SizedProxy(_Proxy):
    """A proxy that knows the (fake) value it stands for, and answers questions about shapes with numbers."""

    value: Any

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.size()

    @property
    def ndim(self) -> int:
        return len(self.value.shape)

    @property
    def dtype(self) -> torch.dtype:
        return self.value.dtype

    @property
    def device(self) -> torch.device:
        return self.value.device

    def dim(self) -> int:
        return self.ndim

    def size(self, dim: int | None = None) -> Any:
        sizes = tuple(int(size) for size in self.value.shape)
        if dim is not None:
            return self._batch() if dim % len(sizes) == 0 else sizes[dim]
        return (self._batch(), *sizes[1:]) if sizes else ()

    def _batch(self) -> Any:
        return self.tracer.create_proxy("call_method", "size", (self, 0), {})

    def __len__(self) -> int:
        return len(self.value)

    def __bool__(self) -> bool:
        return bool(self._number())

    def __int__(self) -> int:
        return int(self._number())

    def __index__(self) -> int:
        return int(self._number())

    def __float__(self) -> float:
        return float(self._number())

    def __iter__(self) -> Iterator[Any]:
        return iter([cast(Any, self)[index] for index in range(len(self.value))])

    def _number(self) -> Any:
        if isinstance(self.value, Tensor):
            raise fx.proxy.TraceError(
                f"the control flow depends on the values of {self.node.name!r}, not only on shapes"
            )
        return self.value


def _value_of(x: Any) -> Any:
    if isinstance(x, _Mode):
        return False
    return x.value if isinstance(x, _SizedProxy) else x


class _ConcreteTracer(_Tracer):
    """Computes every node on fake tensors as it is made, so that its shape is known to the code that comes next."""

    def __init__(self, inputs: tuple[Any, ...], whole: frozenset[str] = frozenset()) -> None:
        super().__init__(len(inputs), whole)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.inputs = iter(pytree.tree_map_only(Tensor, self.mode.from_tensor, inputs))
        self.evaluating = False

    def proxy(self, node: Node) -> Proxy:
        return _SizedProxy(node, self)

    def create_proxy(self, kind: str, target: Any, args: Any, kwargs: Any, *rest: Any, **named: Any) -> Any:
        result = cast(_SizedProxy, super().create_proxy(kind, target, args, kwargs, *rest, **named))
        values = map_aggregate((args, kwargs), _value_of)
        self.evaluating = True
        try:
            with self.mode, torch.no_grad():
                result.value = self._evaluate(kind, target, *values)
        finally:
            self.evaluating = False
        return result

    def _evaluate(self, kind: str, target: Any, args: Any, kwargs: Any) -> Any:
        if kind == "placeholder":
            return next(self.inputs, args[0] if args else None)
        if kind == "get_attr":
            path, _, name = target.rpartition(".")
            return getattr(self.root.get_submodule(path), name)
        if kind == "call_module":
            return call_on_fakes(self.root.get_submodule(target).forward, self.mode, args, kwargs)
        if kind == "call_method":
            return getattr(args[0], target)(*args[1:], **kwargs)
        return target(*args, **kwargs) if kind == "call_function" else None

    def getattr(self, attr: str, attr_val: Any, parameter_proxy_cache: dict[str, Any]) -> Any:
        if self.evaluating:
            return attr_val
        return super().getattr(attr, attr_val, parameter_proxy_cache)

    def call_module(self, m: nn.Module, forward: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        if self.evaluating:
            return forward(*args, **kwargs)
        return super().call_module(m, forward, args, kwargs)


@cache
def _marker() -> Any:
    """An operation that torch.export keeps: it stands for a module that is the identity in evaluation."""

    @torch.library.custom_op("fxfactor::random_drop", mutates_args=())
    def random_drop(x: Tensor, path: str) -> Tensor:
        return x.clone()

    random_drop.register_fake(lambda x, path: torch.empty_like(x))
    return random_drop


def _mark_random_drops(model: nn.Module) -> dict[str, nn.Module]:
    """Let what drops at random say where it is called, in place; the modules as they were, by path."""
    drops = {}
    for path, module in model.named_modules():
        if is_random_drop(module) and path:
            drops[path] = copy.deepcopy(module)
            vars(module)["forward"] = lambda x, path=path: _marker()(x, path)
    return drops


def _limit_time(model: nn.Module, ends: float, beat: Callable[[], None]) -> None:
    """Let every call of a module look at the clock, in place."""

    def look(module: nn.Module, arguments: Any) -> None:
        beat()
        if time.monotonic() > ends:
            raise CaptureError(f"took longer than {EXPORT_SECONDS:.0f} s, in {type(module).__name__}")

    for module in model.modules():
        module.register_forward_pre_hook(look)


def trace_export(model: nn.Module, inputs: tuple[Any, ...], beat: Callable[[], None] = lambda: None) -> GraphModule:
    """torch.export with an open batch size where the network allows it, as a flat graph of ATen operators.

    `beat` is called whenever a module of the model is.
    """
    drops = _mark_random_drops(model)
    _limit_time(model, time.monotonic() + EXPORT_SECONDS, beat)
    # export takes a size of 1 for a constant, so it sees the inputs twice along the batch
    inputs = pytree.tree_map_only(Tensor, lambda x: torch.cat([x, x]) if x.dim() and x.shape[0] == 1 else x, inputs)
    dynamic = tuple({0: torch.export.Dim.AUTO} if isinstance(x, Tensor) and x.dim() else None for x in inputs)
    with torch.no_grad():
        exported = torch.export.export(model, inputs, dynamic_shapes=dynamic, strict=False)
        module = exported.module()
    output = next(node for node in module.graph.nodes if node.op == "output")
    leaves = pytree.tree_leaves(output.args[0])
    output.args = (pytree.tree_unflatten(leaves, exported.call_spec.out_spec),)
    for node in reversed(list(module.graph.nodes)):
        if (node.op == "call_module" and not node.users) or "assert" in str(node.target):
            module.graph.erase_node(node)  # guards on the shapes at capture
    for node in list(module.graph.nodes):
        if str(node.target) == "fxfactor.random_drop.default":
            put_module(module, node.args[1], drops[node.args[1]])
            with module.graph.inserting_before(node):
                call = module.graph.call_module(node.args[1], (node.args[0],))
            call.meta = dict(node.meta)
            node.replace_all_uses_with(call)
            module.graph.erase_node(node)
    module.graph.set_codegen(fx.graph.CodeGen())
    module.graph.eliminate_dead_code()
    return GraphModule(module, module.graph, type(model).__name__)


_TALKATIVE = ("torch.fx.experimental.symbolic_shapes", "torch.export", "torch._subclasses.fake_tensor")
"""Loggers that tell at length what is raised anyway."""


@contextmanager
def silent() -> Iterator[None]:
    """What exporters dump on the terminal where they fail goes nowhere: their errors say enough."""
    loggers = [logging.getLogger(name) for name in _TALKATIVE]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
