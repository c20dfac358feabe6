"""What the FINN tests share: a cache, the data of the benchmarks where they are, and how networks become files."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from finn_helpers import export_to
from torch import nn

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache for FINN's models that is not the user's."""
    return tmp_path_factory.mktemp("cache")


@pytest.fixture
def realdata() -> Any:
    """CIFAR-10 and the networks trained on it, from a folder that benchmarks/data.py finds; skips where there is none."""
    spec = importlib.util.spec_from_file_location("benchmark_data", ROOT / "benchmarks" / "data.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["benchmark_data"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = module.find()
    if isinstance(found, module.Download):
        pytest.skip("needs CIFAR-10 and its networks in a folder that FXFACTOR_DATA names; tests download nothing")
    return found


@pytest.fixture
def write(tmp_path: Path) -> Callable[[nn.Module, tuple[int, ...]], Path]:
    """Gives a function that writes a model to a file of its own."""

    def write(model: nn.Module, shape: tuple[int, ...] = (1, 3, 8, 8)) -> Path:
        return export_to(tmp_path / "model.onnx", model, shape)

    return write
