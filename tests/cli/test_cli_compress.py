"""fxfactor compress on the command line: what it passes on, and what it refuses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cli_helpers import error_of, run

from fxfactor.compression import compress as module
from fxfactor.compression.result import Compressed, Row

RANDOM = np.random.default_rng(0)
IMAGES = {"x": RANDOM.normal(size=(12, 3, 16, 16)).astype(np.float32), "y": np.arange(12) % 10}
COMMAND = ["compress", "cli_nets:small", "--train", "train.npz", "--validation", "test.npz", "-o", "out"]


@pytest.fixture
def told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the function was called with."""
    np.savez("train.npz", **IMAGES)
    np.savez("test.npz", **IMAGES)
    given: dict[str, Any] = {}

    def compress(model: Any, train: Any, validation: Any, output: Path, **settings: Any) -> Compressed:
        given.update(settings, train=list(train), validation=list(validation), output=output)
        row = Row("free 1", False, 8, 0.5, 0.1, 1200, 3, 4, 0, 2010.0, fits=True, kept=True)
        return Compressed((row,), row, output, "ZCU104 at 200 MHz", 0.75, {"free 1": "{}"})

    monkeypatch.setattr(module, "compress", compress)
    return given


def test_options_become_arguments(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND, "--board", "KV260_SOM", "--target-fps", "10_000", "--limit", "lut=65000", "--epochs", "3", "--plans", "2",
               "--levels", "0,depthwise", "--bits", "4,8", "--widths", "1", "--join-bits", "4,6", "--keep", "3", "--batch-size", "5",
               "--workers", "2", "--ray") == 0  # fmt: skip
    wanted = {"board": "KV260_SOM", "target_fps": 10_000, "clock_ns": 5.0, "limits": {"lut": 65000}, "epochs": 3, "plans": 2,
              "levels": (0, "depthwise"), "bits": (4, 8), "widths": (1,), "join_bits": (4, 6), "keep": ("3",),
              "workers": 2, "engine": "ray"}  # fmt: skip
    assert {name: tuple(told[name]) if isinstance(told[name], list) else told[name] for name in wanted} == wanted
    assert told["tolerance"] is None
    assert [len(images) for images, _ in told["train"]] == [5, 5, 2]
    assert len(told["validation"]) == 3
    assert told["output"] == Path("out")
    printed = capsys.readouterr()
    assert "free 1" in printed.out and "1,200" in printed.out
    assert "saved in out: best/, plan.json, model.onnx, build/" in printed.err


def test_the_highest_speed_may_be_asked_for(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND, "--target-fps", "max", "--tolerance", "0.02") == 0
    assert (told["target_fps"], told["tolerance"]) == ("max", 0.02)
    capsys.readouterr()
    Path("train.npz").unlink()  # options are looked at before images are
    assert '--target-fps: a number of frames per second or "max" is required' in error_of(
        capsys, *COMMAND, "--target-fps", "fast", code=2
    )
    assert "--limit: NAME=N is required" in error_of(capsys, *COMMAND, "--limit", "lut", code=2)


def test_stopping_says_how_to_go_on(
    told: dict[str, Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compress(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "compress", compress)
    assert run(*COMMAND) == 130
    assert "the same command goes on from out" in capsys.readouterr().err


def test_the_result_as_json(told: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*COMMAND, "--json") == 0
    data = json.loads(capsys.readouterr().out)
    assert data["original"] == 0.75
    assert data["best"]["lut"] == 1200


def test_pairs_of_bits_and_images_without_labels_are_refused(
    told: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    assert "chosen one by one" in error_of(capsys, *COMMAND, "--bits", "8/4", code=2)
    np.savez("train.npz", x=IMAGES["x"])
    assert "training set 'train.npz': 'y is not a file" in error_of(capsys, *COMMAND)
    assert not told
