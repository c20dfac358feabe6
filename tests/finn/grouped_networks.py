"""Small networks with grouped convolutions: groups, multipliers, strides, kernels, padding, dilation, bits and places.

Each is `input quantizer → stem → block` as in small_networks, and the shape of its images.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from brevitas.quant import (
    Int8WeightPerTensorFloat,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
)
from small_networks import Parallel, Residual, chain, conv, head, last, negative, norm, quantizer, relu
from torch import Tensor, nn

SQUARE, WIDE = (3, 8, 8), (3, 6, 10)
Case = tuple[Callable[[], nn.Module], tuple[int, int, int]]


def one(outputs: int = 8, kernel: Any = 3, shape: tuple[int, int, int] = SQUARE, **settings: Any) -> Case:
    """One convolution of 8 channels with a batch norm and a ReLU behind it."""
    return block(lambda: conv(8, outputs, kernel, **settings), lambda: norm(outputs), relu, shape=shape)


def block(*layers: Callable[[], nn.Module], shape: tuple[int, int, int] = SQUARE) -> Case:
    """Layers that end in a map: every position of it is compared."""
    return lambda: last(*(layer() for layer in layers)), shape


class GroupedResidual(Residual):
    """A residual block of two grouped convolutions."""

    def __init__(self) -> None:
        shared = quantizer()
        super().__init__(shared, shared)
        self.body = nn.Sequential(conv(8, 8, groups=4), norm(8), relu(), conv(8, 8, groups=2), norm(8))


class Twins(nn.Module):
    """Two convolutions of groups, concatenated: each has a scale of its own, and the groups behind keep them apart."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Sequential(conv(8, 8, groups=2), norm(8), relu()) for _ in range(2))
        self.behind = nn.Sequential(conv(16, 8, groups=2), norm(8), relu())

    def forward(self, x: Tensor) -> Tensor:
        import torch

        return self.behind(torch.cat([part(x) for part in self.parts], 1))


GROUPED: dict[str, Case] = {
    "2 groups": one(groups=2),
    "4 groups": one(groups=4),
    "depthwise": one(groups=8),
    "2 groups, twice the outputs": one(16, groups=2),
    "4 groups, three times the outputs": one(24, groups=4),
    "4 groups, half the outputs": one(4, groups=4),
    "depthwise, two outputs a channel": one(16, groups=8),
    "depthwise, three outputs a channel": one(24, groups=8),
    "stride 2": one(groups=2, stride=2),
    "stride 2 down, 1 across": one(groups=4, stride=(2, 1)),
    "stride 1 down, 2 across": one(16, groups=2, stride=(1, 2), shape=WIDE),
    "depthwise, stride 2": one(groups=8, stride=2),
    "two outputs a channel, stride 2": one(16, groups=8, stride=2),
    "1 x 1": one(16, 1, groups=4),
    "1 x 1, depthwise": one(8, 1, groups=8),
    "1 x 1, stride 2": one(16, 1, groups=2, stride=2),
    "1 x 1, padded": one(8, 1, groups=2, padding=1),
    "5 x 5": one(8, 5, groups=2),
    "2 x 2, no padding": one(8, 2, groups=4, padding=0),
    "1 x 5": one(8, (1, 5), groups=4, shape=WIDE),
    "3 x 1": one(8, (3, 1), groups=2),
    "3 x 5, stride 2": one(16, (3, 5), groups=4, stride=2, shape=WIDE),
    "no padding": one(groups=2, padding=0),
    "padding above and below only": one(groups=2, padding=(1, 0)),
    "padding 2": one(groups=4, padding=2),
    "dilation 2": one(groups=2, dilation=2, padding=2),
    "dilation 2 across": one(groups=4, dilation=(1, 2), padding=(1, 2), shape=WIDE),
    "depthwise, dilation 2 down": one(groups=8, dilation=(2, 1), padding=(2, 1)),
    "dilation and stride": one(16, groups=2, dilation=2, padding=2, stride=2),
    "a wide image": one(groups=4, shape=WIDE),
    "2 bits": one(groups=4, bits=2),
    "3 bits": one(groups=2, bits=3),
    "8 bits": one(groups=4, bits=8),
    "binary weights": one(groups=2, weight_quant=SignedBinaryWeightPerTensorConst, bits=1),
    "ternary weights": one(groups=4, weight_quant=SignedTernaryWeightPerTensorConst, bits=2),
    "one weight scale": one(groups=4, weight_quant=Int8WeightPerTensorFloat),
    "a bias": one(groups=2, bias=True),
    "batch norm with negative factors": block(
        lambda: conv(8, 8, groups=4), lambda: negative(norm(8)), relu
    ),
    "a signed input": block(quantizer, lambda: conv(8, 8, groups=2), lambda: norm(8), relu),
    "one group after the other": block(
        lambda: conv(8, 16, groups=4), lambda: norm(16), relu, lambda: conv(16, 8, groups=8), lambda: norm(8), relu
    ),
    "grouped, then pointwise": block(
        lambda: conv(8, 16, groups=2), quantizer, lambda: conv(16, 8, 1), lambda: norm(8), relu
    ),
    "multiplier, then pointwise": block(
        lambda: conv(8, 16, groups=8), lambda: nn.PReLU(16), quantizer, lambda: conv(16, 8, 1), lambda: norm(8), relu
    ),
    "multiplier, then depthwise": block(
        lambda: conv(8, 16, groups=8), relu, lambda: conv(16, 32, groups=16), lambda: norm(32), relu
    ),
    "multiplier, then pooling": block(
        lambda: conv(8, 16, groups=8), lambda: norm(16), relu, lambda: nn.AvgPool2d(2), lambda: quantizer(4)
    ),
    "padding of its own before it": block(
        lambda: nn.ZeroPad2d((1, 2, 0, 1)), lambda: conv(8, 8, groups=4, padding=0), lambda: norm(8), relu
    ),
    "a residual block": block(GroupedResidual),
    "a group for each branch": block(Twins),
    "max pooling before its quantizer": block(
        lambda: conv(8, 8, groups=4), lambda: norm(8), lambda: nn.MaxPool2d(2), relu
    ),
    "on one pixel": block(lambda: nn.MaxPool2d(8), lambda: conv(8, 8, groups=4), lambda: norm(8), relu),
    "on the input": (
        lambda: nn.Sequential(quantizer(8), conv(3, 6, groups=3), norm(6), relu(), *head(6 * 64)),
        SQUARE,
    ),
    "a map at the end": (lambda: last(conv(8, 16, groups=4)), SQUARE),
    "a multiplier at the end": (lambda: last(conv(8, 16, groups=8)), SQUARE),
    "a multiplier, flattened": (lambda: chain(conv(8, 16, groups=8), relu(), features=16 * 64), SQUARE),
    "two multipliers, concatenated": block(
        lambda: Parallel([conv(8, 16, groups=8), conv(8, 8, groups=8)], [relu()] * 2),
        lambda: conv(24, 8, 1), lambda: norm(8), relu,
    ),
}  # fmt: skip
"""Name -> network, shape of its images."""

FAST = tuple(GROUPED)[::2]
"""Those that the normal run takes through FINN; the others are slow."""
