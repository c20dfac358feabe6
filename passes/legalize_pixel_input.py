"""LegalizePixelInput: the network takes 8-bit pixels, and what was done to them on the host becomes part of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from brevitas import nn as qnn
from brevitas.inject.enum import ScalingImplType
from brevitas.quant.scaled_int import Uint8ActPerTensorFloat
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.errors import PreconditionError
from fxfactor.graph import free_path, is_quantizer, module_of, placeholders, put_module, set_shape, shape_of
from fxfactor.pipeline import Change, Pass, Skip


class PixelNormalization(nn.Module):
    """`(pixels / 255 - mean) / std` per channel, written as one product and one sum."""

    factor: Tensor
    offset: Tensor

    def __init__(self, mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        super().__init__()
        means, stds = (torch.tensor(values, dtype=torch.float64).reshape(1, -1, 1, 1) for values in (mean, std))
        self.register_buffer("factor", (1 / (255 * stds)).float())
        self.register_buffer("offset", (-means / stds).float())

    def forward(self, pixels: Tensor) -> Tensor:
        """Pixels 0…255 (N, C, H, W), as floating-point numbers, to normalised values."""
        return pixels * self.factor + self.offset


class _Pixels(Uint8ActPerTensorFloat):
    """The integers 0…255 as they are."""

    scaling_impl_type = ScalingImplType.CONST
    scaling_init = 255.0


@dataclass(frozen=True)
class LegalizePixelInput(Pass):
    """The input becomes the pixels 0…255 themselves; normalisation and input quantizer turn into 3 x 255 thresholds.

    Before: x = (pixels / 255 - mean) / std, computed on the host → `quantizer` → network. After: pixels → `pixels` (a
    quantizer that says that they are integers of 8 bits) → `normalization` → `quantizer` → network. FINN then takes uint8
    images and holds no floating point. Zero padding still pads the normalised image, as in training.

    `mean` and `std` have one value per input channel, in units of the image scaled to 0…1, as torchvision writes them;
    the defaults stand for an image scaled to 0…1. The function of the pixels stays the same; that of the network's input
    changes, so this is not an exact pass. Skipped where the network takes pixels already.

    Raises PreconditionError where the network does not start with a quantizer or the values do not fit its channels.
    """

    exact: ClassVar[bool] = False
    mean: tuple[float, ...] = (0.0,)
    std: tuple[float, ...] = (1.0,)

    def check(self, graph: GraphModule) -> None:
        inputs = placeholders(graph)
        if len(inputs) != 1 or not all(is_quantizer(module_of(user)) for user in inputs[0].users):
            found = [str(user.target) for node in inputs for user in node.users]
            raise PreconditionError(
                f"pixel input needs a network with one input that starts with a quantizer, found {found} behind the input; "
                "quantize it first (fxfactor.transform with bits=)"
            )
        channels = shape_of(inputs[0])[1]
        for name, values in (("mean", self.mean), ("std", self.std)):
            if len(values) not in (1, channels) or (name == "std" and min(values) <= 0):
                raise PreconditionError(
                    f"{name} needs {channels} values, one per input channel (std above 0), found {values}; give as many"
                )

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        (node,) = placeholders(graph)
        if any(isinstance(module, PixelNormalization) for module in graph.modules()):
            yield Skip(node.name, "the network takes pixels already")
            return
        channels = shape_of(node)[1]
        mean, std = (values if len(values) == channels else values * channels for values in (self.mean, self.std))
        pixels = qnn.QuantIdentity(act_quant=_Pixels, bit_width=8, return_quant_tensor=False)
        normalization = PixelNormalization(mean, std)
        users = list(node.users)
        first = _call(graph, node, node, free_path(graph, "pixels"), pixels)
        second = _call(graph, first, node, free_path(graph, "normalization"), normalization)
        for user in users:
            user.replace_input_with(node, second)
        yield Change(node.name, (str(first.target), str(second.target)))


def _call(graph: GraphModule, after: Node, like: Node, path: str, module: nn.Module) -> Node:
    parameter = next(graph.parameters())
    put_module(graph, path, module.to(parameter).train(graph.training))
    with graph.graph.inserting_after(after):
        new = graph.graph.call_module(path, (after,))
    set_shape(new, like)
    return new
