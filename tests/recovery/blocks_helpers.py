"""A small network with blocks, whole and compressed."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor


class Block(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 8, 10, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def network() -> GraphModule:
    torch.manual_seed(0)
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5))
    model = nn.Sequential(nn.Conv2d(3, 16, 3, padding=1), nn.ReLU(), Block(16), Block(16), head)
    model(images())  # in training mode: gives the batch norms statistics
    return fxfactor.capture(model.eval(), images(1))
