"""Worker processes, by explorations that use them."""

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


@pytest.mark.slow
def test_ray_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)  # its workers import the networks
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))))
    alone = explore(tmp_path / "alone")
    try:
        found = explore(tmp_path / "together", workers=2, engine="ray")
    finally:
        ray.shutdown()
    assert without_seconds(found) == without_seconds(alone)


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PreconditionError, match="needs Ray, which is not installed; run pip install fxfactor\\[ray\\]"):
        explore(tmp_path / "state", engine="ray")


def test_a_worker_that_dies_while_it_starts_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is killed before it has read what it shall do, as by a machine that is out of memory."""
    (tmp_path / "sitecustomize.py").write_text(
        "import os, signal, sys\nif '--multiprocessing-fork' in sys.orig_argv:\n    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    known = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (str(tmp_path), str(Path(__file__).parent), known))))
    with pytest.raises(FxfactorError, match="a worker process ended with exit code -9"):
        explore(tmp_path / "state", workers=2)
    assert not multiprocessing.active_children()
    assert len(explore(tmp_path / "state").candidates) == 6
