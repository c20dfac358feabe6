"""Networks, weights and images that the command line is given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, error_of, run
from safetensors.torch import save_file

import fxfactor


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_loaded(folder: Path, suffix: str) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    model = sys.modules["cli_nets"].small()
    (save_file if suffix == "safetensors" else torch.save)(model.state_dict(), f"w.{suffix}")
    assert run("transform", *SMALL, "--weights", f"w.{suffix}", "-o", "net") == 0
    assert torch.equal(fxfactor.load("net", model).state_dict()["0.weight"], model[0].weight)


def test_calibration_images_set_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).normal(size=(40, 3, 16, 16))
    for name, scale in (("one", 1.0), ("large", 100.0)):
        np.save(f"{name}.npy", scale * images)
        assert run("transform", *SMALL, "-b", "8", "--calibration", f"{name}.npy", "-o", name) == 0
    model = sys.modules["cli_nets"].small()
    one, large = (fxfactor.load(name, model).state_dict() for name in ("one", "large"))
    (key,) = [key for key in one if key.startswith("input") and key.endswith("value")]
    assert float(large[key] / one[key]) == pytest.approx(100, rel=0.01)


def test_a_variable_inside_a_class_can_be_named() -> None:
    assert run("summary", "cli_nets:Nets.ready") == 0


def test_torchvision_and_its_networks_with_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", "torchvision:mobilenet_v3_small", "-l", "1", "--input-size", "3x32x32") == 0
    assert "features.0.0" in capsys.readouterr().out
    assert run("summary", "torchvision:lraspp_mobilenet_v3_large", "--input-size", "3x64x64") == 0


def test_weights_of_another_network_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    torch.save(sys.modules["cli_nets"].small(first=24).state_dict(), "other.pth")
    assert "do not fit Sequential" in error_of(capsys, "transform", *SMALL, "--weights", "other.pth")


def test_a_folder_without_source_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    fxfactor.save(fxfactor.transform(sys.modules["cli_nets"].small(), level=1), "net")
    assert "does not say where its network comes from" in error_of(capsys, "summary", "net")


def test_errors_of_the_users_own_code_are_explained_and_traced_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("import a_module_that_is_missing\n")
    told = error_of(capsys, "transform", "broken:net")
    assert "importing 'broken' raised ModuleNotFoundError: No module named 'a_module_that_is_missing' at" in told
    assert "--verbose shows the traceback" in told
    assert run("transform", "broken:net", "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err
