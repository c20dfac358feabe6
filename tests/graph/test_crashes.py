"""Ordinary networks that once ended in a KeyError or IndexError: they are captured, quantized and calibrated."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from networks import difference_in_float64
from small_model import SHAPE, Small
from torch import Tensor, nn

import fxfactor

X = torch.zeros(SHAPE)


class Net(nn.Module):
    """Convolution a (3 → 16), layers and buffers by name, and a forward written in the test."""

    def __init__(self, function: Callable[..., Tensor], **named: Any) -> None:
        super().__init__()
        self.function, self.a = function, nn.Conv2d(3, 16, 3, padding=1)
        for name, value in named.items():
            if type(value) is Tensor:
                self.register_buffer(name, value)
            else:
                setattr(self, name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def _token(m: Any, x: Tensor) -> Tensor:
    tokens = m.a(x).flatten(2).transpose(1, 2)
    return m.l(torch.cat([m.token.expand(x.shape[0], -1, -1), tokens], 1))


def _positions(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    return m.b(torch.relu(y + m.position[:, :, : y.shape[2], : y.shape[3]]))


def _attention(m: Any, x: Tensor) -> Tensor:
    y = m.a(x)
    largest, _ = torch.max(y, 1, keepdim=True)
    return y * torch.sigmoid(m.s(torch.cat([y.mean(1, keepdim=True), largest], 1)))


def _top(m: Any, x: Tensor) -> Tensor:
    values, _ = m.a(x).flatten(1).topk(16)
    return m.l(torch.cat([values, values], 1))


def _unbind(m: Any, x: Tensor) -> Tensor:
    first, second = m.a(x).unflatten(1, (2, 8)).unbind(1)
    return m.b(torch.cat([first + second, first], 1))


def _grid(m: Any, x: Tensor) -> Tensor:
    y = m.b(m.a(x))
    grid = torch.stack(torch.meshgrid(torch.arange(8), torch.arange(8), indexing="ij"), 0).to(y.dtype)
    return torch.cat([y, grid.expand(y.shape[0], -1, -1, -1)], 1)


def _b() -> nn.Module:
    return nn.Conv2d(16, 16, 3, padding=1)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "token": lambda: Net(_token, l=nn.Linear(16, 4), token=nn.Parameter(torch.randn(1, 1, 16))),
    "positions": lambda: Net(_positions, b=_b(), position=nn.Parameter(torch.randn(1, 16, 12, 12))),
    "attention": lambda: Net(_attention, s=nn.Conv2d(2, 1, 7, padding=3)),
    "top": lambda: Net(_top, l=nn.Linear(32, 4)),
    "unbind": lambda: Net(_unbind, b=_b()),
    "grid": lambda: Net(_grid, b=_b()),
    "mean": lambda: Net(lambda m, x: m.b(m.a(x - m.mean)), b=_b(), mean=torch.full((3, 1, 1), 0.5)),
}


@pytest.mark.parametrize("name", NETWORKS)
def test_captured_quantized_and_calibrated(name: str):
    model, images = NETWORKS[name]().eval(), torch.randn(8, *SHAPE[1:])
    assert difference_in_float64(fxfactor.capture(model, X), model, SHAPE) < 1e-6
    fxfactor.transform(model, level=3, bits=4, example_inputs=X)
    fitted = fxfactor.transform(model, level=0, bits=8, calibration=[images])
    with torch.no_grad():
        assert (fitted(images) - model(images)).norm() < 0.1 * model(images).norm()


class Recurrent(Small):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.LSTM(16, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        sequence, _ = self.t(self.body(x).flatten(2).transpose(1, 2))
        return self.l(sequence[:, -1])


class Attention(Small):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.MultiheadAttention(16, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.body(x).flatten(2).transpose(1, 2)
        return self.l(self.t(tokens, tokens, tokens)[0].mean(1))


class Einsum(Small):
    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.randn(16, 16))

    def forward(self, x: Tensor) -> Tensor:
        return self.l(torch.einsum("nchw,cd->ndhw", self.body(x), self.w).mean((2, 3)))


class Encoder(Small):
    def __init__(self) -> None:
        super().__init__()
        self.t = nn.TransformerEncoderLayer(16, 2, 32, dropout=0.0, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.t(self.body(x).flatten(2).transpose(1, 2)).mean(1))


class Deformed(Small):
    def __init__(self) -> None:
        from torchvision.ops import DeformConv2d

        super().__init__()
        self.offsets = nn.Conv2d(16, 18, 1)
        self.t = DeformConv2d(16, 16, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.l(self.t(h, self.offsets(h)).mean((2, 3)))


@pytest.mark.parametrize(
    ("build", "kept"),
    [
        (Recurrent, "t (LSTM)"),
        (Attention, "t (MultiheadAttention)"),
        (Einsum, "einsum (einsum)"),
        (Encoder, "t (TransformerEncoderLayer)"),
        (Deformed, "t (deform_conv2d)"),
    ],
)
def test_what_no_pass_knows_is_kept_whole_and_listed(build: Callable[[], nn.Module], kept: str):
    if build is Deformed:
        pytest.importorskip("torchvision")
    model = build().eval()
    transformed = fxfactor.transform(model, level=3, bits=8, example_inputs=X)
    found = fxfactor.summary(transformed, show=False)
    assert found.kept_whole == (kept,)
    assert f"kept in floating point and not counted: {kept}" in str(found)
    assert torch.isfinite(transformed.train()(torch.randn(SHAPE))).all()
