"""What a killed process leaves is brought to an end by the next run: nothing is lost, nothing stays."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from fxfactor import PreconditionError
from fxfactor.files import finish_writing, new_file, new_folder, private_folder

SAVE = """
import os, signal, sys
from fxfactor.files import new_folder, new_file
die_at = int(sys.argv[1])
calls, replace = [], os.replace
def killed(source, target):
    if len(calls) == die_at:
        os.kill(os.getpid(), signal.SIGKILL)
    calls.append(source)
    replace(source, target)
os.replace = killed
if sys.argv[2] == "folder":
    with new_folder("net", "saving", marker="plan.json") as new:
        (new / "plan.json").write_text("new")
        (new / "half").write_text("new")
        if die_at < 0:
            os.kill(os.getpid(), signal.SIGKILL)
else:
    with new_file("net", "saving") as new:
        new.write_text("new")
"""


def killed_at(call: int, kind: str, folder: Path) -> None:
    """A process that is killed instead of its rename number `call`; -1: in the middle of writing."""
    done = subprocess.run([sys.executable, "-c", SAVE, str(call), kind], cwd=folder, check=False)
    assert done.returncode == -signal.SIGKILL


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture
def earlier(tmp_path: Path) -> Path:
    (tmp_path / "net").mkdir()
    (tmp_path / "net" / "plan.json").write_text("earlier")
    return tmp_path


@pytest.mark.parametrize(("call", "found"), [(-1, "earlier"), (0, "earlier"), (1, "new")])
def test_a_kill_while_a_folder_is_replaced_leaves_the_old_one_or_the_new_one(
    earlier: Path, call: int, found: str
) -> None:
    killed_at(call, "folder", earlier)
    finish_writing(earlier / "net")
    assert names(earlier) == ["net"]
    assert (earlier / "net" / "plan.json").read_text() == found
    assert (earlier / "net" / "half").exists() == (found == "new")


def test_between_the_renames_both_are_kept(earlier: Path) -> None:
    killed_at(1, "folder", earlier)
    (scratch,) = earlier.iterdir()
    assert (scratch / "old" / "plan.json").read_text() == "earlier"
    assert (scratch / "new" / "plan.json").read_text() == "new"


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_the_next_run_sweeps_what_is_left(tmp_path: Path, kind: str) -> None:
    killed_at(0, kind, tmp_path)
    assert len(names(tmp_path)) == 1
    with new_file(tmp_path / "another.txt", "writing") as temporary:
        temporary.write_text("done")
    assert names(tmp_path) == ["another.txt"]


def test_what_a_living_process_writes_is_not_touched(tmp_path: Path) -> None:
    with new_folder(tmp_path / "net", "saving", marker="plan.json") as new:
        (new / "plan.json").write_text("new")
        finish_writing(tmp_path / "net")
        with new_file(tmp_path / "another.txt", "writing") as temporary:
            temporary.write_text("done")
    assert (tmp_path / "net" / "plan.json").read_text() == "new"


def test_hidden_folders_of_others_stay(tmp_path: Path) -> None:
    for name in (".net.1234", ".git", "net.fxfactor-1"):
        (tmp_path / name).mkdir()
    finish_writing(tmp_path / "net")
    assert names(tmp_path) == [".git", ".net.1234", "net.fxfactor-1"]


def test_a_folder_without_a_lock_is_swept_once_it_is_old(tmp_path: Path) -> None:
    scratch = tmp_path / ".net.fxfactor-12345678"
    scratch.mkdir()
    finish_writing(tmp_path / "net")
    assert scratch.exists()
    os.utime(scratch, (0, 0))
    finish_writing(tmp_path / "net")
    assert not scratch.exists()


def test_a_rename_that_fails_puts_the_old_folder_back(earlier: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace, calls = os.replace, []

    def fail_at_the_second(source, target):
        calls.append(source)
        if len(calls) == 2:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", fail_at_the_second)
    with (
        pytest.raises(OSError, match="Input/output"),
        new_folder(earlier / "net", "saving", marker="plan.json") as new,
    ):
        (new / "plan.json").write_text("new")
    assert (earlier / "net" / "plan.json").read_text() == "earlier"
    assert names(earlier) == ["net"]


def test_cache_folders_are_for_the_user_alone(tmp_path: Path) -> None:
    private_folder(tmp_path / "fxfactor" / "finn", "the cache")
    for folder in (tmp_path / "fxfactor", tmp_path / "fxfactor" / "finn"):
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700


def test_a_cache_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    (tmp_path / "open").mkdir()
    (tmp_path / "open").chmod(0o777)
    with pytest.raises(PreconditionError, match=r"the cache: others may write to .*; choose a folder of your own"):
        private_folder(tmp_path / "open", "the cache")
