"""Which tensors meet, and which quantizer a tensor went through: questions about the graph, not about numbers.

A *transparent* operation passes values on as they are (max pooling, flatten, split ...), so a tensor behind it is
quantized if the one before it was. A *join* brings branches together: an addition or a concatenation.
A *source* is where a tensor's values were computed, seen through transparent operations and concatenations.
"""

from __future__ import annotations

import torch
from torch import nn
from torch.fx import Node

from fxfactor.graph.questions import LAYERS, function_name, is_quantizer, module_of
from fxfactor.graph.tracing import is_random_drop

aten = torch.ops.aten

_TRANSPARENT_MODULES = (
    *(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d, nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d),
    *(nn.Flatten, nn.Unflatten, nn.Identity, nn.ChannelShuffle, nn.PixelShuffle, nn.PixelUnshuffle),
    *(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d),
)
_TRANSPARENT_NAMES = frozenset(
    [
        "flatten",
        "view",
        "reshape",
        "permute",
        "transpose",
        "contiguous",
        "squeeze",
        "unsqueeze",
        "chunk",
        "split",
        "tensor_split",
        "unbind",
        "getitem",
        "narrow",
        "select",
        "slice",
        "clone",
        "swapaxes",
        "movedim",
        "expand",
        "unflatten",
        "channel_shuffle",
        "pixel_shuffle",
        "max_pool2d",
        "T",
        "split_with_sizes",
        "stochastic_depth",
    ]
)
_SPLITS = frozenset(["chunk", "split", "split_with_sizes", "tensor_split", "unbind", "size", "shape"])
"""What passes its values on in several pieces, so that the items of what it gives have none of their own."""
_ADDITIONS = frozenset(["add", "sub"])
_CONCATENATIONS = frozenset(["cat", "concat", "concatenate", "stack"])
_AVERAGES = (
    *(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d),
    *(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d),
)
_NEVER_NEGATIVE = (nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Softmax, nn.Softplus)
RELUS = (nn.ReLU, nn.ReLU6)


def operation_name(node: Node) -> str:
    """The bare name of a function or method call: "add" for operator.add, torch.add, Tensor.add and aten.add.Tensor."""
    if node.op == "call_method":
        return str(node.target)
    return function_name(node) if node.op == "call_function" else ""


def is_transparent(node: Node) -> bool:
    """Whether the node passes the values of its input on as they are."""
    module = module_of(node)
    if module is not None:
        return isinstance(module, _TRANSPARENT_MODULES) or is_random_drop(module)
    return operation_name(node) in _TRANSPARENT_NAMES and bool(node.all_input_nodes) and not _is_item_of_result(node)


def _is_item_of_result(node: Node) -> bool:
    """Whether the node takes one of several results that were computed, as in `values, positions = torch.max(x, 1)`."""
    if operation_name(node) != "getitem":
        return False
    source = node.all_input_nodes[0]
    return "tensor_meta" not in source.meta and not _is_tuple(source)


def tensor_inputs(node: Node) -> list[Node]:
    """The inputs of a node that are tensors computed from the network's input, each once."""
    return [x for x in node.all_input_nodes if ("tensor_meta" in x.meta and x.op != "get_attr") or _is_tuple(x)]


def _is_tuple(node: Node) -> bool:
    return node.op != "call_module" and (
        operation_name(node) in _SPLITS
        or (operation_name(node) == "getitem" and "tensor_meta" not in node.meta and _is_tuple(node.all_input_nodes[0]))
    )


def is_concatenation(node: Node) -> bool:
    """Whether the node joins tensors side by side."""
    return operation_name(node) in _CONCATENATIONS and node.op != "call_module"


def is_addition(node: Node) -> bool:
    """Whether the node adds (or subtracts) two tensors that both depend on the network's input."""
    return operation_name(node) in _ADDITIONS and len(tensor_inputs(node)) > 1


def is_join(node: Node) -> bool:
    """Whether branches meet at the node."""
    return is_addition(node) or is_concatenation(node)


def is_average_pooling(node: Node) -> bool:
    """Whether the node averages over the image."""
    return isinstance(module_of(node), _AVERAGES)


def is_layer(node: Node) -> bool:
    """Whether the node calls a convolution or a linear layer."""
    return isinstance(module_of(node), LAYERS)


def sources(node: Node) -> list[Node]:
    """Where the values of a tensor were computed; several where a concatenation stands between."""
    found: dict[Node, None] = {}
    waiting, seen = [node], set()
    while waiting:
        current = waiting.pop()
        if current in seen:
            continue
        seen.add(current)
        if is_transparent(current):
            waiting.append(current.all_input_nodes[0])
        elif is_concatenation(current):
            waiting.extend(tensor_inputs(current))
        else:
            found[current] = None
    return sorted(found)


def never_negative(node: Node) -> bool:
    """Whether no value of the tensor can be below zero, judged from the operations alone."""
    module = module_of(node)
    if isinstance(module, _NEVER_NEGATIVE):
        return True
    if is_average_pooling(node) or is_transparent(node):
        return never_negative(node.all_input_nodes[0])
    if is_concatenation(node) or (is_addition(node) and operation_name(node) == "add"):
        return all(never_negative(x) for x in tensor_inputs(node))
    return False


def consumers(node: Node, beyond_joins: bool = True) -> list[Node]:
    """Who works on the values of a tensor: its users, seen through transparent operations and concatenations.

    With `beyond_joins=False` a concatenation is a user like any other, and what stands behind it is not looked at.
    """
    found: dict[Node, None] = {}
    waiting, seen = list(node.users), set()
    while waiting:
        user = waiting.pop()
        if user in seen:
            continue
        seen.add(user)
        if is_transparent(user) or (is_concatenation(user) and beyond_joins):
            waiting.extend(user.users)
        if not is_transparent(user):
            found[user] = None
    return list(found)


def quantizer_of(node: Node) -> nn.Module | None:
    """The activation quantizer that a tensor went through last, if all its sources went through the same one."""
    found = {module_of(source) for source in sources(node)}
    (module,) = found if len(found) == 1 else (None,)
    return module if is_quantizer(module) else None


def input_quantizer(node: Node) -> nn.Module | None:
    """The activation quantizer on the first input of a node, if there is one."""
    inputs = tensor_inputs(node)
    return quantizer_of(inputs[0]) if inputs else None
