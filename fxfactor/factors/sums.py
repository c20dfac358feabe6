"""The target of a convolution whose output is added to something: the original sum, not the original output.

Before a residual addition the compressed network's other branch, the shortcut, carries the errors of all blocks before.
The convolution on this branch can make up for them: it aims at the original sum less what the compressed shortcut brings,

    y + (shortcut − compressed shortcut) / s,

s the factor of the batch norm between the convolution and the addition (1 without one). Nothing is added to the network.
Asymmetric reconstruction (Zhang et al. 2015, arXiv 1505.06798) for residual networks, as in He et al. 2017 (arXiv
1707.06168, section 3.2).
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxfactor.factors.lockstep import Lockstep
from fxfactor.graph.dataflow import is_addition, operation_name, tensor_inputs
from fxfactor.graph.questions import BatchNorm, is_quantizer, module_of, shape_of

_SMALLEST_FACTOR = 1e-2
"""Of the largest factor of a batch norm: a smaller one is taken as this, so that channels that count for little stay calm."""


@dataclass(frozen=True)
class Addition:
    """What a layer's output meets: the batch norm on the way, if any, and the other summand."""

    norm: nn.Module | None
    other: Node


def addition_behind(node: Node) -> Addition | None:
    """The addition that the output of `node` alone goes into, through a batch norm and quantizers at most."""
    norm: nn.Module | None = None
    while len(node.users) == 1:
        (user,) = node.users
        module = module_of(user)
        if isinstance(module, BatchNorm) and norm is None and module.running_var is not None:
            norm = module
        elif is_addition(user) and operation_name(user) in ("add", "iadd", "add_"):
            others = [x for x in tensor_inputs(user) if x is not node]
            return Addition(norm, others[0]) if len(others) == 1 else None
        elif module is None or not is_quantizer(module):
            return None
        node = user
    return None


class SumTarget:
    """What a layer of the compressed network should compute, given the node of the original that it stands for.

    `layers`: the nodes of the layer in the compressed network, or of its two factors. `not_yet`: nodes of the compressed
    network whose layers will change later; a sum that waits for one of them is left to the layer on that branch.
    """

    def __init__(
        self, before: Node, layers: tuple[Node, ...], walks: tuple[Lockstep, Lockstep], not_yet: Collection[Node] = ()
    ) -> None:
        self.before, self.first = before, layers[0]
        self.original, self.compressed = walks
        self.batches = range(len(self.compressed.images))
        self.sums: tuple[Addition, Addition] | None = None
        pair = addition_behind(before), addition_behind(layers[-1])
        if pair[0] is None or pair[1] is None or (pair[0].norm is None) != (pair[1].norm is None):
            return
        alike = shape_of(pair[0].other) == shape_of(before) and shape_of(pair[1].other) == shape_of(layers[-1])
        if alike and not set(not_yet).intersection(self.compressed.behind(layers[-1], pair[1].other)):
            self.sums = pair[0], pair[1]

    def of(self, batch: int) -> tuple[Tensor, Tensor]:
        """What enters the layer in the compressed network, and what should leave it, for a batch of images."""
        if self.sums is None:
            return self.compressed.input_of(batch, self.first), self.original.output_of(batch, self.before)
        before, after = self.sums
        x, compressed = self.compressed.input_and(batch, self.first, after.other)
        wanted, shortcut = self.original.output_and(batch, self.before, before.other)
        return x, wanted + (shortcut - compressed) / _factor_of(after.norm, wanted)


class OriginalTarget:
    """What a layer should compute, given what enters it in the original network."""

    def __init__(self, before: Node, original: Lockstep) -> None:
        self.before, self.original = before, original
        self.batches = range(len(original.images))

    def of(self, batch: int) -> tuple[Tensor, Tensor]:
        """What enters and what leaves the layer in the original network, for a batch of images."""
        return self.original.input_of(batch, self.before), self.original.output_of(batch, self.before)


def _factor_of(norm: nn.Module | None, like: Tensor) -> Tensor:
    """γ/√(σ² + ε) of a batch norm as (channels, 1, …), none of it near zero; 1 without a norm."""
    if norm is None:
        return torch.ones((), dtype=like.dtype)
    factor = torch.rsqrt(cast(Tensor, norm.running_var) + cast(float, norm.eps))
    if norm.weight is not None:
        factor = factor * cast(Tensor, norm.weight)
    least = _SMALLEST_FACTOR * factor.abs().max()
    calm = torch.where(factor.abs() < least, torch.where(factor < 0, -least, least), factor)
    return calm.view(-1, *[1] * (like.dim() - 2))
