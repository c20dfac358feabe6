"""What a network costs: MACs, parameters, weight bits and BOPs, for every layer and in total.

MACs are those that torch.utils.flop_counter counts (it says FLOPs, two for each), at batch size 1 and the image size of
the capture. BOPs = MACs · weight bits · activation bits (HAQ, arXiv 1811.08886; 32 bits for floating point), so a
network in floating point has 1024 BOPs for each MAC.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils.flop_counter import conv_flop_count, mm_flop

from fxfactor.arguments import checked
from fxfactor.graph.dataflow import input_quantizer
from fxfactor.graph.questions import TRANSPOSED, layers, shape_of
from fxfactor.quantization.brevitas_layers import bits_of, weight_bits_of

FLOAT_BITS = 32


@dataclass(frozen=True)
class LayerCost:
    """Cost of one layer for one image. `parameters` counts weights and biases; `weight_bits` is per weight.

    Of a layer that is called several times `macs` are those of all its calls, `activation_bits` the most of any.
    """

    path: str
    macs: int
    parameters: int
    weight_bits: int
    activation_bits: int

    @property
    def bops(self) -> int:
        """Bit operations: macs · weight_bits · activation_bits."""
        return self.macs * self.weight_bits * self.activation_bits


@dataclass(frozen=True)
class Cost:
    """Cost of a network for one image. Only convolutions and linear layers count; `parameters` counts all there are."""

    layers: tuple[LayerCost, ...]
    parameters: int
    total_weight_bits: int

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image."""
        return sum(layer.macs for layer in self.layers)

    @property
    def bops(self) -> int:
        """Bit operations for one image."""
        return sum(layer.bops for layer in self.layers)

    def below(self, path: str) -> tuple[LayerCost, ...]:
        """The layers at or below a module path: the two factors of a site, say."""
        return tuple(layer for layer in self.layers if layer.path == path or layer.path.startswith(f"{path}."))


@checked
def cost(graph: GraphModule) -> Cost:
    """Cost of a captured or transformed network at batch size 1 and the image size of its capture."""
    calls: dict[nn.Module, list[Node]] = {}
    for node, layer in layers(graph):
        calls.setdefault(layer, []).append(node)
    found = tuple(_layer_cost(nodes, layer) for layer, nodes in calls.items())
    bits = sum(cast(Tensor, layer.weight).numel() * (weight_bits_of(layer) or FLOAT_BITS) for layer in calls)
    return Cost(found, sum(p.numel() for p in graph.parameters()), bits)


def _layer_cost(nodes: list[Node], layer: nn.Module) -> LayerCost:
    weight = cast(Tensor, layer.weight)
    bias = cast("Tensor | None", layer.bias)
    return LayerCost(
        path=str(nodes[0].target),
        macs=sum(_macs(node, layer) for node in nodes),
        parameters=weight.numel() + (0 if bias is None else bias.numel()),
        weight_bits=weight_bits_of(layer) or FLOAT_BITS,
        activation_bits=max(bits_of(input_quantizer(node)) or FLOAT_BITS for node in nodes),
    )


def _macs(node: Node, layer: nn.Module) -> int:
    source, result = list(shape_of(node.all_input_nodes[0])), list(shape_of(node))
    weight = list(cast(Tensor, layer.weight).shape)
    if isinstance(layer, nn.Linear):
        rows = math.prod(result[1:-1])
        return int(mm_flop([rows, weight[1]], [weight[1], weight[0]])) // 2
    return int(conv_flop_count([1, *source[1:]], weight, [1, *result[1:]], isinstance(layer, TRANSPOSED))) // 2
