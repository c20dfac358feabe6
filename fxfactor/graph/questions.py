"""What passes ask a graph: its layers, its sites, what a node calls, the shape that it computes."""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.passes.shape_prop import TensorMetadata

from fxfactor.errors import GraphError

if TYPE_CHECKING:
    import networkx


CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
LAYERS = (*CONVOLUTIONS, *TRANSPOSED, nn.Linear)
Convolution = nn.Conv1d | nn.Conv2d | nn.Conv3d


def module_of(node: object) -> nn.Module | None:
    """The module that a `call_module` node calls; None for every other node and for constants."""
    if not isinstance(node, Node) or node.op != "call_module":
        return None
    owner = node.graph.owning_module
    return owner.get_submodule(str(node.target)) if owner is not None else None


def calls_of(node: Node) -> list[Node]:
    """All nodes that call the module that `node` calls, in the order of execution."""
    return [each for each in node.graph.nodes if each.op == "call_module" and each.target == node.target]


def convolutions(graph: GraphModule) -> Iterator[tuple[Node, Convolution]]:
    """Every (not transposed) convolution with its node, in the order of execution."""
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, CONVOLUTIONS):
            yield node, module


def layers(graph: GraphModule) -> Iterator[tuple[Node, nn.Module]]:
    """Every convolution, transposed convolution and linear layer with its node, in the order of execution.

    A layer that is called several times comes once for each call.
    """
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, LAYERS):
            yield node, module


def hidden_convolutions(graph: GraphModule) -> list[Node]:
    """Convolutions that stay function calls because their weight is computed from the network's input."""
    names = ("conv1d", "conv2d", "conv3d")
    return [node for node in graph.graph.nodes if node.op == "call_function" and function_name(node) in names]


_PRODUCTS = frozenset(
    ["einsum", "matmul", "mm", "bmm", "addmm", "baddbmm", "tensordot", "linear", "bilinear", "deform_conv2d"]
    + [f"conv{transpose}{n}d" for transpose in ("", "_transpose") for n in (1, 2, 3)]
)
"""Functions that multiply and add; with a parameter they do a layer's work."""


def kept_whole(graph: GraphModule) -> dict[str, str]:
    """What does a layer's work in no form that passes know, by path or node name: it stays as it is, uncounted.

    Modules with matrices of their own (attention, recurrent layers), and products of functions with a parameter.
    """
    found: dict[str, str] = {}
    for node in graph.graph.nodes:
        module = module_of(node)
        if module is not None:
            if not isinstance(module, LAYERS) and any(parameter.dim() > 1 for parameter in module.parameters()):
                found[str(node.target)] = type(module).__name__
        elif _name_called(node) in _PRODUCTS and any(_is_trained(graph, each) for each in node.all_input_nodes):
            found[owner_path(node) or node.name] = _name_called(node)
    return found


def _name_called(node: Node) -> str:
    return function_name(node) if node.op == "call_function" else str(node.target) if node.op == "call_method" else ""


def _is_trained(graph: GraphModule, node: Node) -> bool:
    """Whether a value is computed from parameters and from nothing else."""
    if is_parameter(node):
        return isinstance(operator.attrgetter(str(node.target))(graph), nn.Parameter)
    reads = node.all_input_nodes
    return node.op in ("call_function", "call_method") and bool(reads) and all(_is_trained(graph, x) for x in reads)


def function_name(node: Node) -> str:
    """The bare name of the function that a `call_function` node calls: "conv2d" for F.conv2d and aten.conv2d.default."""
    target: Any = node.target
    name = target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    return str(name).rpartition("::")[2]


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer of the user's model: one node, or the two of a depth-factorized subgraph.

    `nodes` are those of the first call, `further` those of the later calls of a layer that is called more than once.
    """

    name: str
    nodes: tuple[Node, ...]
    modules: tuple[Any, ...]
    further: tuple[tuple[Node, ...], ...] = ()

    @property
    def calls(self) -> tuple[tuple[Node, ...], ...]:
        """The nodes of every call, in the order of execution."""
        return (self.nodes, *self.further)

    @property
    def factorized(self) -> bool:
        """Whether this is a spatial factor followed by a pointwise one."""
        return len(self.nodes) == 2


def sites(graph: GraphModule) -> dict[str, Site]:
    """Every site by its path in the user's model, in the order of its first call.

    A grouped convolution at `site.spatial` that is followed by a 1×1 convolution at `site.pointwise` is one site.
    """
    found: dict[str, Site] = {}
    calls: dict[str, list[Node]] = {}
    modules: dict[str, nn.Module] = {}
    for node, module in layers(graph):
        calls.setdefault(str(node.target), []).append(node)
        modules[str(node.target)] = module
    for path, module in modules.items():
        parent, _, name = path.rpartition(".")
        spatial, pointwise = f"{parent}.spatial", f"{parent}.pointwise"
        if name not in ("spatial", "pointwise") or not {spatial, pointwise} <= modules.keys():
            first, *further = ((node,) for node in calls[path])
            found[path] = Site(path, first, (module,), tuple(further))
        elif name == "spatial":
            pair, *pairs = zip(calls[spatial], calls[pointwise], strict=True)
            found[parent] = Site(parent, pair, (module, modules[pointwise]), tuple(pairs))
    return found


def placeholders(graph: GraphModule) -> list[Node]:
    """The inputs of the graph, in the order of the call."""
    return [node for node in graph.graph.nodes if node.op == "placeholder"]


def shape_of(node: Node) -> tuple[int, ...]:
    """Shape of the tensor that `node` computes, as at capture. Raises GraphError where it is not known."""
    meta = node.meta.get("tensor_meta")
    if not isinstance(meta, TensorMetadata):
        raise GraphError(
            f"node {node.name!r} ({node.op} {node.target}) has no known shape; run propagate_shapes(graph)"
        )
    return tuple(meta.shape)


def is_parameter(node: object) -> bool:
    """Whether `node` reads a parameter or buffer of the network."""
    return isinstance(node, Node) and node.op == "get_attr"


def is_quantizer(module: nn.Module | None) -> bool:
    """Whether `module` is a Brevitas activation quantizer (QuantIdentity, QuantReLU ...)."""
    from brevitas.nn.quant_layer import QuantNonLinearActLayer

    return isinstance(module, QuantNonLinearActLayer)


def owner_path(node: Node) -> str:
    """Path of the module of the user's model in whose forward the node was traced; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path if isinstance(path, str) and not path.startswith("_empty") else ""


def to_networkx(graph: GraphModule) -> networkx.DiGraph:
    """The graph as a networkx.DiGraph: nodes by name with `op`, `target`, `module` (class name) and `shape`."""
    import networkx

    result = networkx.DiGraph()
    for node in graph.graph.nodes:
        module = module_of(node)
        meta = node.meta.get("tensor_meta")
        shape = tuple(meta.shape) if isinstance(meta, TensorMetadata) else None
        kind = type(module).__name__ if module is not None else None
        result.add_node(node.name, op=node.op, target=str(node.target), module=kind, shape=shape)
        result.add_edges_from((source.name, node.name) for source in node.all_input_nodes)
    return result


BatchNorm = nn.modules.batchnorm._BatchNorm


def batch_norm_behind(site: Site) -> nn.Module | None:
    """The batch norm that every output of the site goes to, and nothing else does; None where there is none."""
    behind = {user for call in site.calls for user in call[-1].users}
    norm = module_of(next(iter(behind), None))
    if not isinstance(norm, BatchNorm) or norm.running_mean is None or len(behind) != len(site.calls):
        return None
    calls = {node for node in site.nodes[0].graph.nodes if module_of(node) is norm}
    return norm if calls == behind else None
