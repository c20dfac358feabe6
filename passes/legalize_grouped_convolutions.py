"""LegalizeGroupedConvolutions: FINN has no hardware for grouped convolutions, but for their branches one by one."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass
from operator import getitem
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.graph import calls_of, module_of, put_module, set_shape, shape_of
from fxfactor.pipeline import Change, Pass, Skip
from fxfactor.quantization.brevitas_layers import is_quantized_layer, quantize_layer, weight_bits_of


@dataclass(frozen=True)
class LegalizeGroupedConvolutions(Pass):
    """Exact: a convolution with 1 < G < C_in groups becomes G dense convolutions on slices of the channels.

    Before: `site`, weight (C_out, C_in/G, k, k), G groups. After: torch.split(x, [C_in/G] * G, 1) → `site.0` … `site.G-1`,
    weights (C_out/G, C_in/G, k, k), the rows of `site`'s → torch.cat(…, 1). Every output channel keeps its weight scale,
    so quantized weights are the same to the last bit; the concatenated scales are absorbed by the quantizer behind.

    Depthwise convolutions (G = C_in) stay: FINN has hardware for them. Skipped where the quantized weights of a slice are
    not the slice of the quantized weights (one scale for the whole tensor). Source: Xilinx/finn issue 918.
    """

    exact: ClassVar[bool] = True

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        for node in [node for node in graph.graph.nodes if node.op == "call_module" and node is calls_of(node)[0]]:
            layer = module_of(node)
            if not isinstance(layer, nn.Conv2d) or layer.groups in (1, layer.in_channels):
                continue
            site = str(node.target)
            branches = _branches(layer)
            if branches is None:
                yield Skip(
                    site, "the quantized weights of a group are not a part of the whole's: use a scale per channel"
                )
                continue
            for call in calls_of(node):
                _replace(graph, call, branches)
            yield Change(site, tuple(f"{site}.{index}" for index in range(len(branches))))


def _branches(layer: nn.Conv2d) -> list[nn.Conv2d] | None:
    size = layer.out_channels // layer.groups
    return take_outputs(layer, [slice(start, start + size) for start in range(0, layer.out_channels, size)], groups=1)


def take_outputs(layer: nn.Conv2d, parts: list[Any], groups: int) -> list[nn.Conv2d] | None:
    """Convolutions that compute `parts` (slices) of the output channels of `layer`, with `groups` groups each.

    None where the layer is quantized and a part's quantized weights differ from the part of the whole's.
    """
    taken, whole = [], _effective_weight(copy.deepcopy(layer).eval())
    for part in parts:
        weight = layer.weight[part].detach()
        conv = nn.Conv2d(
            weight.shape[1] * groups,
            weight.shape[0],
            cast(Any, layer.kernel_size),
            cast(Any, layer.stride),
            cast(Any, layer.padding),
            cast(Any, layer.dilation),
            groups,
            layer.bias is not None,
            layer.padding_mode,
        ).to(weight)
        conv.weight.data.copy_(weight)
        if layer.bias is not None and conv.bias is not None:
            conv.bias.data.copy_(layer.bias[part].detach())
        bits = weight_bits_of(layer)
        if bits is not None:
            conv = cast(nn.Conv2d, quantize_layer(conv, bits))
        conv.requires_grad_(layer.weight.requires_grad)
        if not torch.equal(_effective_weight(conv.eval()), whole[part]):
            return None
        taken.append(conv.train(layer.training))
    return taken


@torch.no_grad()
def _effective_weight(layer: nn.Module) -> Tensor:
    """The weights that a layer in eval mode computes with: quantized where it is a Brevitas layer."""
    return cast(Tensor, cast(Any, layer).quant_weight().value if is_quantized_layer(layer) else layer.weight)


def _replace(graph: GraphModule, node: Node, branches: list[nn.Conv2d]) -> None:
    site, x = str(node.target), cast(Node, node.args[0])
    batch, _, *size = shape_of(x)
    _, _, *out = shape_of(node)
    put_module(graph, site, nn.Module())
    sizes = [branch.in_channels for branch in branches]
    results = []
    with graph.graph.inserting_before(node):
        pieces = graph.graph.call_function(torch.split, (x, sizes, 1))
        for index, branch in enumerate(branches):
            piece = graph.graph.call_function(getitem, (pieces, index))
            set_shape(piece, x, (batch, branch.in_channels, *size))
            put_module(graph, f"{site}.{index}", branch)
            result = graph.graph.call_module(f"{site}.{index}", (piece,))
            set_shape(result, node, (batch, branch.out_channels, *out))
            results.append(result)
        joined = graph.graph.call_function(torch.cat, (results, 1))
        set_shape(joined, node)
    node.replace_all_uses_with(joined)
    graph.graph.erase_node(node)
