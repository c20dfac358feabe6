"""State files of other programs and damaged ones are explained and left as they were."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from fxfactor import Exploration, PreconditionError
from fxfactor.exploration.state_file import Candidate, Store


def sql(path: Path, *lines: str) -> None:
    with closing(sqlite3.connect(path)) as connection, connection:
        for line in lines:
            connection.execute(line)


def ours(path: Path) -> None:
    with Store(path, {"model": "a"}) as store:
        store.add(Candidate("1", 1.0, 4, 4, "done", 0.5, 1, 1, 1, 0.1, "", None))


def changed(path: Path, line: str) -> None:
    ours(path)
    sql(path, line)


FILES: dict[str, Callable[[Path], object]] = {
    "text": lambda path: path.write_text("a letter to somebody, longer than a header of SQLite would be " * 20),
    "another program's database": lambda path: sql(path, "create table songs (title text)"),
    "a database with one table of our name": lambda path: sql(path, "create table about (key text, value text)"),
    "other columns": lambda path: sql(path, "create table about (a)", "create table candidates (b)"),
    "half of ours": lambda path: (ours(path), path.write_bytes(path.read_bytes()[:5000])),
    "a metric of text": lambda path: changed(path, "update candidates set metric = 'best'"),
    "a level of bytes": lambda path: changed(path, "update candidates set level = x'ff00'"),
    "seconds of text": lambda path: changed(path, "update candidates set seconds = 'long'"),
}


@pytest.mark.parametrize("name", FILES)
def test_a_file_that_is_none_of_ours_is_explained(tmp_path: Path, name: str) -> None:
    path = tmp_path / "state.sqlite"
    FILES[name](path)
    before = path.read_bytes()
    with pytest.raises(PreconditionError, match=r"is no file that fxfactor\.explore has written"):
        Exploration.read(path)
    with pytest.raises(PreconditionError, match=r"is no file that fxfactor\.explore has written"):  # noqa: SIM117
        with Store(path, {"model": "a"}) as store:
            store.candidates()
    if name in ("text", "another program's database", "a database with one table of our name"):
        assert path.read_bytes() == before
        assert [each.name for each in tmp_path.iterdir()] == ["state.sqlite"]
