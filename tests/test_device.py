"""On a GPU everything follows the model: the same calls, with the images where they were."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.cli.app import main

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")


@pytest.fixture
def model() -> nn.Module:
    return nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval().cuda()  # fmt: skip


@pytest.fixture
def batches() -> list[tuple[torch.Tensor, torch.Tensor]]:
    return [(torch.randn(8, 3, 8, 8), torch.randint(4, (8,))) for _ in range(4)]


def on_gpu(network: nn.Module) -> bool:
    return {parameter.device.type for parameter in network.parameters()} == {"cuda"}


@pytest.mark.parametrize("with_images", [False, True])
def test_transform_recover_save(model, batches, tmp_path, with_images) -> None:
    images = [x for x, _ in batches]
    settings = {"calibration": images} if with_images else {"example_inputs": torch.zeros(1, 3, 8, 8).cuda()}
    qmodel = fxfactor.transform(model, level=2, bits=4, **settings)
    fxfactor.round_weights(model, qmodel, images)
    fxfactor.reconstruct(model, qmodel, images, steps=3)
    fxfactor.finetune(qmodel, batches, teacher=model, epochs=1, label_weight=1.0, checkpoint=tmp_path / "state")
    fxfactor.finetune(qmodel, batches, teacher=model, epochs=1, label_weight=1.0, checkpoint=tmp_path / "state")
    assert on_gpu(qmodel)
    again = fxfactor.load(fxfactor.save(qmodel, tmp_path / "net"), model)
    assert on_gpu(again)
    x = images[0].cuda()
    assert torch.equal(again.eval()(x), qmodel.eval()(x))


def test_mixed_precision(model, batches) -> None:
    qmodel = fxfactor.transform(model, level=2, bits=4, calibration=[x for x, _ in batches], precision="bfloat16")
    fxfactor.reconstruct(model, qmodel, [x for x, _ in batches], steps=3, precision="bfloat16")
    (epoch,) = fxfactor.finetune(qmodel, batches, teacher=model, epochs=1, precision="bfloat16")
    assert epoch.loss < float("inf")
    assert {parameter.dtype for parameter in qmodel.parameters()} == {torch.float32}


def test_explore(model, batches, tmp_path) -> None:
    result = fxfactor.explore(
        model, batches, batches, levels=(0, 2), bits=(4, 8, None), state=tmp_path / "state.sqlite"
    )
    assert [each.message for each in result.candidates] == [""] * 6
    mixed = fxfactor.explore(
        model, batches, batches, levels=(2,), bits=(4,), precision="bfloat16", state=tmp_path / "mixed"
    )
    assert [each.message for each in mixed.candidates] == [""]


def test_search(model, batches) -> None:
    plan = fxfactor.search(model, [x for x, _ in batches], fxfactor.Budget(bops=0.03), bits=(4, 8), levels=(0, 2))
    assert len(plan.layers) == 3


def test_on_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    images = np.random.default_rng(0).normal(size=(8, 3, 32, 32)).astype(np.float32)
    np.savez("set.npz", x=images, y=np.arange(8))
    for line in (
        "transform torchvision:resnet18 -l 3 -b 4 --images set.npz --device cuda -o net",
        "evaluate net --images set.npz --device cuda --json",
        "finetune net --images set.npz --device cuda --epochs 1 -o tuned",
    ):
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main(line.split())
        assert not stopped.value.code, line
        if "--json" in line:
            assert json.loads(capsys.readouterr().out)["net"]["images"] == 8
