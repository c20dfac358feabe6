"""A traced graph becomes the normal form: functions become modules, spellings become one, nothing works in place.

Each step is a function over the whole graph, in the order of `normalize`.
"""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from fxfactor.errors import CaptureError
from fxfactor.graph import free_path, is_parameter, module_of, propagate_shapes, put_module, set_shape, shape_of
from fxfactor.tracing import is_random_drop

aten = torch.ops.aten

_POOL = ("kernel_size", "stride", "padding")
_AVERAGE = (*_POOL, "ceil_mode", "count_include_pad", "divisor_override")
_MAXIMUM = (*_POOL, "dilation", "ceil_mode")

# Function → the module that computes it, and the names of its settings after the input, in order.
_STATELESS: dict[Any, tuple[type[nn.Module], tuple[str, ...]]] = {
    **dict.fromkeys((F.relu, torch.relu, "relu", aten.relu.default), (nn.ReLU, ())),
    **dict.fromkeys((F.relu6, aten.relu6.default), (nn.ReLU6, ())),
    **dict.fromkeys((F.hardtanh, aten.hardtanh.default), (nn.Hardtanh, ("min_val", "max_val"))),
    **dict.fromkeys((F.leaky_relu, aten.leaky_relu.default), (nn.LeakyReLU, ("negative_slope",))),
    **dict.fromkeys((F.elu, aten.elu.default), (nn.ELU, ("alpha",))),
    **dict.fromkeys((F.silu, aten.silu.default), (nn.SiLU, ())),
    **dict.fromkeys((F.mish, aten.mish.default), (nn.Mish, ())),
    **dict.fromkeys((F.gelu, aten.gelu.default), (nn.GELU, ("approximate",))),
    **dict.fromkeys((F.hardswish, aten.hardswish.default), (nn.Hardswish, ())),
    **dict.fromkeys((F.hardsigmoid, aten.hardsigmoid.default), (nn.Hardsigmoid, ())),
    **dict.fromkeys((F.sigmoid, torch.sigmoid, "sigmoid", aten.sigmoid.default), (nn.Sigmoid, ())),
    **dict.fromkeys((F.tanh, torch.tanh, "tanh", aten.tanh.default), (nn.Tanh, ())),
    **dict.fromkeys((F.max_pool1d, torch.max_pool1d, aten.max_pool1d.default), (nn.MaxPool1d, _MAXIMUM)),
    **dict.fromkeys((F.max_pool2d, torch.max_pool2d, aten.max_pool2d.default), (nn.MaxPool2d, _MAXIMUM)),
    **dict.fromkeys((F.max_pool3d, torch.max_pool3d, aten.max_pool3d.default), (nn.MaxPool3d, _MAXIMUM)),
    **dict.fromkeys((F.avg_pool1d, aten.avg_pool1d.default), (nn.AvgPool1d, _AVERAGE[:-1])),
    **dict.fromkeys((F.avg_pool2d, aten.avg_pool2d.default), (nn.AvgPool2d, _AVERAGE)),
    **dict.fromkeys((F.avg_pool3d, aten.avg_pool3d.default), (nn.AvgPool3d, _AVERAGE)),
    **dict.fromkeys((F.adaptive_avg_pool1d, aten.adaptive_avg_pool1d.default), (nn.AdaptiveAvgPool1d, ("output_size",))),
    **dict.fromkeys((F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default), (nn.AdaptiveAvgPool2d, ("output_size",))),
    **dict.fromkeys((F.adaptive_avg_pool3d, aten.adaptive_avg_pool3d.default), (nn.AdaptiveAvgPool3d, ("output_size",))),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, ("output_size",)),
}

_CONV = ("input", "weight", "bias", "stride", "padding", "dilation", "groups")
_CONV_KINDS: dict[Any, type[nn.Module]] = {
    **dict.fromkeys((F.conv1d, aten.conv1d.default, aten.conv1d.padding), nn.Conv1d),
    **dict.fromkeys((F.conv2d, aten.conv2d.default, aten.conv2d.padding), nn.Conv2d),
    **dict.fromkeys((F.conv3d, aten.conv3d.default, aten.conv3d.padding), nn.Conv3d),
}
_BATCH_NORM = {
    F.batch_norm: ("input", "running_mean", "running_var", "weight", "bias", "training", "momentum", "eps"),
    aten.batch_norm.default: ("input", "weight", "bias", "running_mean", "running_var", "training", "momentum", "eps"),
}
_BATCH_NORM_OF_RANK = {2: nn.BatchNorm1d, 3: nn.BatchNorm1d, 4: nn.BatchNorm2d, 5: nn.BatchNorm3d}
_LAYER_NORM = ("input", "normalized_shape", "weight", "bias", "eps")
_GROUP_NORM = ("input", "num_groups", "weight", "bias", "eps")
_IN_PLACE_OPERATORS = {operator.iadd: operator.add, operator.isub: operator.sub, operator.imul: operator.mul}


def normalize(graph: GraphModule, example_inputs: tuple[Any, ...]) -> GraphModule:
    """Bring a traced graph into the normal form, in place; every node then knows its shape for `example_inputs`.

    Raises CaptureError where a module with parameters is used twice.
    """
    _drop_identities(graph)
    _work_out_of_place(graph)
    numbers = propagate_shapes(graph, example_inputs)
    _lift_layers(graph)
    _lift_stateless(graph, numbers)
    _unify_global_pooling(graph)
    _unify_padded_shortcut(graph)
    _refuse_shared_parameters(graph)
    _copy_shared_modules(graph)
    return graph


def _drop_identities(graph: GraphModule) -> None:
    """Erase nn.Identity, and what drops at random where the user's model is in eval."""
    for node in list(graph.graph.nodes):
        module = module_of(node)
        idle = module is not None and is_random_drop(module) and not module.training
        if isinstance(module, nn.Identity) or idle or _is_idle_dropout(node):
            node.replace_all_uses_with(cast(Node, node.args[0]))
            graph.graph.erase_node(node)


def _is_idle_dropout(node: Node) -> bool:
    name = getattr(node.target, "__name__", "").split(".")[0]
    if node.op != "call_function" or name not in ("dropout", "dropout2d", "feature_dropout"):
        return False
    training = node.args[2] if len(node.args) > 2 else node.kwargs.get("training", node.kwargs.get("train", True))
    return training is False


def _work_out_of_place(graph: GraphModule) -> None:
    """`y = relu_(x); use(x)` becomes `y = relu(x); use(y)`: what came after an in-place operation saw its result."""
    for node in list(graph.graph.nodes):
        if not _make_out_of_place(node):
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
    other = _IN_PLACE_OPERATORS.get(cast(Any, node.target)) or _functional_twin(node.target)
    if other is not None:
        node.target = other
    return other is not None


def _functional_twin(target: Any) -> Callable[..., Any] | None:
    """torch.relu_ → torch.relu, aten.add_.Tensor → aten.add.Tensor; None where `target` is not in place."""
    if isinstance(target, torch._ops.OpOverload):
        name = target._schema.name.split("::")[1]
        return getattr(getattr(aten, name[:-1]), target._overloadname) if name.endswith("_") else None
    name = getattr(target, "__name__", "")
    if not name.endswith("_") or name.endswith("__"):
        return None
    return getattr(F, name[:-1], None) or getattr(torch, name[:-1], None)


def _bind(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a call by name; positions beyond `names` are dropped."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def owner_path(node: Node) -> str:
    """Path of the module of the user's model in whose forward the node was traced; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path if isinstance(path, str) and not path.startswith("_empty") else ""


def _replace(graph: GraphModule, node: Node, path: str, module: nn.Module) -> Node:
    """The node becomes a call of `module`, placed at `path`, on the node's first input."""
    module.training = graph.training
    put_module(graph, path, module)
    source = node.args[0] if node.args else node.kwargs["input"]
    with graph.graph.inserting_before(node):
        new = graph.graph.call_module(path, (source,))
    new.meta = dict(node.meta)
    node.replace_all_uses_with(new)
    graph.graph.erase_node(node)
    return new


def _lift_layers(graph: GraphModule) -> None:
    """Convolutions, linear layers and normalisations called as functions on parameters become modules."""
    for node in list(graph.graph.nodes):
        if node.op != "call_function":
            continue
        lifted = _lift_layer(graph, node)
        if lifted is not None:
            weight, module = lifted
            _replace(graph, node, _layer_path(graph, node, weight, module), module)
    graph.graph.eliminate_dead_code()


def _lift_layer(graph: GraphModule, node: Node) -> tuple[Any, nn.Module] | None:
    """The module that computes what the node does, and the node that reads its weight; None if it is none of ours."""
    target = cast(Any, node.target)
    names: tuple[str, ...] | None = _BATCH_NORM.get(target)
    kind: type[nn.Module] | None = _CONV_KINDS.get(target)
    if kind is not None:
        names = _CONV
    elif names is not None:
        kind = _BATCH_NORM_OF_RANK[len(shape_of(node))]
    elif target in (F.linear, aten.linear.default):
        kind, names = nn.Linear, ("input", "weight", "bias")
    elif target in (F.layer_norm, aten.layer_norm.default):
        kind, names = nn.LayerNorm, _LAYER_NORM
    elif target in (F.group_norm, aten.group_norm.default):
        kind, names = nn.GroupNorm, _GROUP_NORM
    if kind is None or names is None:
        return None
    bound = _bind(node, names)
    tensors = {key: _constant(graph, bound.get(key)) for key in ("weight", "bias", "running_mean", "running_var")}
    missing = [key for key in tensors if isinstance(bound.get(key), Node) and tensors[key] is None]
    settings = {key: value for key, value in bound.items() if key not in tensors and key != "input"}
    if missing or any(isinstance(value, Node) for value in settings.values()) or settings.get("training") is True:
        return None  # its weights are computed from the input: not a layer
    if tensors["weight"] is None and kind is not nn.LayerNorm and not issubclass(kind, nn.modules.batchnorm._BatchNorm):
        return None
    return bound.get("weight"), _build_layer(kind, tensors, settings)


def _constant(graph: GraphModule, node: Any) -> Tensor | None:
    """Value of a node that depends on parameters only (a standardised weight, say); None if it reads the input."""
    if not isinstance(node, Node):
        return node if isinstance(node, Tensor) else None
    if is_parameter(node):
        return cast(Tensor, operator.attrgetter(str(node.target))(graph))
    if node.op not in ("call_function", "call_method") or not node.all_input_nodes:
        return None
    values = {source: _constant(graph, source) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = map_aggregate((node.args, node.kwargs), lambda x: values[x] if isinstance(x, Node) else x)  # type: ignore[misc, index]
    with torch.no_grad():
        if node.op == "call_method":
            return cast(Tensor, getattr(args[0], str(node.target))(*args[1:], **kwargs))
        return cast(Tensor, cast(Callable[..., Tensor], node.target)(*args, **kwargs))


def _build_layer(kind: type[nn.Module], tensors: dict[str, Tensor | None], settings: dict[str, Any]) -> nn.Module:
    weight, bias = tensors["weight"], tensors["bias"]
    with torch.device("meta"):
        module: nn.Module
        if issubclass(kind, nn.Linear):
            module = kind(weight.shape[1], weight.shape[0], bias=bias is not None)  # type: ignore[union-attr]
        elif issubclass(kind, nn.LayerNorm):
            shape = tuple(settings["normalized_shape"])
            affine = weight is not None
            module = kind(shape, eps=settings.get("eps", 1e-5), elementwise_affine=affine, bias=bias is not None)
        elif issubclass(kind, nn.GroupNorm):
            module = kind(settings["num_groups"], len(cast(Tensor, weight)), eps=settings.get("eps", 1e-5))
        elif issubclass(kind, nn.modules.batchnorm._BatchNorm):
            features = len(cast(Tensor, tensors["running_mean"]))
            module = kind(features, eps=settings.get("eps", 1e-5), affine=weight is not None)
            module.momentum = settings.get("momentum") or 0.1  # a network traced in eval says 0 here
            module.num_batches_tracked = torch.zeros((), dtype=torch.long, device="cpu")
        else:
            weight = cast(Tensor, weight)
            groups = settings.pop("groups", 1)
            sizes = (weight.shape[1] * groups, weight.shape[0], tuple(weight.shape[2:]))
            plain = {key: _unwrap(value) for key, value in settings.items()}
            module = cast(Any, kind)(*sizes, groups=groups, bias=bias is not None, **plain)
    for name, tensor in tensors.items():
        if tensor is not None and name in module._parameters:
            module._parameters[name] = tensor if isinstance(tensor, nn.Parameter) else nn.Parameter(tensor)
        elif tensor is not None:
            module._buffers[name] = tensor
    return module


def _unwrap(value: Any) -> Any:
    return tuple(value) if isinstance(value, list | tuple) else value


def _layer_path(graph: GraphModule, node: Node, weight: Any, module: nn.Module) -> str:
    """`a.b` for a layer whose weight is `a.b.weight` and alone there; else a new name beside it."""
    kind = type(module).__name__.lower()
    owner = str(weight.target).rpartition(".")[0] if is_parameter(weight) else owner_path(node)
    own = set(node.all_input_nodes)
    prefix = f"{owner}."
    others = (n for n in graph.graph.nodes if n.op in ("get_attr", "call_module") and n not in own)
    if owner and not any(str(other.target).startswith(prefix) or other.target == owner for other in others):
        return owner
    return free_path(graph, f"{owner}.{kind}" if owner else kind)


def _lift_stateless(graph: GraphModule, numbers: dict[Node, Any]) -> None:
    """Activations and poolings called as functions become modules; sizes known at capture become numbers."""
    for node in list(graph.graph.nodes):
        form = _STATELESS.get(cast(Any, node.target)) if node.op in ("call_function", "call_method") else None
        if form is None:
            continue
        kind, names = form
        bound = map_aggregate(_bind(node, ("input", *names)), lambda x: numbers.get(x, x))  # type: ignore[arg-type]
        settings = {key: _unwrap(value) for key, value in bound.items() if key in names and value is not None}  # type: ignore[union-attr]
        settings = {key: value for key, value in settings.items() if value != ()}
        if bound.get("return_indices") or any(isinstance(value, Node) for value in settings.values()):  # type: ignore[union-attr]
            continue
        if _averages_whole_image(kind, settings, node):
            kind, settings = type(_global_pooling(len(shape_of(node)))), {"output_size": 1}
        if kind is nn.Hardtanh and (settings.get("min_val"), settings.get("max_val")) == (0, 6):
            kind, settings = nn.ReLU6, {}
        name = kind.__name__.lower()
        owner = owner_path(node)
        _replace(graph, node, free_path(graph, f"{owner}.{name}" if owner else name), kind(**settings))
    graph.graph.eliminate_dead_code()


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
        new = _replace(graph, node, path, _global_pooling(len(shape)))
        new.args = (source,)
        set_shape(new, source, (*shape[:2], *[1] * (len(shape) - 2)))
        if not keep:
            with graph.graph.inserting_after(new):
                flat = graph.graph.call_function(torch.flatten, (new, 1))
            new.replace_all_uses_with(flat, delete_user_cb=lambda user, flat=flat: user is not flat)
            set_shape(flat, source, shape[:2])


def _global_pooling(rank: int) -> nn.Module:
    return {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}[rank](1)


def _averages_whole_image(kind: type[nn.Module], settings: dict[str, Any], node: Node) -> bool:
    """Whether an average pooling function was called with the size of its input, as in `F.avg_pool2d(x, x.size(3))`."""
    if kind not in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d):
        return False
    size = shape_of(node.all_input_nodes[0])[2:]
    kernel = settings["kernel_size"] if isinstance(settings["kernel_size"], tuple) else (settings["kernel_size"],) * len(size)
    padding = settings.get("padding", 0)
    return tuple(kernel) == size and padding in (0, (0,) * len(size)) and settings.get("divisor_override") is None


def _mean_over_image(node: Node) -> bool | None:
    """Whether the reduced dimensions stay, if the node averages each channel over the whole image; else None."""
    if node.target not in ("mean", torch.mean, aten.mean.dim):
        return None
    bound = _bind(node, ("input", "dim", "keepdim"))
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
        if node.op != "call_function" or getattr(node.target, "__name__", "").split(".")[0] not in ("pad", "constant_pad_nd"):
            continue
        bound = _bind(node, ("input", "pad", "mode", "value"))
        pad, source = bound.get("pad"), bound["input"]
        rest = (bound.get("mode", "constant"), bound.get("value") or 0)
        if not isinstance(pad, list | tuple) or len(pad) != 6 or any(pad[:4]) or min(pad) < 0 or rest != ("constant", 0):
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
        new = _replace(graph, node, free_path(graph, f"{owner}.conv" if owner else "shortcut"), conv)
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


def _refuse_shared_parameters(graph: GraphModule) -> None:
    seen: dict[int, str] = {}
    for nodes in _calls(graph).values():
        module = cast(nn.Module, module_of(nodes[0]))
        path = str(nodes[0].target)
        if len(nodes) > 1 and any(True for _ in module.parameters()):
            raise CaptureError(
                f"every module with parameters must be called once, but {path!r} ({type(module).__name__}) is called "
                f"{len(nodes)} times: one change to it would change every call; give each call a module of its own "
                f"(copy.deepcopy(model.{path}))"
            )
        for name, parameter in module.named_parameters():
            first = seen.setdefault(id(parameter), f"{path}.{name}")
            if first != f"{path}.{name}":
                raise CaptureError(
                    f"every parameter must belong to one module, but {first!r} and '{path}.{name}' are the same tensor; "
                    "give each module its own copy"
                )


def _copy_shared_modules(graph: GraphModule) -> None:
    """The second and later calls of a module without parameters get copies of their own."""
    import copy

    for nodes in _calls(graph).values():
        for node in nodes[1:]:
            path = free_path(graph, str(node.target))
            put_module(graph, path, copy.deepcopy(cast(nn.Module, module_of(node))))
            node.target = path
