"""Every example runs, as a user would run it, and prints and writes what it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parent.parent / "examples").glob("[0-9]*.py"))
SLOW = ("02", "08", "12")
"""Half a minute of CPU time each; others do the like with less."""
WRITES = {
    "01": ("resnet18/model.safetensors", "resnet18/plan.json", "resnet18.onnx"),
    "02": ("resnet50-plan.json", "resnet50.onnx"),
    "03": ("mobilenet_v2/plan.json", "mobilenet_v2.onnx"),
    "04": ("your_own_cnn.onnx",),
    "05": ("digits/model.safetensors", "digits/plan.json", "digits.onnx"),
}


def _cases() -> list[object]:
    return [pytest.param(path, marks=_marks(path), id=path.stem) for path in EXAMPLES]


def _marks(path: Path) -> list[pytest.MarkDecorator]:
    finn = [pytest.mark.finn] if "fxfactor.finn" in path.read_text() else []
    return [*finn, pytest.mark.slow] if path.stem.startswith(SLOW) else finn


def run(path: Path, folder: Path) -> str:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run([sys.executable, str(path)], cwd=folder, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.parametrize("path", _cases())
def test_example_runs(path: Path, tmp_path: Path) -> None:
    printed = run(path, tmp_path)
    assert printed
    for name in WRITES.get(path.stem[:2], ()):
        assert (tmp_path / "out" / name).stat().st_size > 0
    if path.stem == "05_digits":
        _check_accuracies(printed)
    if path.stem == "09_your_own_training_loop":
        floating, compressed, *trained = _shares(printed)
        assert compressed < floating
        assert trained
        assert all(compressed < share for share in trained)


def _shares(printed: str) -> list[float]:
    """The number of every line that ends in one with %."""
    return [float(line.split()[-1].rstrip("%")) for line in printed.splitlines() if line.rstrip().endswith("%")]


def _check_accuracies(printed: str) -> None:
    """Each step must help, and training must bring back what floating point had, within two points of a hundred."""
    floating, data_free, calibrated, trained = _shares(printed)[-4:]
    assert floating > 97
    assert 40 < data_free < calibrated
    assert calibrated > 90
    assert trained > floating - 2
