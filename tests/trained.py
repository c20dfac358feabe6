"""A small trained network and its images, for tests of accuracy: a random network is a weak witness there.

The network is a residual one of 6,114 parameters for scikit-learn's handwritten digits (8 × 8 pixels), trained by
`data/train_digits.py`; nothing is fetched. Trained weights have what random ones lack: decaying singular values, channels of
unlike ranges, batch norms with statistics of their own, and an accuracy that can be lost.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

WEIGHTS = Path(__file__).parent / "data" / "digits.safetensors"


class Block(nn.Module):
    """Two 3×3 convolutions beside the identity (He et al. 2015)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + x)


class DigitsNet(nn.Module):
    """(N, 1, 8, 8) → (N, 10): a stem, a strided convolution, one residual block, average pooling, a classifier."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 16, 3, stride=2, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(16)
        self.block = Block(16)
        self.linear = nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        x = F.relu(self.bn2(self.conv2(x)))
        return self.linear(self.block(x).mean((2, 3)))


def digits_network() -> DigitsNet:
    """The trained network in eval mode, a new one at every call: 98.9 % of the test images."""
    model = DigitsNet()
    model.load_state_dict(load_file(WEIGHTS))
    return model.eval()


@cache
def _all_digits() -> tuple[Tensor, Tensor]:
    from sklearn.datasets import load_digits

    data = load_digits()
    order = torch.randperm(len(data.target), generator=torch.Generator().manual_seed(0))
    images = torch.from_numpy(data.images).float().unsqueeze(1) / 8 - 1
    return images[order], torch.from_numpy(data.target).long()[order]


def digits(split: str) -> tuple[Tensor, Tensor]:
    """Images (N, 1, 8, 8) float32 in −1 … 1 and labels (N,) int64. "train": 1,347, "test": the other 450."""
    parts = {"train": slice(0, 1347), "test": slice(1347, None)}
    if split not in parts:
        raise ValueError(f"split must be one of {sorted(parts)}, found {split!r}")
    images, labels = _all_digits()
    return images[parts[split]].clone(), labels[parts[split]].clone()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in per cent."""
    return 100 * float((model(images).argmax(1) == labels).double().mean())
