"""The network as a picture: layers, joins and poolings, before beside after, drawn from the same networkx graph."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import networkx
from torch.fx import GraphModule, Node

from fxfactor.graph.dataflow import input_quantizer, is_average_pooling, is_join, operation_name
from fxfactor.graph.questions import layers, module_of, placeholders, shape_of, sites
from fxfactor.quantization.brevitas_layers import bits_of, weight_bits_of
from fxfactor.report.style import INK, new_figure, styled

if TYPE_CHECKING:
    from matplotlib.figure import Figure


_COLORS = {"dense": "#2f7fc1", "spatial": "#e07b29", "pointwise": "#4f9d69", "linear": "#8a63b8", "join": "#8296ab",
           "pooling": "#8296ab", "input": "#8296ab", "output": "#8296ab"}  # fmt: skip
_NAMES = {
    "dense": "in one piece",
    "spatial": "spatial factor",
    "pointwise": "pointwise factor, 1×1",
    "linear": "linear",
}


@dataclass(frozen=True)
class Box:
    """What is drawn for a node: the text in it and its kind, a key of the colours."""

    text: str
    kind: str


def outline(graph: GraphModule) -> networkx.DiGraph:
    """The graph of input, layers, joins, poolings and output, each with its `Box`; all between is seen through."""
    boxes = _boxes(graph)
    result = networkx.DiGraph()
    reaching: dict[Node, list[str]] = {}
    for node in graph.graph.nodes:
        sources = list(dict.fromkeys(name for x in node.all_input_nodes for name in reaching.get(x, [])))
        if node in boxes:
            result.add_node(node.name, box=boxes[node])
            result.add_edges_from((source, node.name) for source in sources)
            sources = [node.name]
        reaching[node] = sources
    return result


def _boxes(graph: GraphModule) -> dict[Node, Box]:
    boxes = {node: Box("×".join(map(str, shape_of(node)[1:])), "input") for node in placeholders(graph)}
    kinds: dict[Node, str] = {}
    for site in sites(graph).values():
        names = ("spatial", "pointwise") if site.factorized else ("dense",)
        kinds |= {node: kind for call in site.calls for node, kind in zip(call, names, strict=True)}
    for node, layer in layers(graph):
        kind = kinds[node] if hasattr(layer, "kernel_size") else "linear"
        boxes[node] = Box(_text(node, layer, kind), kind)
    for node in graph.graph.nodes:
        if node.op == "output":
            boxes[node] = Box("output", "output")
        elif is_join(node):
            boxes[node] = Box("+" if operation_name(node) in ("add", "sub") else "cat", "join")
        elif is_average_pooling(node) or "MaxPool" in type(module_of(node)).__name__:
            boxes[node] = Box("pool", "pooling")
    return boxes


def _text(node: Node, layer: Any, kind: str) -> str:
    if kind == "linear":
        what = f"{layer.in_features}→{layer.out_features}"
    else:
        kernel = "" if kind == "pointwise" else " " + "×".join(map(str, layer.kernel_size))
        groups = f" g{layer.groups}" if layer.groups > 1 else ""
        stride = f" /{layer.stride[0]}" if max(layer.stride) > 1 else ""
        what = f"{layer.in_channels}→{layer.out_channels}{kernel}{groups}{stride}"
    weight, activation = weight_bits_of(layer), bits_of(input_quantizer(node))
    bits = f"  w{weight or 32} a{activation or 32}" if weight or activation else ""
    name = str(node.target).removesuffix(f".{kind}")
    return f"{name}  {what}{bits}" if kind != "pointwise" else f"{what}{bits}"


def architecture(before: GraphModule, after: GraphModule) -> Figure:
    """The network before (left) and after (right), top to bottom: what was split, into how many groups, at how many bits.

    A box reads `site  in→out kernel groups stride  weight bits, activation bits`. A layer and its factors stand side by side.
    """
    outlines = [outline(before), outline(after)]
    rows = [_rows(each) for each in outlines]
    partner = [rows[1].get(name, rows[1].get(f"{name}_spatial")) for name in outlines[0]]
    if None not in partner:
        rows[0] = {name: row for name, row in zip(outlines[0], partner, strict=True) if row is not None}
    depth = 1 + max(max(each.values()) for each in rows)
    with styled():
        figure, axes = new_figure(10.5, 1.0 + 0.27 * depth, 1, 2)
        for axis, each, row, title in zip(axes[0], outlines, rows, ("before", "after"), strict=True):
            _draw(axis, each, row, depth)
            axis.set_title(title)
        used = {data["box"].kind for each in outlines for _, data in each.nodes(data=True)}
        handles = [_patch(_COLORS[kind], name) for kind, name in _NAMES.items() if kind in used]
        figure.legend(handles=handles, loc="outside upper center", ncols=4)
    return figure


def _patch(color: str, name: str) -> Any:
    from matplotlib.patches import Patch

    return Patch(facecolor=color, label=name)


def _rows(graph: networkx.DiGraph) -> dict[str, int]:
    """The row of every node: how many nodes at most lie on a way to it."""
    return {name: row for row, names in enumerate(networkx.topological_generations(graph)) for name in names}


def _draw(axis: Any, graph: networkx.DiGraph, rows: dict[str, int], depth: int) -> None:
    networkx.set_node_attributes(graph, rows, "row")
    layout = networkx.multipartite_layout(graph, subset_key="row", align="horizontal")
    widest = max(Counter(rows.values()).values())
    places = {name: (_column(graph, name, layout), -rows[name]) for name in graph}
    for source, target in graph.edges:
        nearest = max(graph.predecessors(target), key=rows.__getitem__)
        _edge(axis, places[source], places[target], straight=source == nearest)
    for name, (x, y) in places.items():
        box = graph.nodes[name]["box"]
        axis.text(
            x, y, box.text, ha="center", va="center", fontsize=6.6, color="white", zorder=3,
            bbox={"boxstyle": "round,pad=0.28", "facecolor": _COLORS[box.kind], "edgecolor": "none"},
        )  # fmt: skip
    axis.set_xlim(-0.5 * max(widest, 2), 0.5 * max(widest, 2))
    axis.set_ylim(-depth + 0.3, 0.7)
    axis.set_axis_off()


def _column(graph: networkx.DiGraph, name: str, layout: dict[str, tuple[float, float]]) -> float:
    """Where a node stands in its row: the layout's order, spread around the middle."""
    row = graph.nodes[name]["row"]
    beside = [other for other in graph if graph.nodes[other]["row"] == row]
    beside.sort(key=lambda other: -layout[other][0])
    return beside.index(name) - (len(beside) - 1) / 2


def _edge(axis: Any, source: tuple[float, float], target: tuple[float, float], straight: bool) -> None:
    """An arrow; one that jumps over boxes goes around them."""
    (x, y), (to_x, to_y) = source, target
    if not straight:
        aside = x if x != to_x else x + 0.43
        axis.plot([x, aside, aside], [y, y - 0.45, to_y + 0.45], color=INK, alpha=0.5, linewidth=0.8, zorder=1)
        x, y = aside, to_y + 0.45
    axis.annotate(
        "", target, (x, y), zorder=1,
        arrowprops={"arrowstyle": "-|>,head_width=0.16,head_length=0.3", "color": INK, "alpha": 0.5, "linewidth": 0.8,
                    "shrinkA": 0, "shrinkB": 7},
    )  # fmt: skip
