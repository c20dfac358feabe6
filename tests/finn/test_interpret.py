"""The walk to integers on networks drawn at random: what it gives is what PyTorch computes in float64."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finn_helpers import outputs_in_float64, relative
from small_networks import (
    Lambda,
    build,
    chain,
    conv,
    head,
    last,
    linear,
    negative,
    norm,
    quantizer,
    relu,
    stem,
    unsigned,
)
from torch import Tensor, nn

from fxfactor.errors import FinnError
from fxfactor.finn.process.load import load_integers

Write = Callable[..., Path]
Draw = np.random.Generator


def equals_torch(file: Path, model: nn.Module) -> None:
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    assert relative(load_integers(file)(images.numpy()), outputs_in_float64(model, images)) < 1e-6


class SoftplusOfOnnx(nn.Module):
    """torch's softplus is linear above a threshold, ONNX's is not."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.softplus(x, threshold=1000)


class PReLUs(nn.PReLU):
    """A slope for each channel, of which some are 0."""

    def __init__(self, draw: Draw, channels: int = 8) -> None:
        super().__init__(channels)
        with torch.no_grad():
            self.weight.copy_(torch.from_numpy(draw.uniform(0, 0.8, channels) * draw.integers(0, 2, channels)))


FUNCTIONS: dict[str, Callable[[Draw], nn.Module]] = {
    "CELU": lambda draw: nn.CELU(draw.uniform(0.3, 2)),
    "ELU": lambda draw: nn.ELU(draw.uniform(0.3, 2)),
    "SELU": lambda draw: nn.SELU(),
    "hard sigmoid": lambda draw: nn.Hardsigmoid(),
    "leaky ReLU": lambda draw: nn.LeakyReLU(draw.uniform(0, 0.9)),
    "PReLU": PReLUs,
    "clip": lambda draw: nn.Hardtanh(-draw.uniform(0.1, 0.9), draw.uniform(0.1, 2)),
    "ReLU": lambda draw: nn.ReLU(),
    "sigmoid": lambda draw: nn.Sigmoid(),
    "softplus": lambda draw: SoftplusOfOnnx(),
    "tanh": lambda draw: nn.Tanh(),
}


def per_channel(draw: Draw, low: float, high: float, channels: int = 8) -> Tensor:
    return torch.from_numpy(draw.uniform(low, high, (channels, 1, 1)).astype(np.float32))


def affine(draw: Draw) -> nn.Module:
    """A product, a quotient, a sum or a difference with a constant, or one for each channel."""
    constant = float(np.float32(draw.uniform(0.4, 1.5))) if draw.integers(2) else per_channel(draw, 0.4, 1.5)
    kinds: list[Callable[[Tensor], Tensor]] = [
        lambda x: x * constant,
        lambda x: constant * x,
        lambda x: x / constant,
        lambda x: x + constant,
        lambda x: constant + x,
        lambda x: x - constant,
    ]
    return Lambda(kinds[draw.integers(len(kinds))])


def falling(draw: Draw) -> nn.Module:
    """A difference from a constant, or products of which some are negative: only before functions."""
    constant = per_channel(draw, -1.5, 1.5)
    return Lambda((lambda x: constant - x) if draw.integers(2) else (lambda x: x * constant))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_function_between_constants_is_absorbed(name: str, seed: int, write: Write) -> None:
    draw = np.random.default_rng([seed, len(name)])
    torch.manual_seed(seed)
    before = [affine(draw) for _ in range(draw.integers(3))] + [falling(draw)] * int(draw.integers(2))
    after = [affine(draw) for _ in range(draw.integers(3))]
    bits = int(draw.integers(2, 7))
    end = [quantizer(bits), unsigned(bits)][draw.integers(2)]
    model = build(lambda: chain(conv(8, 8), norm(8), *before, FUNCTIONS[name](draw), *after, end))
    equals_torch(write(model), model)


def test_constants_and_slopes_for_every_feature_after_flattening(write: Write) -> None:
    """Channels of a flattened tensor lie in another order on the FPGA."""
    draw = np.random.default_rng(0)
    features = 8 * 16
    ones = torch.from_numpy(draw.uniform(0.5, 1.5, features).astype(np.float32))
    model = build(
        lambda: nn.Sequential(
            *stem(), conv(8, 8, stride=2), norm(8), nn.Flatten(1), Lambda(lambda x: x * ones + ones), PReLUs(draw, features),
            nn.BatchNorm1d(features), quantizer(), linear(features),
        )
    )  # fmt: skip
    equals_torch(write(model), model)


class Shifted(nn.Module):
    """Two branches with one quantizer, each with a constant of its own on top, added."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.shared = conv(8, 8), conv(8, 8), quantizer()
        self.after = nn.Sequential(negative(norm(8)), relu())

    def forward(self, x: Tensor) -> Tensor:
        return self.after((self.shared(self.left(x)) + 0.75) + (self.shared(self.right(x)) - 0.5))


def test_offsets_of_both_sides_of_an_addition_count(write: Write) -> None:
    model = build(lambda: chain(Shifted()))
    equals_torch(write(model), model)


@pytest.mark.parametrize(
    "falls",
    [nn.LeakyReLU(-0.1), nn.PReLU(8, init=-0.1), nn.ELU(-0.5), nn.CELU(-0.5)],
    ids=["leaky ReLU", "PReLU", "ELU", "CELU"],
)
def test_a_function_that_falls_is_refused(falls: nn.Module, write: Write) -> None:
    with pytest.raises(FinnError, match="negative slope"):
        load_integers(write(build(lambda: chain(conv(8, 8), norm(8), falls, quantizer()))))


def test_an_output_that_does_not_depend_on_the_input_is_refused(write: Write) -> None:
    class Constant(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = chain(conv(8, 8), relu())
            self.register_buffer("constant", torch.ones(1, 10))

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return self.body(x), self.constant + 1

    with pytest.raises(FinnError, match="an output that does not depend on the input; return the logits"):
        load_integers(write(build(Constant)))


def test_a_branch_whose_signs_are_turned_leaves_the_other_alone(write: Write) -> None:
    """The sums of one convolution go into two batch norms, one with negative factors."""

    class Fork(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.left, self.right = conv(8, 8), negative(norm(8)), norm(8)
            self.shared = relu()

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return torch.cat([self.shared(self.left(x)), self.shared(self.right(x))], 1)

    model = build(lambda: last(Fork(), conv(16, 8, 1), relu(), *head(512)))
    equals_torch(write(model), model)
