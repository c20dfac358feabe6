"""Try the installed wheel as a user would: command line, transform, export. Run by `make dist`, away from the sources."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import fxfactor
import fxfactor.passes

COMMAND = Path(sys.executable).parent / "fxfactor"


def command(*words: str, folder: str) -> str:
    return subprocess.run([COMMAND, *words], cwd=folder, check=True, capture_output=True, text=True).stdout


def main() -> None:
    for module in (fxfactor, fxfactor.passes):
        place = Path(module.__file__).resolve()
        assert "site-packages" in place.parts, f"{module.__name__} is not the installed one: {place}"
    model = nn.Sequential(
        *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 4)),
    ).eval()
    images = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    with tempfile.TemporaryDirectory() as folder:
        assert "transform" in command("--help", folder=folder)
        qmodel = fxfactor.transform(model, level=2, bits=4, example_inputs=images)
        exported = fxfactor.export(qmodel, Path(folder) / "model.onnx", example_inputs=images)
        assert exported.path.stat().st_size > 0
        assert exported.relative_difference < 1e-4
        saved = fxfactor.save(qmodel, Path(folder) / "saved")
        loaded = fxfactor.load(saved, model)
        with torch.no_grad():
            assert torch.equal(loaded(images), qmodel(images))
    print(f"fxfactor {fxfactor.__file__}: command line, transform, save, load and export work")


if __name__ == "__main__":
    main()
