"""Worker processes, by explorations that use them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from small_exploration import explore, without_seconds
from torch import nn

from fxfactor import FxfactorError, PreconditionError
from fxfactor.workers import side_by_side


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


@dataclass
class Sleeper:
    """Says which process it is, then sleeps."""

    place: Path

    def worker(self) -> Sleeper:
        return self

    def steps(self, task: int) -> Iterator[int]:
        (self.place / f"{task}.part").write_text(str(os.getpid()))
        os.rename(self.place / f"{task}.part", self.place / f"{task}.pid")
        time.sleep(task)
        yield task


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    psutil = pytest.importorskip("psutil")
    code = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from fxfactor.workers import side_by_side
from test_workers import Sleeper
if __name__ == "__main__":
    list(side_by_side(Sleeper(Path({str(tmp_path)!r})), [3600, 7200], 2, "local", "again"))
"""
    script = tmp_path / "script.py"
    script.write_text(code)
    with subprocess.Popen([sys.executable, str(script)], stderr=subprocess.DEVNULL) as parent:
        while len(list(tmp_path.glob("*.pid"))) < 2:
            assert parent.poll() is None
            time.sleep(0.05)
        workers = [psutil.Process(int(file.read_text())) for file in tmp_path.glob("*.pid")]
        parent.kill()
    _, alive = psutil.wait_procs(workers, timeout=120)
    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]


def test_steps_come_in_the_order_of_their_task_and_all_of_them(tmp_path: Path) -> None:
    assert sorted(side_by_side(Sleeper(tmp_path), [0, 0, 0], 2, "local", "again")) == [0, 0, 0]
    assert list(side_by_side(Sleeper(tmp_path), [], 2, "local", "again")) == []
