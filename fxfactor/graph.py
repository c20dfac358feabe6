"""The normal form of a captured network: its checks, its shapes, and the few edits that passes make.

The normal form is what `fxfactor.capture` gives and every pass must keep:

1. `graph.lint()` passes and no node is dead.
2. A module with parameters is called by exactly one node, a module without parameters is not shared.
   The one exception are activation quantizers: branches that meet share one on purpose.
3. Convolutions, linear layers, normalisations, activations and poolings are `call_module` nodes of their own.
4. Every `call_module` node knows the shape of what it computes (`shape_of`).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx import GraphModule, Interpreter, Node
from torch.fx.passes.shape_prop import TensorMetadata, _extract_tensor_metadata
from torch.utils._pytree import tree_map_only

from fxfactor.errors import GraphError, PreconditionError

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


def convolutions(graph: GraphModule) -> Iterator[tuple[Node, Convolution]]:
    """Every (not transposed) convolution with its node, in the order of execution."""
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, CONVOLUTIONS):
            yield node, module


def layers(graph: GraphModule) -> Iterator[tuple[Node, nn.Module]]:
    """Every convolution, transposed convolution and linear layer with its node, in the order of execution."""
    for node in graph.graph.nodes:
        module = module_of(node)
        if isinstance(module, LAYERS):
            yield node, module


def hidden_convolutions(graph: GraphModule) -> list[Node]:
    """Convolutions that stay function calls because their weight is computed from the network's input."""
    names = ("conv1d", "conv2d", "conv3d")
    return [node for node in graph.graph.nodes if node.op == "call_function" and function_name(node) in names]


def function_name(node: Node) -> str:
    """The bare name of the function that a `call_function` node calls: "conv2d" for F.conv2d and aten.conv2d.default."""
    target: Any = node.target
    name = target._schema.name if isinstance(target, torch._ops.OpOverload) else getattr(target, "__name__", "")
    return str(name).rpartition("::")[2]


@dataclass(frozen=True)
class Site:
    """A convolution or linear layer of the user's model: one node, or the two of a depth-factorized subgraph."""

    name: str
    nodes: tuple[Node, ...]
    modules: tuple[Any, ...]

    @property
    def factorized(self) -> bool:
        """Whether this is a spatial factor followed by a pointwise one."""
        return len(self.nodes) == 2


def sites(graph: GraphModule) -> dict[str, Site]:
    """Every site by its path in the user's model, in the order of execution.

    A grouped convolution at `site.spatial` that is followed by a 1×1 convolution at `site.pointwise` is one site.
    """
    found: dict[str, Site] = {}
    nodes = dict(layers(graph))
    by_path = {str(node.target): node for node in nodes}
    for node, module in nodes.items():
        path = str(node.target)
        parent, _, name = path.rpartition(".")
        spatial, pointwise = by_path.get(f"{parent}.spatial"), by_path.get(f"{parent}.pointwise")
        if name not in ("spatial", "pointwise") or spatial is None or pointwise is None:
            found[path] = Site(path, (node,), (module,))
        elif name == "spatial":
            found[parent] = Site(parent, (spatial, pointwise), (module, nodes[pointwise]))
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


def set_shape(node: Node, like: Node, shape: Iterable[int] | None = None) -> None:
    """Give `node` the dtype of `like` and a shape (that of `like` where none is given)."""
    meta = like.meta["tensor_meta"]
    node.meta["tensor_meta"] = meta if shape is None else meta._replace(shape=torch.Size(shape))


class _ShapePropagation(Interpreter):
    """Runs the graph on fake tensors; keeps shapes on the nodes and plain numbers in `numbers`."""

    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.numbers: dict[Node, Any] = {}
        self.failed_at: Node | None = None

    def run_node(self, node: Node) -> Any:
        self.failed_at = node
        value = super().run_node(node)
        if isinstance(value, Tensor):
            node.meta["tensor_meta"] = _extract_tensor_metadata(value)
        elif isinstance(value, int | float | torch.Size):
            self.numbers[node] = value
        return value


def propagate_shapes(graph: GraphModule, example_inputs: tuple[Any, ...]) -> dict[Node, Any]:
    """Record at every node the shape it has for `example_inputs`; nothing is computed (fake tensors).

    Returns the nodes whose value is a plain number or a size, with that value. Raises PreconditionError, naming the
    layer, where the inputs do not fit the network.
    """
    mode = FakeTensorMode(allow_non_fake_inputs=True)
    run = _ShapePropagation(graph)
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
            shape_of(node)
        form = _functional_form(node)
        if form is not None:
            raise GraphError(f"node {node.name!r} calls {form} as a function; the normal form has a module there")
    paths: dict[int, str] = {}
    for path, nodes in users.items():
        module = graph.get_submodule(path)
        if is_quantizer(module):
            continue
        if len(nodes) > 1:
            names = ", ".join(node.name for node in nodes)
            raise GraphError(f"module {path!r} ({type(module).__name__}) is called by {len(nodes)} nodes ({names})")
        if id(module) in paths:
            raise GraphError(f"modules {paths[id(module)]!r} and {path!r} are one object; give each its own copy")
        paths[id(module)] = path


def _functional_form(node: Node) -> str | None:
    """Name of the layer that a call_function node computes on parameters of its own, if it does."""
    functions = (nn.functional.conv1d, nn.functional.conv2d, nn.functional.conv3d, nn.functional.linear)
    if node.op != "call_function" or node.target not in functions or len(node.args) < 2:
        return None
    weight = node.args[1]
    return getattr(node.target, "__name__", str(node.target)) if is_parameter(weight) else None


def is_parameter(node: object) -> bool:
    """Whether `node` reads a parameter or buffer of the network."""
    return isinstance(node, Node) and node.op == "get_attr"


def is_quantizer(module: nn.Module | None) -> bool:
    """Whether `module` is a Brevitas activation quantizer (QuantIdentity, QuantReLU ...)."""
    from brevitas.nn.quant_layer import QuantNonLinearActLayer

    return isinstance(module, QuantNonLinearActLayer)


def free_path(graph: nn.Module, wanted: str) -> str:
    """`wanted`, or `wanted_1`, `wanted_2` ... : the first module path that nothing stands at."""
    path, count = wanted, 0
    while _occupied(graph, path):
        count += 1
        path = f"{wanted}_{count}"
    return path


def _occupied(graph: nn.Module, path: str) -> bool:
    owner: Any = graph
    for part in path.split("."):
        if not hasattr(owner, part):
            return False
        owner = getattr(owner, part)
    return True


def owner_path(node: Node) -> str:
    """Path of the module of the user's model in whose forward the node was traced; "" for the model itself."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path = stack[-1][0] if stack else ""
    return path if isinstance(path, str) and not path.startswith("_empty") else ""


def put_module(graph: nn.Module, path: str, module: nn.Module) -> None:
    """Place `module` at `path`, making plain containers on the way; what stood at `path` is replaced."""
    *parents, name = path.split(".")
    owner = graph
    for part in parents:
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    setattr(owner, name, module)


def insert_after(
    graph: GraphModule, node: Node, path: str, module: nn.Module, only: Collection[Node] | None = None
) -> Node:
    """`x → users` becomes `x → module → users`, for all users or `only` some; `module` keeps the shape of `x`."""
    put_module(graph, path, module)
    with graph.graph.inserting_after(node):
        new = graph.graph.call_module(path, (node,))
    node.replace_all_uses_with(new, delete_user_cb=lambda user: user is not new and (only is None or user in only))
    set_shape(new, node)
    return new


def replace_with_chain(
    graph: GraphModule, node: Node, chain: dict[str, tuple[nn.Module, tuple[int, ...]]]
) -> list[Node]:
    """One module call becomes a chain of calls: `site` → `site.first` → `site.second` …

    Before: `node` calls the module at `site`. After: a plain container stands at `site`, and each `name: (module,
    output shape)` of `chain` is a node of its own calling `site.name`.
    """
    site = str(node.target)
    put_module(graph, site, nn.Module())
    previous, nodes = node.args[0], []
    with graph.graph.inserting_before(node):
        for name, (module, shape) in chain.items():
            put_module(graph, f"{site}.{name}", module)
            new = graph.graph.call_module(f"{site}.{name}", (previous,))
            set_shape(new, node, shape)
            nodes.append(new)
            previous = new
    node.replace_all_uses_with(nodes[-1])
    graph.graph.erase_node(node)
    return nodes


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
