"""The whole chain on whole networks: transform, export, FINN's steps to the estimates, equal to PyTorch on 20 images."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from finn_helpers import spread_batch_norms
from torch import nn
from trained import digits, digits_network

import fxfactor

IMAGES = 20


def _network(name: str, request: pytest.FixtureRequest) -> tuple[nn.Module, torch.Tensor]:
    if name == "digits":
        return digits_network(), digits("test")[0][:IMAGES]
    if name == "resnet20":
        realdata: Any = request.getfixturevalue("realdata")
        return realdata.cifar_resnet(20).eval(), realdata.cifar10("test")[0][:IMAGES]
    models = pytest.importorskip("torchvision.models")
    model = getattr(models, name)(num_classes=100).eval()
    spread_batch_norms(model)
    return model, torch.randn(IMAGES, 3, 64, 64)


CASES = [
    *((name, level, 4) for name in ("resnet18", "mobilenet_v2", "resnet50") for level in (0, 1, 3, "depthwise")),
    *((name, level, bits) for name in ("digits", "resnet20") for level in (0, 1, 3, "depthwise") for bits in (2, 4, 8)),
]


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize(("name", "level", "bits"), CASES)
def test_from_the_model_to_estimates(
    name: str, level: int | str, bits: int, request: pytest.FixtureRequest, tmp_path: Path, cache: Path
) -> None:
    model, images = _network(name, request)
    qmodel = fxfactor.transform(model, level=level, bits=bits, example_inputs=images[:1])  # type: ignore[arg-type]
    file = tmp_path / "model.onnx"
    fxfactor.export(qmodel, file, target="finn", example_inputs=images[:1])
    # ResNet-50 does not fit a ZCU104 at any speed, and our folding says so
    board, fps = ("ZCU104", 1000) if name in ("digits", "resnet20") else ("U250", 100)
    verify = images, fxfactor.finn.reference(qmodel, images)
    estimate = fxfactor.finn.estimate(file, board, fps, verify=verify, cache=cache)
    compared = estimate.steps[0]
    print(
        f"\n{name} level {level} bits {bits}: {estimate.total} {estimate.fps:.0f} fps, "
        f"difference {compared.difference:.1e}, {estimate.seconds:.0f} s"
    )
    assert compared.images == IMAGES
    assert compared.difference is not None
    assert compared.difference <= 1e-5
    assert compared.same_argmax == 1.0
    assert not estimate.software
    assert not estimate.floating
    assert estimate.fps > 0
