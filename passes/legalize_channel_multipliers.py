"""LegalizeChannelMultipliers: a depthwise convolution with r outputs per channel becomes r plain depthwise ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.graph import calls_of, is_quantizer, module_of, put_module, set_shape, shape_of
from fxfactor.passes.legalize_grouped_convolutions import take_outputs
from fxfactor.pipeline import Change, Pass, Skip

_PER_CHANNEL_ALIKE = (nn.ReLU, nn.ReLU6, nn.Identity, nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Dropout)


@dataclass(frozen=True)
class LegalizeChannelMultipliers(Pass):
    """Exact: a depthwise convolution with C_out = r · C_in becomes r depthwise convolutions side by side.

    Before: `site`, weight (r·C, 1, k, k), C groups, output channel c·r + j. After: `site.0` … `site.r-1`, weights
    (C, 1, k, k), each on the whole input → torch.cat(…, 1), output channel j·C + c. The batch norms on the way to the next
    convolution and that convolution's input channels are permuted to match, so no permutation is left to compute.

    Skipped where the way to the next dense convolution forks or passes anything that tells channels apart. FINN's
    hardware for depthwise convolutions has one output per channel.
    """

    exact: ClassVar[bool] = True

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        for node in list(graph.graph.nodes):
            layer = module_of(node)
            if not isinstance(layer, nn.Conv2d) or layer.groups != layer.in_channels or layer.groups == 1:
                continue
            multiplier = layer.out_channels // layer.in_channels
            if multiplier == 1:
                continue
            site = str(node.target)
            followers = _followers(node)
            if isinstance(followers, str):
                yield Skip(site, followers)
                continue
            parts = [slice(index, None, multiplier) for index in range(multiplier)]
            branches = take_outputs(layer, parts, layer.groups)
            if branches is None:
                yield Skip(
                    site, "the quantized weights of a part are not a part of the whole's: use a scale per channel"
                )
                continue
            order = torch.arange(layer.out_channels).reshape(-1, multiplier).T.reshape(-1)
            for follower in followers:
                _permute(follower, order)
            _replace(graph, node, branches)
            yield Change(site, tuple(f"{site}.{index}" for index in range(multiplier)))


def _followers(node: Node) -> list[nn.Module] | str:
    """The batch norms and, last, the dense convolution behind `node`; or the reason why there is none."""
    followers: list[nn.Module] = []
    while True:
        if len(calls_of(node)) > 1:
            return (
                f"{node.target} is called {len(calls_of(node))} times, so its channels cannot be put in another order"
            )
        if len(node.users) != 1:
            return f"{node.target} feeds {len(node.users)} others, so its channels cannot be put in another order"
        node = next(iter(node.users))
        module = module_of(node)
        if isinstance(module, nn.BatchNorm2d):
            followers.append(module)
        elif isinstance(module, nn.Conv2d) and module.groups == 1 and len(calls_of(node)) == 1:
            return [*followers, module]
        elif not isinstance(module, _PER_CHANNEL_ALIKE) and not (is_quantizer(module) and _one_scale(module)):
            return f"{node.target} stands between it and the next dense convolution and may tell channels apart"


def _one_scale(quantizer: nn.Module | None) -> bool:
    return quantizer is not None and all(parameter.numel() == 1 for parameter in quantizer.parameters())


@torch.no_grad()
def _permute(follower: nn.Module, order: Tensor) -> None:
    if isinstance(follower, nn.Conv2d):
        follower.weight.copy_(follower.weight[:, order].clone())
        return
    for name in ("weight", "bias", "running_mean", "running_var"):
        values = cast("Tensor | None", getattr(follower, name))
        if values is not None:
            values.copy_(values[order].clone())


def _replace(graph: GraphModule, node: Node, branches: list[nn.Conv2d]) -> None:
    site, x = str(node.target), cast(Node, node.args[0])
    batch, _, *out = shape_of(node)
    put_module(graph, site, nn.Module())
    results = []
    with graph.graph.inserting_before(node):
        for index, branch in enumerate(branches):
            put_module(graph, f"{site}.{index}", branch)
            result = graph.graph.call_module(f"{site}.{index}", (x,))
            set_shape(result, node, (batch, branch.out_channels, *out))
            results.append(result)
        joined = graph.graph.call_function(torch.cat, (results, 1))
        set_shape(joined, node)
    node.replace_all_uses_with(joined)
    graph.graph.erase_node(node)
