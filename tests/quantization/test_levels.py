"""Rounding to the levels of a quantizer, as Brevitas does it."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, randomized

import fxfactor
from fxfactor.quantization.levels import rounded_weight

pytest.importorskip("scipy")


def test_weights_are_rounded_as_brevitas_rounds_them() -> None:
    qmodel = fxfactor.transform(randomized(ResidualNet(16)), level=0, bits=3, example_inputs=torch.randn(1, 3, 16, 16))
    layer = qmodel.get_submodule("block.conv1")
    torch.testing.assert_close(rounded_weight(layer.weight.detach(), 3), layer.quant_weight().value.detach())
