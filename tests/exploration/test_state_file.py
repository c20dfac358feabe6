"""The state file: what is kept when a run is broken off."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from small_exploration import explore, without_seconds

from fxfactor import Exploration, FxfactorError, PreconditionError
from fxfactor.exploration.rung import top1
from fxfactor.exploration.state_file import Candidate, Store


def test_kill_9_loses_one_candidate_at_most(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time, torch
        torch.set_num_threads(1)
        sys.path.insert(0, {str(Path(__file__).parents[1])!r})
        from small_exploration import explore
        from pathlib import Path
        explore(Path({str(tmp_path / "state")!r}),
                progress=lambda each: (print(each.key, flush=True), time.sleep(0.2)))
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        reported = [lines.readline() for _ in range(3)]
        during = Exploration.read(tmp_path / "state")  # while the other one is writing
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert all(reported)
    assert len(during.candidates) >= 3
    assert len(Exploration.read(tmp_path / "state").candidates) >= 3
    assert without_seconds(explore(tmp_path / "state")) == without_seconds(explore(tmp_path / "other"))


def test_two_runs_on_one_file_and_a_file_of_another_run_are_refused(tmp_path: Path) -> None:
    def again(candidate: Candidate) -> None:
        with pytest.raises(PreconditionError, match="another run is writing"):
            explore(tmp_path / "state")

    explore(tmp_path / "state", levels=(0,), bits=(8,), progress=again)
    with pytest.raises(PreconditionError, match="belongs to another exploration: its metric is"):
        explore(tmp_path / "state", metric=top1)
    (tmp_path / "text").write_text("this is no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(PreconditionError, match=r"is no file that fxfactor\.explore has written"):
        explore(tmp_path / "text")
    with pytest.raises(PreconditionError, match="does not exist; create it first"):
        explore(tmp_path / "nowhere" / "state")
    with pytest.raises(PreconditionError, match="is a folder"):
        explore(tmp_path)
    with pytest.raises(PreconditionError, match="there is no file"):
        Exploration.read(tmp_path / "nothing")


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path: Path) -> None:
    row = Candidate("0", 1.0, 8, 8, "done", 0.5, 1, 1, 1, 0.1, "", None)
    with Store(tmp_path / "state", {}) as store:
        store.add(row)
        pages = store.connection.execute("pragma page_count").fetchone()[0]
        store.connection.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(FxfactorError, match="no room to write .* free some space and call explore again"):
            store.add_snapshot("1", bytes(1 << 20))
    assert Exploration.read(tmp_path / "state").candidates == (row,)


def test_the_file_is_sqlite_that_anyone_can_read(tmp_path: Path) -> None:
    explore(tmp_path / "state", levels=(0,), bits=(8,))
    connection = sqlite3.connect(tmp_path / "state")
    assert connection.execute("select level, weight_bits, status from candidates").fetchall() == [("0", 8, "done")]
    connection.close()


def row(level: str) -> Candidate:
    return Candidate(level, 1.0, 8, 8, "done", 0.5, 1, 1, 1, 0.1, "", None)


def test_candidates_are_read_in_the_order_they_came(tmp_path: Path) -> None:
    rows = tuple(row(level) for level in "201")
    with Store(tmp_path / "state", {}) as store:
        for each in rows:
            store.add(each)
        assert store.candidates() == list(rows)
    assert Exploration.read(tmp_path / "state").candidates == rows


def test_a_candidate_and_its_state_are_kept_both_or_neither(tmp_path: Path) -> None:
    with Store(tmp_path / "state", {}) as store:
        store.add(row("0"), b"first")
        store.connection.execute("create trigger no before insert on snapshots begin select raise(abort, 'no'); end")
        with pytest.raises((FxfactorError, sqlite3.Error), match="no"):
            store.add(row("1"), b"second")
        assert [each.level for each in store.candidates()] == ["0"]
        assert store.snapshot("0") == b"first"
        assert store.snapshot("1") is None


def test_files_of_others_are_not_read(tmp_path: Path) -> None:
    (tmp_path / "text").write_text("no database, but a text that is long enough to be looked at" * 20)
    connection = sqlite3.connect(tmp_path / "other")
    connection.execute("create table something (name text)")
    connection.close()
    for name in ("text", "other"):
        with pytest.raises(PreconditionError, match=r"is no file that fxfactor\.explore has written"):
            Exploration.read(tmp_path / name)


def test_snapshots_are_kept_replaced_and_dropped(tmp_path: Path) -> None:
    with Store(tmp_path / "state", {"metric": "a"}) as store:
        store.add_snapshot("1", b"one")
        store.add(row("1"), b"two")
        store.add_snapshot("2", b"other")
        assert [store.snapshot(name) for name in "123"] == [b"two", b"other", None]
        store.drop_snapshots(["1", "3"])
        assert [store.snapshot(name) for name in "12"] == [None, b"other"]
    with Store(tmp_path / "state", {"metric": "a"}) as again:
        assert again.candidates() == [row("1")]
        assert again.snapshot("2") == b"other"
    with pytest.raises(PreconditionError, match='its metric is "a", here it is "b"'):
        Store(tmp_path / "state", {"metric": "b"})
    Store(tmp_path / "state", {"metric": "a"}).__exit__(None, None, None)  # a refusal lets go of the file
    assert Candidate(**{**row("3").__dict__, "width": 2.0}).rung == "3 ×2"
    assert row("3").rung == "3"
