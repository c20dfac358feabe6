"""FoldBatchNorm: a convolution or linear layer takes over the batch norm behind it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.graph import LAYERS, TRANSPOSED, calls_of, module_of
from fxfactor.pipeline import Change, Pass, Skip
from fxfactor.quantization.brevitas_layers import is_quantized_layer


@dataclass(frozen=True)
class FoldBatchNorm(Pass):
    """Exact: `y = γ (W x + b − μ) / √(σ² + ε) + β` becomes `y = W' x + b'`.

    Before: `conv`, weight (C_out, C_in/g, k, k), then `bn`. After: `conv` with W' = W · γ/√(σ² + ε) for every output
    channel and b' = (b − μ) γ/√(σ² + ε) + β; `bn` is gone. (Jacob et al. 2018, arXiv 1712.05877, equation 14.)

    Only where the layer feeds nothing but the batch norm, both are called once, and the batch norm keeps running
    statistics. FINN absorbs batch norms and training likes them, so nothing folds them unasked; fold before quantizing.
    """

    exact: ClassVar[bool] = True

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        for node in list(graph.graph.nodes):
            norm = module_of(node)
            if not isinstance(norm, nn.modules.batchnorm._BatchNorm):
                continue
            reason = _reason_not_to(node, norm)
            if reason is not None:
                yield Skip(str(node.target), reason)
                continue
            source = node.all_input_nodes[0]
            _fold(cast(nn.Module, module_of(source)), norm)
            node.replace_all_uses_with(source)
            graph.graph.erase_node(node)
            yield Change(str(node.target), (str(source.target),))


def _reason_not_to(node: Node, norm: nn.Module) -> str | None:
    source = node.all_input_nodes[0]
    layer = module_of(source)
    if not isinstance(layer, LAYERS):
        return f"it follows {layer.__class__.__name__ if layer else source.name}, not a convolution or linear layer"
    if is_quantized_layer(layer):
        return f"{source.target} is quantized already: fold before quantizing"
    for called in (source, node):
        if len(calls_of(called)) > 1:
            return f"{called.target} is called {len(calls_of(called))} times"
    if len(source.users) > 1:
        return f"{source.target} also feeds others than this batch norm"
    if norm.running_mean is None:
        return "it keeps no running statistics"
    if isinstance(layer, nn.Linear) and len(node.meta["tensor_meta"].shape) != 2:
        return "it normalises another dimension than the linear layer's features"
    return None


@torch.no_grad()
def _fold(layer: nn.Module, norm: nn.Module) -> None:
    variance, mean = cast(Tensor, norm.running_var), cast(Tensor, norm.running_mean)
    scale = torch.rsqrt(variance.double() + cast(float, norm.eps))
    if norm.weight is not None:
        scale = scale * cast(Tensor, norm.weight).double()
    weight = cast(Tensor, layer.weight)
    bias = torch.zeros_like(mean, dtype=torch.float64) if layer.bias is None else cast(Tensor, layer.bias).double()
    folded = (bias - mean.double()) * scale
    if norm.bias is not None:
        folded = folded + cast(Tensor, norm.bias).double()
    ones = [1] * (weight.dim() - 2)
    if isinstance(layer, TRANSPOSED):  # weight (C_in, C_out/g, *k)
        grouped = weight.double().unflatten(0, (layer.groups, -1)) * scale.reshape(layer.groups, 1, -1, *ones)
        scaled = grouped.flatten(0, 1)
    else:
        scaled = weight.double() * scale.reshape(-1, 1, *ones)
    layer.weight = nn.Parameter(scaled.to(weight.dtype), requires_grad=weight.requires_grad)
    layer.bias = nn.Parameter(folded.to(weight.dtype), requires_grad=weight.requires_grad)
