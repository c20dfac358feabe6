"""fxfactor evaluate and fxfactor finetune."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, error_of, run

import fxfactor
from fxfactor.quantization.brevitas_layers import is_quantized_layer
from fxfactor.quantization.threshold_curve import ThresholdCurve

NET = SMALL[0]


@pytest.fixture
def trained(folder: Path) -> Path:
    """Weights, and images labelled with what the network says of them, but the first, which is labelled wrongly."""
    assert run("summary", *SMALL) == 0
    torch.manual_seed(1)
    model = sys.modules["cli_nets"].small().eval()
    images = torch.randn(40, 3, 16, 16)
    with torch.no_grad():
        labels = model(images).argmax(1)
    labels[0] = (labels[0] + 1) % 10
    np.savez("set.npz", x=images.numpy(), y=labels.numpy())
    torch.save({"state_dict": {f"module.{name}": value for name, value in model.state_dict().items()}}, "w.pth")
    assert run("transform", *SMALL, "--weights", "w.pth", "-l", "2", "-b", "3", "-o", "net", "-q") == 0
    return folder


def test_evaluate_and_finetune(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    named = ["--model", NET, "--weights", "w.pth"]
    measure = ["--images", "set.npz", "--json"]
    assert run("evaluate", NET, "net", *named, *measure, "-o", "accuracy.json") == 0
    before = json.loads(capsys.readouterr().out)
    assert before["original"]["top1"] == 39 / 40
    assert before["original"]["images"] == 40
    assert before["net"]["top1"] <= before["net"]["top5"] <= 1
    assert json.loads(Path("accuracy.json").read_text()) == {name: row["top1"] for name, row in before.items()}
    train = ["finetune", "net", *named, "--images", "set.npz", "--batch-size", "8", "-o", "tuned"]
    assert run(*train, "--epochs", "3", "--checkpoint", "state", "--json") == 0
    printed = capsys.readouterr()
    epochs = json.loads(printed.out)
    assert [each["number"] for each in epochs] == [0, 1, 2]
    assert epochs[-1]["loss"] < epochs[0]["loss"]
    assert f"next: fxfactor export tuned tuned.onnx --model {NET}\n" in printed.err
    model = sys.modules["cli_nets"].small()
    changed = fxfactor.load("tuned", model).state_dict()
    assert any(
        not torch.equal(value, changed[name]) for name, value in fxfactor.load("net", model).state_dict().items()
    )
    assert run(*train, "--epochs", "3", "--checkpoint", "state", "--json") == 0  # goes on from the end
    assert json.loads(capsys.readouterr().out) == []


def test_without_weights_the_labels_teach(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("finetune", "net", "--model", NET, "--images", "set.npz", "--epochs", "1", "-o", "tuned") == 0
    assert "there is no teacher: training on the labels alone" in capsys.readouterr().err


def test_thresholds_are_trained_where_asked_for(trained: Path) -> None:
    train = ["finetune", "net", "--model", NET, "--weights", "w.pth", "--images", "set.npz", "--epochs", "1"]
    assert run(*train, "--learn-thresholds", "-o", "tuned") == 0
    model = sys.modules["cli_nets"].small()
    bends = [module for module in fxfactor.load("tuned", model).modules() if isinstance(module, ThresholdCurve)]
    assert bends
    assert all(bool(bend.log_slopes.abs().max() > 0) for bend in bends)
    assert run("finetune", "tuned", *train[2:], "--learn-thresholds", "-o", "tuned-on") == 0
    assert len(fxfactor.load("tuned-on", model).state_dict()) == len(fxfactor.load("tuned", model).state_dict())


@pytest.mark.parametrize("limits", ["learned", "largest"])
def test_weights_end_on_their_levels_where_their_limits_are_learned(trained: Path, limits: str) -> None:
    train = ["finetune", "net", "--model", NET, "--weights", "w.pth", "--images", "set.npz", "--epochs", "1"]
    assert run(*train, "--weight-limits", limits, "-o", "tuned") == 0
    tuned = fxfactor.load("tuned", sys.modules["cli_nets"].small())
    layers = [module for module in tuned.modules() if is_quantized_layer(module)]
    rounded = [torch.allclose(layer.quant_weight().value, layer.weight, atol=1e-6) for layer in layers]
    assert all(rounded) == (limits == "learned")


def test_rates_are_tried_and_jumping_weights_frozen_where_asked_for(
    trained: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    train = ["finetune", "net", "--model", NET, "--weights", "w.pth", "--images", "set.npz", "--epochs", "2"]
    asked = ["--oscillations", "frozen", "--label-weight", "1", "--label-epochs", "1", "-o", "tuned"]
    assert run(*train, "--learning-rate", "try", *asked) == 0
    told = capsys.readouterr().err
    assert re.search(r"epoch 2: loss .* learning rate (0.0005|0.001|0.002|0.005), \d+ weights frozen", told)
    assert "required" in error_of(capsys, *train, "--learning-rate", "-1", "-o", "other", code=2)
    assert not Path("other").exists()


def test_the_table_of_accuracies(trained: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    assert run("evaluate", NET, "--weights", "w.pth", "--images", "set.npz") == 0
    assert "original 40 97.50%" in " ".join(capsys.readouterr().out.split())
