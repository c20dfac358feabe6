"""Adaptive average pooling to a size that does not divide its input, as ONNX can say it."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.nn import functional as F

from fxfactor.graph.edits import put_module
from fxfactor.graph.questions import module_of, shape_of


class UnevenAdaptiveAvgPool2d(nn.AdaptiveAvgPool2d):
    """The same function as nn.AdaptiveAvgPool2d: (N, C, H, W) → (N, C, rows of `vertical`, rows of `horizontal`).

    For inputs of the size of the capture it is two products with fixed averaging matrices, `vertical` (height out × H) and
    `horizontal` (width out × W), which export to ONNX; windows of several sizes do not. Other inputs go the common way.
    """

    vertical: Tensor
    horizontal: Tensor

    def __init__(self, output_size: tuple[int, int], input_size: tuple[int, int], like: Tensor) -> None:
        super().__init__(output_size)
        self.register_buffer("vertical", averaging_matrix(input_size[0], output_size[0]).to(like), persistent=False)
        self.register_buffer("horizontal", averaging_matrix(input_size[1], output_size[1]).to(like), persistent=False)

    def forward(self, input: Tensor) -> Tensor:  # the name that nn.AdaptiveAvgPool2d has
        if not torch.jit._trace.is_tracing():  # the same sums in the same order as torch, for every size
            return F.adaptive_avg_pool2d(input, cast("tuple[int, int]", self.output_size))
        return torch.matmul(torch.matmul(self.vertical, input), self.horizontal.t())


def averaging_matrix(inputs: int, outputs: int) -> Tensor:
    """(outputs, inputs): row i averages over ⌊i·inputs/outputs⌋ … ⌈(i+1)·inputs/outputs⌉ - 1, as torch does."""
    matrix = torch.zeros(outputs, inputs)
    for row in range(outputs):
        first, last = row * inputs // outputs, -(-(row + 1) * inputs // outputs)
        matrix[row, first:last] = 1 / (last - first)
    return matrix


def fix_uneven_pooling(graph: GraphModule) -> None:
    """AdaptiveAvgPool2d whose windows are of several sizes becomes UnevenAdaptiveAvgPool2d, in place."""
    for node in list(graph.graph.nodes):
        module = module_of(node)
        if type(module) is not nn.AdaptiveAvgPool2d:
            continue
        before, after = shape_of(node.all_input_nodes[0])[-2:], shape_of(node)[-2:]
        if all(size % wanted == 0 for size, wanted in zip(before, after, strict=True)):
            continue
        like = next(graph.parameters(), torch.empty(0))
        replacement = UnevenAdaptiveAvgPool2d((after[0], after[1]), (before[0], before[1]), like)
        replacement.training = module.training
        put_module(graph, str(node.target), replacement)
