"""Quantize: Brevitas layers take the place of the plain ones, and quantizers stand where tensors need one.

Which tensors need one, and which share one, is decided on the graph before anything is edited (`_Placement`): sources
of values (`fxfactor.graph.dataflow`) are the nodes of a networkx graph, an edge says that two of them meet in an addition or
concatenation, and each connected component shares one quantizer.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import torch
from torch import nn
from torch.fx import GraphModule, Node

from fxfactor.errors import PreconditionError
from fxfactor.graph import free_path, insert_after, is_quantizer, module_of, owner_path, put_module, sites
from fxfactor.graph.dataflow import (
    RELUS,
    consumers,
    input_quantizer,
    is_average_pooling,
    is_concatenation,
    is_join,
    is_transparent,
    never_negative,
    operation_name,
    sources,
    tensor_inputs,
)
from fxfactor.pipeline import Change, Pass, Skip
from fxfactor.plan.ladder import check_bits, check_join_bits, check_weight_bits
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import JOIN_BITS, RESIDUAL_BITS, Plan
from fxfactor.quantization.batch_norm_statistics import histogram_of, propagate_statistics
from fxfactor.quantization.brevitas_layers import (
    is_quantized_layer,
    is_signed,
    make_quantizer,
    quantize_layer,
    quantizer_bits,
)
from fxfactor.quantization.histogram import Histogram, best_limit

if TYPE_CHECKING:
    import networkx


@dataclass(frozen=True)
class Quantize(Pass):
    """Substitute Brevitas layers: `weight_bits` for weights, `activation_bits` for activations, or a plan for each layer.

    Before: conv → BN → ReLU → conv. After: QuantConv2d → BN → QuantReLU → QuantConv2d, with QuantIdentity on the
    network's input, between the factors of a depth-factorized subgraph, and wherever else a tensor enters a layer, an
    addition, a concatenation or an average pooling. Batch norms stay. Tensors that meet share one quantizer, so that
    their scales agree; a shared quantizer takes the most bits that any of its layers asks for. With `join_bits` (8 if
    nothing is said; of a plan: residual_bits) tensors that enter an addition have so many, and layers that ask for
    fewer a quantizer of their own. Unsigned where no value can be negative, signed elsewhere. Tensors, not
    QuantTensors, flow between the layers.

    `boundary_bits` is what the first and the last layer get when no plan is given. Ranges come from the batch norms'
    own statistics (`fxfactor.quantization.batch_norm_statistics`); `fxfactor.calibrate` sets them from images.

    Layers that have no quantized form (recurrent ones, attention, a function on parameters) stay in floating point;
    `fxfactor.summary` lists them.

    Raises PreconditionError on bits outside 2…8 (weights: 1…8), on neither bits nor a plan, on unknown sites in the plan, and
    on float16.
    """

    weight_bits: int | None = None
    activation_bits: int | None = None
    boundary_bits: int | None = 8
    plan: Plan | None = None
    join_bits: int | None = None

    def __post_init__(self) -> None:
        check_weight_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")
        check_bits(self.boundary_bits, "boundary_bits")
        given = self.weight_bits is not None or self.activation_bits is not None
        if given == (self.plan is not None):
            raise PreconditionError("Quantize needs weight_bits and/or activation_bits, or a plan, and not both")
        check_join_bits(self.join_bits, self.activation_bits)

    def check(self, graph: GraphModule) -> None:
        half = next((name for name, p in graph.named_parameters() if p.dtype == torch.float16), None)
        if half is not None:
            raise PreconditionError(
                f"quantized layers need float32 or bfloat16, found {half!r} in float16, whose gradients overflow in a "
                "quantizer; quantize model.float(), and train it under torch.autocast"
            )
        if self.plan is not None:
            self.plan.require_fits(graph)

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        plan = self.plan
        if plan is None:
            plan = Plan.uniform(
                graph, 0, self.weight_bits, self.activation_bits, self.boundary_bits, join_bits=self.join_bits
            )
        placement = _Placement(graph, plan)
        yield from _quantize_weights(graph, plan)
        yield from placement.insert()
        if plan.join_bits is not None:  # weights alone leave the joins as they were
            graph.meta[JOIN_BITS] = plan.join_bits
        if plan.residual_bits is not None:
            graph.meta[RESIDUAL_BITS] = plan.residual_bits


def _quantize_weights(graph: GraphModule, plan: Plan) -> Iterator[Change | Skip]:
    for name, site in sites(graph).items():
        bits = plan.layers.get(name, LayerPlan()).weight_bits
        for node, layer in zip(site.nodes, site.modules, strict=True):
            path = str(node.target)
            if is_quantized_layer(layer):
                yield Skip(path, "already quantized")
            elif bits is None:
                yield Skip(path, "the plan gives it no weight bits")
            else:
                put_module(graph, path, quantize_layer(layer, bits))
                yield Change(path, (f"{bits}-bit weights",))


class _Placement:
    """Where quantizers go. Found on the graph as it is before the pass edits it; `insert` then does the edits."""

    def __init__(self, graph: GraphModule, plan: Plan) -> None:
        self.graph = graph
        self.join_bits, self.residual_bits = plan.join_bits, plan.residual_bits
        self.residual: set[nn.Module] = set()  # quantizers of what enters an addition
        self.read: dict[Node, list[Node]] = {}
        self.layer_bits: dict[Node, int | None] = {}
        for name, site in sites(graph).items():
            for node in (each for call in site.calls for each in call):
                self.layer_bits[node] = plan.layers.get(name, LayerPlan()).activation_bits
        self.position = {node: index for index, node in enumerate(graph.graph.nodes)}
        self.meeting = self._meetings()
        moments = propagate_statistics(graph)
        self.histograms = {node: histogram_of(node, moments) for node in self.meeting}
        self.unsigned = {node for node in self.meeting if never_negative(node)}
        self.added = {node for node in self.meeting if self.residual_bits is not None and _enters_addition(node)}

    def _meetings(self) -> networkx.Graph:
        """Sources that need a quantizer; an edge joins two that meet and so must share it."""
        import networkx

        meeting = networkx.Graph()
        for node in self.graph.graph.nodes:
            if is_join(node):
                if self._bits_behind(node) is None:
                    continue
                met = [source for x in tensor_inputs(node) for source in sources(x)]
            elif is_average_pooling(node):
                met = sources(node.all_input_nodes[0]) if self.join_bits is not None else []
            elif self.layer_bits.get(node) is not None:
                met = self.read[node] = sources(node.all_input_nodes[0])
            else:
                continue
            meeting.add_nodes_from(met)
            networkx.add_path(meeting, met)
        return meeting

    def _bits_behind(self, join: Node) -> int | None:
        """Bits of a tensor that enters `join`: what the layers right behind a concatenation want, else join_bits."""
        wanted = [self.layer_bits.get(user) for user in consumers(join)] if is_concatenation(join) else []
        return max((bits for bits in wanted if bits is not None), default=self.join_bits)

    def insert(self) -> Iterator[Change | Skip]:
        import networkx

        for component in networkx.connected_components(self.meeting):
            members = sorted(component, key=self.position.__getitem__)
            members = [node for node in members if not is_quantizer(module_of(node))]
            if self.unsigned.issuperset(members):
                if members:
                    yield self._share_unsigned(members, self._bits(members))
                continue
            rectified = [node for node in members if isinstance(module_of(node), RELUS)]
            for node in rectified:
                yield self._share_unsigned([node], self._bits([node], beyond_joins=False))
            yield self._share_signed(members, rectified)
        yield from self._copies_of_fewer_bits()

    def _copies_of_fewer_bits(self) -> Iterator[Change]:
        """A quantizer for the layers that read a tensor on its way to an addition and want fewer bits."""
        readers: dict[tuple[Node, int], list[Node]] = {}
        for node, bits in self.layer_bits.items():
            given = input_quantizer(node) if bits is not None else None
            if bits is not None and given in self.residual and quantizer_bits(given) > bits:
                readers.setdefault((node.all_input_nodes[0], bits), []).append(node)
        for (x, bits), nodes in readers.items():
            given = cast(nn.Module, input_quantizer(nodes[0]))
            limit = self._limit(self.read[nodes[0]], bits, is_signed(given))
            copy = make_quantizer(bits, limit, is_signed(given), at_most=getattr(given, "at_most", None))
            path = free_path(self.graph, f"{nodes[0].target}_input_quant")
            insert_after(self.graph, x, path, copy, only=nodes)
            yield Change(path, (f"{bits}-bit activations, a copy of what goes on in {quantizer_bits(given)}",))

    def _share_unsigned(self, members: list[Node], bits: int) -> Change:
        """One unsigned quantizer for all of `members`; the ReLUs among them become the quantizer itself."""
        limit = self._limit(members, bits, signed=False)
        relus = [node for node in members if isinstance(module_of(node), nn.ReLU)]
        clipped = [node for node in members if isinstance(module_of(node), nn.ReLU6)]
        at_most = 6.0 if clipped and not relus else None
        if at_most is not None or limit <= 6.0:
            relus = sorted(relus + clipped, key=self.position.__getitem__)
        quantizer = make_quantizer(bits, limit, signed=False, after_relu=bool(relus), at_most=at_most)
        path = str(relus[0].target) if relus else self._new_path(members[0])
        for node in members:
            if node in relus:
                node.target = path
            else:
                insert_after(self.graph, node, path, quantizer)
        put_module(self.graph, path, quantizer)
        self._note(members, quantizer)
        return Change(path, (f"unsigned {bits}-bit activations",))

    def _share_signed(self, members: list[Node], rectified: list[Node]) -> Change:
        """One signed quantizer for all of `members`; `rectified` ones have their own and get it right before the join."""
        bits = self._bits([node for node in members if node not in rectified] or members)
        quantizer = make_quantizer(bits, self._limit(members, bits, signed=True), signed=True)
        path = self._new_path(next((node for node in members if node not in rectified), members[0]))
        for node in members:
            if node in rectified:
                for producer, joins in _ways_into_joins(node).items():
                    insert_after(self.graph, producer, path, quantizer, only=joins)
            else:
                insert_after(self.graph, node, path, quantizer)
        self._note(members, quantizer)
        return Change(path, (f"signed {bits}-bit activations",))

    def _bits(self, members: list[Node], beyond_joins: bool = True) -> int:
        """The most bits that a layer fed by `members` asks for, or join_bits where they feed none."""
        behind = [user for node in members for user in consumers(node, beyond_joins)]
        wanted = [bits for bits in (self.layer_bits.get(user) for user in behind) if bits is not None]
        if wanted:
            added = self.added.intersection(members)
            return max(*wanted, self.residual_bits or 0) if added else max(wanted)
        return self.join_bits if self.join_bits is not None else self._bits(members)

    def _note(self, members: list[Node], quantizer: nn.Module) -> None:
        if self.added.intersection(members):
            self.residual.add(quantizer)

    def _limit(self, members: list[Node], bits: int, signed: bool) -> float:
        together = Histogram()
        for node in members:
            together.merge(self.histograms[node])
        return best_limit(together, bits, signed)

    def _new_path(self, node: Node) -> str:
        if node.op == "call_module":
            return free_path(self.graph, f"{node.target}_quant")
        owner, name = owner_path(node), f"{node.name if node.op == 'placeholder' else operation_name(node)}_quant"
        return free_path(self.graph, f"{owner}.{name}" if owner else name)


def _enters_addition(source: Node) -> bool:
    return any(not is_concatenation(join) for joins in _ways_into_joins(source).values() for join in joins)


def _ways_into_joins(source: Node) -> dict[Node, set[Node]]:
    """The joins that a tensor reaches through transparent operations, by the node that hands it to them."""
    ways: dict[Node, set[Node]] = {}
    waiting = [source]
    while waiting:
        node = waiting.pop()
        for user in node.users:
            if is_join(user):
                ways.setdefault(node, set()).add(user)
            elif is_transparent(user):
                waiting.append(user)
    return ways
