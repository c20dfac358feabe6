"""The public names, and how soon they are there."""

from __future__ import annotations

import inspect
import subprocess
import sys
from typing import Any

import pytest

import fxfactor
from fxfactor.exploration.rung import top1

HEAVY = ("matplotlib", "networkx", "onnx", "onnxoptimizer", "onnxscript", "qonnx", "torchvision", "typer")


@pytest.mark.parametrize(
    ("statement", "heavy"),
    [
        ("import fxfactor", ("torch", "brevitas", *HEAVY)),
        ("from fxfactor.cli import app", ("torch", "brevitas", *(name for name in HEAVY if name != "typer"))),
        ("from fxfactor import *; import fxfactor.passes", HEAVY),
    ],
)
def test_importing_is_cheap(statement: str, heavy: tuple[str, ...]) -> None:
    code = f"{statement}; import sys; print([name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert done.stdout.strip() == "[]"


def test_public_names_are_functions_whatever_was_imported_before() -> None:
    code = "import fxfactor.recovery.finetune as ft, fxfactor.graph.capture, fxfactor.passes, fxfactor; print([callable(getattr(fxfactor, n)) for n in fxfactor.__all__])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd="/")
    assert "False" not in done.stdout


DEFAULTS: dict[str, dict[str, Any]] = {
    "explore": {
        "levels": range(7), "bits": (2, 3, 4, 8), "metric": top1, "finetune": None, "state": "explore.sqlite", "workers": 1,
        "engine": "local", "images": 256, "boundary_bits": 8, "keep": (), "widths": (1,), "board": None, "target_fps": 1000,
        "clock_ns": 5.0, "python": None, "precision": "float32", "progress": None,
    },
    "export": {"target": "qonnx", "example_inputs": None},
    "finetune": {
        "teacher": None, "epochs": 2, "learning_rate": 2e-3, "label_weight": 0.0, "label_epochs": None, "augment": None,
        "batch_norm": "fixed", "weight_limits": "learned", "oscillations": "free", "precision": "float32", "seed": 0, "checkpoint": None,
    },
    "groups_at": {"original_groups": 1},
    "reconstruct": {
        "steps": 1000, "batch_size": 32, "learning_rate": None, "augment": fxfactor.flip_shift_and_cut,
        "precision": "float32", "seed": 0,
    },
    "round_weights": {"ridge": 0.1, "memory_limit": 2 << 30},
    "search": {
        "levels": (0, 1, 2, 3, 4, 5, 6, "depthwise"), "bits": (2, 3, 4, 5, 6, 8), "weight_bits": None, "activation_bits": None,
        "widths": (1,), "boundary_bits": 8, "join_bits": 8, "keep": (), "measure": ("both", "output", "weighted"), "images": 512,
        "board": None, "clock_ns": 5.0, "target_fps": 1000, "python": None, "workers": 1, "engine": "local",
    },
    "summary": {"show": True},
    "transform": {"level": None, "bits": None, "width": 1, "join_bits": None, "plan": None, "keep": (), "example_inputs": None, "calibration": None,
        "recover": None, "steps": 1000, "compare": True, "precision": "float32",
    },
}  # fmt: skip


@pytest.mark.parametrize("name", DEFAULTS)
def test_what_one_gets_without_asking_stays_what_it_was(name: str) -> None:
    """Whoever leaves a setting away relies on its default: a change belongs into CHANGELOG.md, and then here."""
    parameters = inspect.signature(getattr(fxfactor, name)).parameters.values()
    found = {each.name: each.default for each in parameters if each.default is not inspect.Parameter.empty}
    assert found == DEFAULTS[name]
