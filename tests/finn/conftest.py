"""What the FINN tests share: where FINN and the shared data are, and how networks become files."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finn_helpers import export_to
from torch import nn

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared" / "data"


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for FINN's models that is not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def realdata() -> Any:
    """The module that loads the shared images and trained networks; skips where they are missing."""
    if not (SHARED / "realdata.py").is_file():
        pytest.skip(f"the shared data is not at {SHARED}")
    sys.path.insert(0, str(SHARED))
    try:
        import realdata as module
    finally:
        sys.path.remove(str(SHARED))
    return module


@pytest.fixture
def write(tmp_path: Path) -> Callable[[nn.Module, tuple[int, ...]], Path]:
    """Gives a function that writes a model to a file of its own."""

    def write(model: nn.Module, shape: tuple[int, ...] = (1, 3, 8, 8)) -> Path:
        return export_to(tmp_path / "model.onnx", model, shape)

    return write
