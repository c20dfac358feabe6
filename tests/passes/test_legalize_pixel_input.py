"""LegalizePixelInput: pixels in, the same outputs as from the normalised image."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.passes.legalize_pixel_input import LegalizePixelInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture
def graph() -> torch.fx.GraphModule:
    """A small quantized network on images of 3 x 12 x 10."""
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 5),
    ).eval()  # fmt: skip
    return fxfactor.transform(model, bits=4, example_inputs=torch.randn(1, 3, 12, 10)).eval()


def test_the_same_function_of_the_pixels(graph: torch.fx.GraphModule) -> None:
    pixels = torch.randint(0, 256, (16, 3, 12, 10)).double()
    mean, std = (torch.tensor(values, dtype=torch.float64).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    result = LegalizePixelInput(MEAN, STD)(graph)
    assert result.changes[0].into == ("pixels", "normalization")
    with torch.no_grad():
        wanted = graph.double()((pixels / 255 - mean) / std)
        found = result.graph.double()(pixels)
    assert float((found - wanted).abs().max() / wanted.abs().max()) < 1e-6


def test_a_second_run_skips(graph: torch.fx.GraphModule) -> None:
    once = LegalizePixelInput(MEAN, STD)(graph).graph
    (skip,) = LegalizePixelInput(MEAN, STD)(once).skips
    assert "pixels already" in skip.reason


def test_what_does_not_fit_is_refused(graph: torch.fx.GraphModule) -> None:
    with pytest.raises(fxfactor.PreconditionError, match="mean needs 3 values"):
        LegalizePixelInput((0.5, 0.5), STD)(graph)
    with pytest.raises(fxfactor.PreconditionError, match="std above 0"):
        LegalizePixelInput(MEAN, (0.0, 1.0, 1.0))(graph)
    plain = fxfactor.capture(nn.Sequential(nn.Conv2d(3, 8, 3)).eval(), torch.randn(1, 3, 8, 8))
    with pytest.raises(fxfactor.PreconditionError, match="starts with a quantizer"):
        LegalizePixelInput(MEAN, STD)(plain)


def test_no_float_is_left_in_the_network_in_integers(graph: torch.fx.GraphModule, tmp_path: object) -> None:
    from pathlib import Path

    from fxfactor.finn.process.load import load_integers

    pixels = torch.randint(0, 256, (16, 3, 12, 10)).float()
    result = LegalizePixelInput(MEAN, STD)(graph).graph
    file = Path(str(tmp_path)) / "pixels.onnx"
    fxfactor.export(result, file, target="finn", example_inputs=pixels[:1])
    network = load_integers(file)
    assert network.notes["input"]["datatype"] == "UINT8"
    assert network.notes["input"]["scale"] == 1.0
    wanted = fxfactor.finn.reference(result, pixels).numpy()
    assert abs(network(pixels.numpy()) - wanted).max() < 1e-9 * abs(wanted).max()
