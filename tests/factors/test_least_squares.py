"""Moments of patches and the least-squares steps on them."""

from __future__ import annotations

import torch
from factors_helpers import built, random_weight
from torch import nn

from fxfactor.factors.lockstep import moments_of, patches


def test_moments_of_parts_add_up():
    conv = built(nn.Conv2d(4, 6, 3, groups=2))
    x = random_weight(6, 4, 7, 7) + torch.arange(6).view(-1, 1, 1, 1)
    (whole,) = moments_of(x, conv(x), conv)
    first, second = (next(moments_of(part, conv(part), conv)) for part in (x[:2], x[2:]))
    for name in ("count", "input_mean", "output_mean", "inputs", "cross", "outputs"):
        torch.testing.assert_close(getattr(first + second, name), getattr(whole, name), rtol=1e-10, atol=1e-10)
    zero = (first + second).about_zero()
    flat = patches(x, conv)
    torch.testing.assert_close(zero.inputs, flat @ flat.mT / flat.shape[-1], rtol=1e-10, atol=1e-10)
