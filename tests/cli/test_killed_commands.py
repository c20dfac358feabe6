"""Commands that are killed at random moments: nothing is lost, nothing half-written is seen, the next run ends well and sweeps."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest

import fxfactor

pytestmark = pytest.mark.slow

NETWORK = """
import torch
from torch import nn

def build():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16),
        nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4))
"""
MODEL = ("--model", "killed_net:build")
READY = (
    ("transform", "killed_net:build", "-l", "2", "-b", "4", "--images", "x.npy", "-o", "ready"),
    ("export", "ready", "ready.onnx", *MODEL, "--target", "finn"),
)
"""What some of the commands begin with; run once."""
COMMANDS = {
    "save": (("transform", "killed_net:build", "-l", "2", "-b", "4", "--images", "x.npy", "--round", "-o", "out"), "out"),
    "export": (("export", "ready", "out.onnx", *MODEL), "out.onnx"),
    "finetune": (
        ("finetune", "ready", *MODEL, "--images", "xy.npz", "--epochs", "6", "--checkpoint", "state", "-o", "out"),
        "out",
    ),
    "explore": (
        ("explore", "killed_net:build", "--images", "x.npy", "--validation", "xy.npz", "--levels", "0,1,2", "--bits", "4,8",
         "--state", "explore.sqlite", "--workers", "2", "--picture", "out.png"),
        "out.png",
    ),
    "prepare": (("finn", "prepare", "out", "ready.onnx"), "out"),
}  # fmt: skip
KILLS = 6
"""Of each command: 30 in all."""
MAIN = "import sys; from fxfactor.cli.app import main; main(sys.argv[1:])"


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "OMP_NUM_THREADS": "1", "FXFACTOR_TEST_FOLDER": str(folder)}


def run(words: tuple[str, ...], folder: Path) -> None:
    command = [sys.executable, "-c", MAIN, *words]
    done = subprocess.run(command, cwd=folder, env=environment(folder), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def kill(words: tuple[str, ...], folder: Path, after: float) -> None:
    """Start a command and kill it, alone, after so many seconds: what it has started must notice by itself."""
    with (
        open(os.devnull, "wb") as nowhere,
        subprocess.Popen(
            [sys.executable, "-c", MAIN, *words], cwd=folder, env=environment(folder), stdout=nowhere, stderr=nowhere
        ) as process,
    ):
        time.sleep(after)
        process.send_signal(signal.SIGKILL)


def of_this_test(folder: Path) -> list[str]:
    """Processes that were started from here and are still there."""
    mark, found = f"FXFACTOR_TEST_FOLDER={folder}\0".encode(), []
    for place in Path("/proc").glob("[0-9]*"):
        try:
            if (
                mark in (place / "environ").read_bytes()
                and (place / "stat").read_text().rpartition(")")[2].split()[0] != "Z"
            ):
                found.append((place / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except (OSError, IndexError):
            continue
    return found


def is_whole(path: Path) -> bool:
    """Whether what a command wrote can be used."""
    if path.suffix == ".onnx":
        return len(onnx.load(path).graph.node) > 0
    if path.suffix == ".png":
        return path.read_bytes().endswith(b"IEND\xaeB`\x82")
    if (path / "build_finn.py").is_file():
        return (path / "model.onnx").is_file() and (path / "estimate.json").is_file()
    sys.path.insert(0, str(path.parent))
    try:
        import killed_net

        fxfactor.load(path, killed_net.build().eval())
    finally:
        sys.path.remove(str(path.parent))
    return True


@pytest.fixture
def place(tmp_path: Path) -> Path:
    (tmp_path / "killed_net.py").write_text(NETWORK)
    x = np.random.default_rng(0).normal(size=(64, 3, 16, 16)).astype(np.float32)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=np.arange(64) % 4)
    for words in READY:
        run(words, tmp_path)
    return tmp_path


@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="needs /proc")
@pytest.mark.parametrize(
    "name", [*sorted(set(COMMANDS) - {"prepare"}), pytest.param("prepare", marks=pytest.mark.finn)]
)
def test_kills_at_random_moments(name: str, place: Path) -> None:
    words, output = COMMANDS[name]
    before = {path.name for path in place.iterdir()}
    began = time.perf_counter()
    run(words, place)
    lasted = time.perf_counter() - began
    expected = {path.name for path in place.iterdir()}
    random.seed(name)
    for _ in range(KILLS):
        for path in place.iterdir():
            if path.name not in before:
                subprocess.run(["rm", "-rf", str(path)], check=True)
        kill(words, place, lasted * random.uniform(0.1, 1.0))
        assert not (place / output).exists() or is_whole(place / output)
        if name != "prepare" or not (place / output).exists():  # a build that is there is not replaced
            run(words, place)
        assert is_whole(place / output)
        assert {path.name for path in place.iterdir()} == expected
        for _ in range(100):  # workers notice that their parent is gone
            if not of_this_test(place):
                break
            time.sleep(0.1)
        assert of_this_test(place) == []
