"""Patches and moments of the layers of two networks side by side."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxfactor.factors.lockstep import patches
from fxfactor.factors.weights import split_originals


@pytest.mark.parametrize(
    "conv",
    [
        nn.Conv1d(4, 6, 3, stride=2, padding=1, dilation=2),
        nn.Conv2d(4, 6, (3, 2), stride=(2, 1), padding=(1, 0), groups=2, padding_mode="circular"),
        nn.Conv2d(4, 6, 3, padding="same", dilation=(1, 2)),
        nn.Conv3d(2, 3, (1, 2, 3), padding=(0, 1, 1)),
    ],
)
def test_weight_times_patches_is_the_convolution(conv):
    conv = conv.double()
    x = torch.randn(2, conv.in_channels, *[9, 8, 7][: len(conv.kernel_size)], dtype=torch.float64)
    product = split_originals(conv.weight, conv.groups) @ patches(x, conv)
    wanted = (conv(x) - conv.bias.reshape(1, -1, *[1] * len(conv.kernel_size))).transpose(0, 1)
    torch.testing.assert_close(product.reshape(wanted.shape), wanted)
