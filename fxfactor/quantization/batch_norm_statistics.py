"""Mean and variance of every channel of every tensor, without data.

A batch norm knows them: its output has mean β and standard deviation |γ| on the images it was trained on. From there
they are carried through the other operations, channels and pixels taken as independent and normally distributed.
That is what ranges start from where no calibration images are given; made-up images are never used.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from operator import attrgetter
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.graph.dataflow import is_addition, is_concatenation, operation_name, tensor_inputs
from fxfactor.graph.questions import LAYERS, TRANSPOSED, module_of, shape_of, sites
from fxfactor.quantization.histogram import Histogram

_Z = torch.linspace(-4.5, 4.5, 37, dtype=torch.float64)
_WEIGHT = torch.softmax(-_Z.square() / 2, 0)
_ELEMENTWISE = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.LeakyReLU, nn.ELU, nn.SiLU, nn.Mish, nn.GELU, nn.Hardswish, nn.Hardsigmoid),
    *(nn.Sigmoid, nn.Tanh, nn.Softplus),
)
_NORMS = (nn.modules.batchnorm._BatchNorm, nn.LayerNorm, nn.GroupNorm)


@dataclass(frozen=True)
class ChannelStatistics:
    """Mean and variance per channel, each (channels,) float64."""

    mean: Tensor
    variance: Tensor

    def resized(self, channels: int) -> ChannelStatistics:
        """The same for another number of channels: repeated where it divides, else pooled into one."""
        if channels == len(self.mean):
            return self
        if channels % len(self.mean) == 0:  # flatten: every channel's pixels stand one after the other
            times = channels // len(self.mean)
            return ChannelStatistics(self.mean.repeat_interleave(times), self.variance.repeat_interleave(times))
        pooled = self.variance.mean() + self.mean.var(correction=0)
        return ChannelStatistics(self.mean.mean().expand(channels), pooled.expand(channels))


def propagate_statistics(graph: GraphModule) -> dict[Node, ChannelStatistics]:
    """Moments of every tensor in the graph; the input of the network is taken as normalised (mean 0, variance 1)."""
    moments: dict[Node, ChannelStatistics] = {}
    with torch.no_grad():
        for node in graph.graph.nodes:
            if node.op in ("placeholder", "call_module", "call_function", "call_method"):
                moments[node] = _of(node, moments)
            elif node.op == "get_attr" and "tensor_meta" in node.meta:
                moments[node] = _of_values(attrgetter(str(node.target))(graph))
        _correct_factors(graph, moments)
    return moments


def histogram_of(node: Node, moments: dict[Node, ChannelStatistics]) -> Histogram:
    """The distribution that the moments stand for: normal in each channel, seen through the activation if one is last."""
    module = module_of(node)
    histogram = Histogram()
    if isinstance(module, _ELEMENTWISE):
        values = module(_quadrature(moments[tensor_inputs(node)[0]]))
    else:
        values = _quadrature(moments[node])
    histogram.add(values, _WEIGHT.expand_as(values))
    return histogram


def _quadrature(moments: ChannelStatistics) -> Tensor:
    """Points of each channel's normal distribution, (channels, points)."""
    return moments.mean[:, None] + moments.variance.clamp_min(0).sqrt()[:, None] * _Z


def _of(node: Node, moments: dict[Node, ChannelStatistics]) -> ChannelStatistics:
    # an item of several results is distributed as what they were computed from
    read = tensor_inputs(node) or node.all_input_nodes
    inputs = [moments[x] for x in read if x in moments]
    channels = _channels(node)
    module = module_of(node)
    if not inputs:
        return ChannelStatistics(torch.zeros(channels, dtype=torch.float64), torch.ones(channels, dtype=torch.float64))
    first = inputs[0]
    if isinstance(module, LAYERS):
        return _through_layer(module, first)
    if isinstance(module, _NORMS):
        return _normalised(module, channels)
    if isinstance(module, _ELEMENTWISE):
        values = module(_quadrature(first))
        mean = values @ _WEIGHT
        return ChannelStatistics(mean, values.square() @ _WEIGHT - mean.square())
    if is_concatenation(node):
        together = ChannelStatistics(torch.cat([m.mean for m in inputs]), torch.cat([m.variance for m in inputs]))
        return together.resized(channels)
    same = [m.resized(channels) for m in inputs]
    if is_addition(node):
        sign = -1.0 if operation_name(node) == "sub" else 1.0
        mean = same[0].mean + sign * torch.stack([m.mean for m in same[1:]]).sum(0)
        return ChannelStatistics(mean, torch.stack([m.variance for m in same]).sum(0))
    if operation_name(node) == "mul" and len(same) == 2:
        a, b = same
        return ChannelStatistics(
            a.mean * b.mean, (a.variance + a.mean**2) * (b.variance + b.mean**2) - (a.mean * b.mean) ** 2
        )
    return same[0]


def _of_values(tensor: Tensor) -> ChannelStatistics:
    """Of a parameter or buffer: what its values are, channels along dimension 1."""
    values = tensor.detach().double()
    values = values.transpose(0, 1).flatten(1) if values.dim() > 1 else values.reshape(1, -1)
    if not values.numel():
        return ChannelStatistics(values.new_zeros(1), values.new_zeros(1))
    return ChannelStatistics(values.mean(1).cpu(), values.var(1, correction=0).cpu())


def _channels(node: Node) -> int:
    if "tensor_meta" not in node.meta or not hasattr(node.meta["tensor_meta"], "shape"):
        return 1
    shape = shape_of(node)
    return shape[1] if len(shape) > 1 else 1


def _through_layer(layer: nn.Module, source: ChannelStatistics) -> ChannelStatistics:
    weight = cast(Tensor, layer.weight).detach().double().cpu()
    bias = cast("Tensor | None", layer.bias)
    if isinstance(layer, nn.Linear):
        source, groups = source.resized(layer.in_features), 1
    else:
        groups = cast(int, layer.groups)
        source = source.resized(cast(int, layer.in_channels))
    seen = 1.0  # share of the taps that reach a pixel
    if isinstance(layer, TRANSPOSED):
        weight = weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1)
        seen = 1 / math.prod(layer.stride)
    taps = weight.reshape(*weight.shape[:2], -1)  # a linear layer has one tap
    mean = _grouped(taps.sum(2), source.mean, groups) * seen
    variance = _grouped(taps.square().sum(2), source.variance, groups) * seen
    return ChannelStatistics(mean if bias is None else mean + bias.detach().double().cpu(), variance)


def _grouped(matrix: Tensor, vector: Tensor, groups: int) -> Tensor:
    """Block-diagonal matrix (outputs, inputs/groups) times vector (inputs,)."""
    blocks = matrix.unflatten(0, (groups, -1)) @ vector.unflatten(0, (groups, -1)).unsqueeze(-1)
    return blocks.flatten()


def _normalised(norm: nn.Module, channels: int) -> ChannelStatistics:
    scale, shift = (cast("Tensor | None", getattr(norm, name)) for name in ("weight", "bias"))
    deviation = torch.ones(channels) if scale is None else scale.detach().flatten().cpu()
    mean = torch.zeros(len(deviation)) if shift is None else shift.detach().flatten().cpu()
    return ChannelStatistics(mean.double(), deviation.double().square())


def _correct_factors(graph: GraphModule, moments: dict[Node, ChannelStatistics]) -> None:
    """Between the factors no batch norm stands, but one behind them knows by how much independence was wrong."""
    for site in sites(graph).values():
        for first, *rest in site.calls:
            behind = module_of(next(iter(rest[-1].users), None)) if rest else None
            if not isinstance(behind, nn.modules.batchnorm._BatchNorm) or behind.running_var is None:
                continue
            spatial, pointwise = moments[first], moments[rest[-1]]
            ratio = float(behind.running_var.double().mean() / pointwise.variance.mean().clamp_min(1e-30))
            moments[first] = ChannelStatistics(spatial.mean, spatial.variance * min(max(ratio, 0.01), 100.0))
