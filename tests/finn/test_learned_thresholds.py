"""Learned thresholds in hardware: the same integers as the network with its curves, and the same cost as without."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from finn_helpers import outputs_in_float64, relative, spread_batch_norms
from networks import ResidualNet
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.finn.process.load import load_integers
from fxfactor.passes import LearnThresholds
from fxfactor.quantization.threshold_curve import ThresholdCurve


def images(count: int = 6) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def without_and_with_curves(bits: int, pieces: int) -> tuple[GraphModule, GraphModule]:
    torch.manual_seed(0)
    model: nn.Module = ResidualNet().eval()
    spread_batch_norms(model)
    plain = fxfactor.transform(model, level=1, bits=bits, calibration=[images()]).eval()
    curved = LearnThresholds(pieces)(plain).graph
    with torch.no_grad():
        for curve in curved.modules():
            if isinstance(curve, ThresholdCurve):
                curve.log_slopes.normal_(0, 0.5)
                curve.knots.add_(0.1 * torch.randn_like(curve.knots))
    return plain, curved


@pytest.mark.parametrize(("bits", "pieces"), [(2, 3), (3, 4), (4, 7)])
def test_the_integers_are_those_of_the_curves(bits: int, pieces: int, tmp_path: Path) -> None:
    plain, curved = without_and_with_curves(bits, pieces)
    fxfactor.export(curved, tmp_path / "net.onnx", example_inputs=images()[:1])
    wanted = outputs_in_float64(curved, images())
    assert relative(load_integers(tmp_path / "net.onnx")(images().numpy()), wanted) < 1e-6
    assert relative(outputs_in_float64(plain, images()), wanted) > 1e-2, "the curves change something"


def test_finns_estimate_is_that_of_a_network_without_curves(tmp_path: Path) -> None:
    """Thresholds in both: one multiplication in their place is no longer possible where they do not lie at equal distances."""
    found = []
    for name, network in zip(("plain", "curved"), without_and_with_curves(3, 4), strict=True):
        file = fxfactor.export(network, tmp_path / f"{name}.onnx", example_inputs=images()[:1]).path
        assert not fxfactor.finn.check(file)
        found.append(fxfactor.finn.estimate(file, "Pynq-Z2", 1000, requant=False, cache=tmp_path / "cache"))
    plain, curved = found
    # the widest threshold has a bit more or less
    assert curved.total.lut == pytest.approx(plain.total.lut, rel=2e-3)
    assert (curved.total.bram18, curved.total.dsp, curved.total.uram) == (plain.total.bram18, plain.total.dsp, 0)
    assert curved.fps == plain.fps
