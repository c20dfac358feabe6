"""Layers and their data for the tests of the factors."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.factors.weights import Factors

CONVOLVE = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}


def random_weight(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def run_chain(x: Tensor, factors: Factors, groups: int, original_groups: int = 1) -> Tensor:
    convolve = CONVOLVE[factors.spatial.dim() - 2]
    return convolve(convolve(x, factors.spatial, groups=groups), factors.pointwise, groups=original_groups)


def full_rank_mid(weight: Tensor, groups: int, original_groups: int = 1) -> int:
    d = weight[0].numel() * original_groups // groups
    return groups * min(weight.shape[0] // original_groups, d)


def built(conv: nn.Module) -> nn.Module:
    torch.manual_seed(0)
    conv.reset_parameters()
    return conv.double().requires_grad_(False)
