"""The public names, and how soon they are there."""

from __future__ import annotations

import subprocess
import sys

import pytest

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
