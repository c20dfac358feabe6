"""Worker processes."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest
from small_exploration import explore, without_seconds
from torch import nn

from fxfactor import FxfactorError, PreconditionError


def test_workers_find_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    alone = explore(tmp_path / "alone")
    assert without_seconds(explore(tmp_path / "together", workers=2)) == without_seconds(alone)


def die(model: nn.Module, validation: Any) -> float:
    """A metric that kills its process, unless that is the one that started the others."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def test_a_worker_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    with pytest.raises(FxfactorError, match="a worker process ended with exit code -9"):
        explore(tmp_path / "state", metric=die, workers=2)
    assert len(explore(tmp_path / "state", metric=die).candidates) == 6


def test_ray_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parents[1])  # its workers import the networks
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))))
    alone = explore(tmp_path / "alone")
    try:
        found = explore(tmp_path / "together", workers=2, engine="ray")
    finally:
        ray.shutdown()
    assert without_seconds(found) == without_seconds(alone)


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PreconditionError, match="needs Ray, which is not installed; run pip install ray"):
        explore(tmp_path / "state", engine="ray")
