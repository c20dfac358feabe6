"""Layers that a network calls as functions become modules: `F.conv2d(x, self.weight)`, `F.relu(x)`, ATen operators."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.fx.node import map_aggregate
from torch.nn import functional as F

from fxfactor.graph.dataflow import operation_name
from fxfactor.graph.edits import free_path, put_module
from fxfactor.graph.questions import is_parameter, owner_path, shape_of
from fxfactor.graph.tracing import MODE_OF

aten = torch.ops.aten

_POOL = ("kernel_size", "stride", "padding")
_SIZE = ("output_size",)
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
    **dict.fromkeys((F.adaptive_avg_pool1d, aten.adaptive_avg_pool1d.default), (nn.AdaptiveAvgPool1d, _SIZE)),
    **dict.fromkeys((F.adaptive_avg_pool2d, aten.adaptive_avg_pool2d.default), (nn.AdaptiveAvgPool2d, _SIZE)),
    **dict.fromkeys((F.adaptive_avg_pool3d, aten.adaptive_avg_pool3d.default), (nn.AdaptiveAvgPool3d, _SIZE)),
    F.adaptive_max_pool2d: (nn.AdaptiveMaxPool2d, _SIZE),
}

# Function → the module that computes it, and the probability it has where none is given.
_DROPOUTS: dict[str, tuple[type[Any], float]] = {
    "dropout": (nn.Dropout, 0.5),
    "dropout1d": (nn.Dropout1d, 0.5),
    "dropout2d": (nn.Dropout2d, 0.5),
    "dropout3d": (nn.Dropout3d, 0.5),
    "alpha_dropout": (nn.AlphaDropout, 0.5),
    "feature_alpha_dropout": (nn.FeatureAlphaDropout, 0.5),
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

COMPUTED = "fxfactor.computed_weights"
"""Key of `graph.meta` with the paths of layers whose weight the model computes in every call, from parameters alone (a
standardised weight, say), and these parameters. The layer has what came out at capture for its weight, and trains that."""

_FACTORIES = ("arange", "eye", "full", "linspace", "ones", "tensor", "zeros")
"""Functions that make the same tensor every time."""


def bind(node: Node, names: tuple[str, ...]) -> dict[str, Any]:
    """Arguments of a call by name; positions beyond `names` are dropped."""
    return {**dict(zip(names, node.args, strict=False)), **node.kwargs}


def replace_by_module(graph: GraphModule, node: Node, path: str, module: nn.Module) -> Node:
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


def lift_layers(graph: GraphModule, numbers: dict[Node, Any]) -> None:
    """Convolutions, linear layers and normalisations called as functions on parameters become modules.

    Settings that are sizes known at capture (`groups=x.shape[1]`) become numbers. Calls on the same parameters with the
    same settings become calls of one module.
    """
    beside: set[str] = set()
    seen: dict[Any, int] = {}
    lifted: dict[str, list[tuple[Node, Any, nn.Module]]] = {}
    for node in list(graph.graph.nodes):
        if node.op == "call_function" and (found := _lift_layer(graph, node, numbers, seen)) is not None:
            weight, module, key = found
            lifted.setdefault(key, []).append((node, weight, module))
    for calls in lifted.values():
        path, (_, _, module) = _layer_path(graph, [(node, weight) for node, weight, _ in calls], calls[0][2]), calls[0]
        for node, weight, _ in calls:
            source = node.args[0] if node.args else node.kwargs["input"]
            read = set().union(*(ancestors(each) for each in node.all_input_nodes if each is not source))
            replace_by_module(graph, node, path, module)
            if not is_parameter(weight):
                origin = {str(each.target) for each in read if is_parameter(each)}
                graph.meta[COMPUTED] = {**graph.meta.get(COMPUTED, {}), path: origin | {f"{path}.weight"}}
            erase_unused(graph, read)
            if is_parameter(weight) and f"{path}.weight" != str(weight.target):
                beside.add(str(weight.target).rpartition(".")[0])
    graph.graph.eliminate_dead_code()
    for owner in sorted(beside - {""}):
        _leave_children_only(graph, owner)


def erase_unused(graph: GraphModule, nodes: set[Node]) -> None:
    """Erase those of `nodes` that nothing uses: what they read may be gone, and torch ≥ 2.14 refuses such graphs."""
    for node in sorted(nodes, reverse=True):
        if not node.users:
            graph.graph.erase_node(node)


def _leave_children_only(graph: GraphModule, owner: str) -> None:
    """What held a layer's tensors becomes a plain container, if none of them is read any more: the layer has them."""
    module = graph.get_submodule(owner)
    own = {f"{owner}.{name}" for name in (*module._parameters, *module._buffers)} | {owner}
    if any(node.op in ("get_attr", "call_module") and str(node.target) in own for node in graph.graph.nodes):
        return
    container = nn.Module()
    container.training = module.training
    for name, child in module.named_children():
        container.add_module(name, child)
    put_module(graph, owner, container)


def _lift_layer(
    graph: GraphModule, node: Node, numbers: dict[Node, Any], seen: dict[Any, int]
) -> tuple[Any, nn.Module, str] | None:
    """The node that reads the weight, the module that computes what the node does, and a text that is the same for calls
    that one module can stand for (`seen`: see `_expression`); None if it is no layer of ours."""
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
    bound = bind(node, names)
    tensors = {
        key: value_without_input(graph, bound.get(key), numbers)
        for key in ("weight", "bias", "running_mean", "running_var")
    }
    missing = [key for key in tensors if isinstance(bound.get(key), Node) and tensors[key] is None]
    fixed = {
        n: number for n, number in numbers.items() if n in node.all_input_nodes and not _reads_batch_size(n, numbers)
    }
    settings = {key: _number(value, fixed) for key, value in bound.items() if key not in tensors and key != "input"}
    if missing or any(isinstance(value, Node) for value in settings.values()) or settings.get("training") is True:
        return None  # its weights are computed from the input: not a layer
    if tensors["weight"] is None and kind is not nn.LayerNorm and not issubclass(kind, nn.modules.batchnorm._BatchNorm):
        return None
    module = _build_layer(kind, tensors, settings)
    for key in ("weight", "bias"):
        if tensors[key] is not None and not isinstance(tensors[key], nn.Parameter):
            getattr(module, key).requires_grad_(_is_trained(graph, bound[key], numbers))
    read = {key: _expression(graph, bound.get(key), numbers, seen) for key in tensors}
    return bound.get("weight"), module, repr((kind.__name__, read, sorted(settings.items())))


def _expression(graph: GraphModule, node: Any, numbers: dict[Node, Any], seen: dict[Any, int]) -> Any:
    """A number for what a value is computed by and from, down to the tensors that it reads; the same number where it is
    the same computation. `seen` holds the numbers that were given so far."""
    if isinstance(node, Tensor):
        return f"tensor {id(node)}"
    if not isinstance(node, Node) or node in seen:
        return seen.get(node) if isinstance(node, Node) else node
    if is_parameter(node):
        text = f"tensor {id(operator.attrgetter(str(node.target))(graph))}"
    elif _asks_about(node, numbers):
        text = f"constant {value_without_input(graph, node, numbers)}"
    else:
        inputs: dict[Any, Any] = {each: _expression(graph, each, numbers, seen) for each in node.all_input_nodes}
        args = map_aggregate((node.args, dict(node.kwargs)), lambda x: f"value {inputs[x]}" if x in inputs else x)
        text = repr((node.op, node.target, args))
    seen[node] = seen.setdefault(text, len(seen))
    return seen[node]


def _asks_about(node: Node, numbers: dict[Node, Any]) -> bool:
    """Whether a value tells of the size, type or place of a tensor only, and nothing of what is in it."""
    return node in numbers or (node.target is getattr and node.args[1] in ("dtype", "device"))


def _is_trained(graph: GraphModule, node: Any, numbers: dict[Node, Any]) -> bool:
    """Whether a tensor is computed from a parameter that is trained; a buffer, say a fixed filter, is not."""
    if not isinstance(node, Node) or _asks_about(node, numbers):
        return False
    if is_parameter(node):
        return bool(operator.attrgetter(str(node.target))(graph).requires_grad)
    return any(_is_trained(graph, each, numbers) for each in node.all_input_nodes)


def value_without_input(graph: GraphModule, node: Any, numbers: dict[Node, Any]) -> Any:
    """Value of a node that depends on parameters, constants and fixed sizes only (a standardised weight, say), or None.

    `numbers` are the sizes known at capture; those of the batch are not fixed.
    """
    if not isinstance(node, Node):
        return node if isinstance(node, Tensor) else None
    if isinstance(numbers.get(node), int | float) and not _reads_batch_size(node, numbers):
        return numbers[node]
    if node.target is getattr and node.args[1] == "dtype" and "tensor_meta" in cast(Node, node.args[0]).meta:
        return cast(Node, node.args[0]).meta["tensor_meta"].dtype
    if node.target is getattr and node.args[1] == "device":
        return next(graph.parameters()).device
    if is_parameter(node):
        return cast(Tensor, operator.attrgetter(str(node.target))(graph))
    made = bool(node.all_input_nodes) or operation_name(node) in _FACTORIES
    if node.op not in ("call_function", "call_method") or not made:
        return None
    values: dict[Any, Any] = {source: value_without_input(graph, source, numbers) for source in node.all_input_nodes}
    if any(value is None for value in values.values()):
        return None
    args, kwargs = cast(Any, map_aggregate((node.args, node.kwargs), lambda x: values.get(x, x)))
    with torch.no_grad():
        if node.op == "call_method":
            return getattr(args[0], str(node.target))(*args[1:], **kwargs)
        return cast(Callable[..., Any], node.target)(*args, **kwargs)


def _reads_batch_size(node: Node, numbers: dict[Node, Any]) -> bool:
    """Whether a number is computed from the first size of a tensor."""
    if node.op == "call_method" and node.target == "size" and node.args[1:] == (0,):
        return True
    if (
        node.target is operator.getitem
        and node.args[1] == 0
        and isinstance(numbers.get(cast(Node, node.args[0])), tuple)
    ):
        return True
    return any(_reads_batch_size(each, numbers) for each in node.all_input_nodes if each in numbers)


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


def _layer_path(graph: GraphModule, calls: list[tuple[Node, Any]], module: nn.Module) -> str:
    """`a.b` for a layer whose weight is `a.b.weight` and alone there; else a new name beside it.

    `calls`: the nodes that the layer will stand for, each with the node that reads its weight.
    """
    node, weight = calls[0]
    kind = type(module).__name__.lower()
    owner = str(weight.target).rpartition(".")[0] if is_parameter(weight) else owner_path(node)
    prefix = f"{owner}."
    own: set[Node] = set()
    for call, read in calls:
        inputs = {n for n in call.all_input_nodes if n.op == "get_attr" or not str(n.target).startswith(prefix)}
        own |= ancestors(read) | inputs
    # read by others as well: a layer in its place would change what they read
    same = {call for call, _ in calls}
    own = {n for n in own if n.op != "get_attr" or all(user in own or user in same for user in n.users)}
    others = (n for n in graph.graph.nodes if n.op in ("get_attr", "call_module") and n not in own)
    if owner and not any(str(other.target).startswith(prefix) or other.target == owner for other in others):
        return owner
    return free_path(graph, f"{owner}.{kind}" if owner else kind)


def ancestors(node: Any) -> set[Node]:
    """The node and all that it is computed from, where it is a node."""
    found: set[Node] = set()
    waiting = [node] if isinstance(node, Node) else []
    while waiting:
        current = waiting.pop()
        if current not in found:
            found.add(current)
            waiting.extend(current.all_input_nodes)
    return found


def is_dropout(node: Node) -> bool:
    """Whether the node calls one of the functions that drop values at random in training."""
    return node.op == "call_function" and operation_name(node) in _DROPOUTS


def lift_dropouts(graph: GraphModule) -> None:
    """`F.dropout(x, p, self.training)` becomes an nn.Dropout below the module whose mode it asks for."""
    for node in list(graph.graph.nodes):
        if MODE_OF not in node.meta or not is_dropout(node):
            continue
        kind, default = _DROPOUTS[operation_name(node)]
        probability = bind(node, ("input", "p")).get("p", default)
        if isinstance(probability, Node):
            continue
        owner, name = node.meta[MODE_OF], kind.__name__.lower()
        path = free_path(graph, f"{owner}.{name}" if owner else name)
        replace_by_module(graph, node, path, kind(probability))


def lift_stateless(graph: GraphModule, numbers: dict[Node, Any]) -> None:
    """Activations and poolings called as functions become modules; sizes known at capture become numbers."""
    for node in list(graph.graph.nodes):
        form = _STATELESS.get(cast(Any, node.target)) if node.op in ("call_function", "call_method") else None
        if form is None:
            continue
        kind, names = form
        bound = bind(node, ("input", *names))
        settings = {key: _number(value, numbers) for key, value in bound.items() if key in names}
        settings = {key: value for key, value in settings.items() if value is not None and value != ()}
        if bound.get("return_indices") or any(isinstance(value, Node) for value in settings.values()):
            continue
        if _averages_whole_image(kind, settings, node):
            kind, settings = type(global_pooling(len(shape_of(node)))), {"output_size": 1}
        if kind is nn.Hardtanh and (settings.get("min_val"), settings.get("max_val")) == (0, 6):
            kind, settings = nn.ReLU6, {}
        name = kind.__name__.lower()
        owner = owner_path(node)
        replace_by_module(graph, node, free_path(graph, f"{owner}.{name}" if owner else name), kind(**settings))
    graph.graph.eliminate_dead_code()


def _number(value: Any, numbers: dict[Node, Any]) -> Any:
    """A setting with the sizes that are known at capture filled in."""
    if isinstance(value, list | tuple):
        return tuple(_number(each, numbers) for each in value)
    return _unwrap(numbers.get(value, value)) if isinstance(value, Node) else value


def _averages_whole_image(kind: type[nn.Module], settings: dict[str, Any], node: Node) -> bool:
    """Whether an average pooling function was called with the size of its input, as in `F.avg_pool2d(x, x.size(3))`."""
    if kind not in (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d):
        return False
    size = shape_of(node.all_input_nodes[0])[2:]
    kernel, padding = settings["kernel_size"], settings.get("padding", 0)
    whole = kernel == size or (isinstance(kernel, int) and {kernel} == set(size))
    return whole and padding in (0, (0,) * len(size)) and settings.get("divisor_override") is None


def global_pooling(rank: int) -> nn.Module:
    return {3: nn.AdaptiveAvgPool1d, 4: nn.AdaptiveAvgPool2d, 5: nn.AdaptiveAvgPool3d}[rank](1)
