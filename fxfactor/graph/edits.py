"""The few edits that passes make: put a module, insert one behind a node, replace one by a chain."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node


def set_shape(node: Node, like: Node, shape: Iterable[int] | None = None) -> None:
    """Give `node` the dtype of `like` and a shape (that of `like` where none is given)."""
    meta = like.meta["tensor_meta"]
    node.meta["tensor_meta"] = meta if shape is None else meta._replace(shape=torch.Size(shape))


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
    output shape)` of `chain` is a node of its own calling `site.name`. For a site with several calls do the same at
    each of them, with the same modules.
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
