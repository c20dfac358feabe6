"""State that survives a kill: one SQLite file, which others may read meanwhile and one run writes.

Write-ahead logging lets readers look on. Each entry is one transaction. The run that writes holds a lock on the file
(flock), which the system takes back when the process ends, however it ends.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from pathlib import Path
from types import TracebackType
from typing import IO, Any, ClassVar, TypeVar

from fxfactor.errors import FxfactorError, PreconditionError

_ABOUT = "create table if not exists about (key text primary key, value text not null);"
File = TypeVar("File", bound="StateFile")


class StateFile:
    """The file of one run, open for writing; use it in a `with` block. Subclasses say what is in it."""

    tables: ClassVar[str]
    """SQL that creates what is not there yet, beside the table of what the run is about."""
    required: ClassVar[frozenset[str]]
    """Tables by which a file of ours is known."""
    maker: ClassVar[str]
    """The function that writes such files, for messages."""
    kind: ClassVar[str]
    """What a run is called."""
    format: ClassVar[str]

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._require_place()
        self._require_ours()
        self.lock = self._take_lock()
        try:
            with self.explained():
                self.connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
                self.connection.execute("pragma journal_mode = wal")
                self.connection.executescript(_ABOUT + self.tables)
                self._require_same_run(about)
        except BaseException:
            self.lock.close()
            raise

    def __enter__(self: File) -> File:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self.lock.close()

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """All of it, or nothing."""
        with self.explained():
            self.connection.execute("begin immediate")
            try:
                yield
                self.connection.execute("commit")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("rollback")
                raise

    @contextmanager
    def explained(self) -> Iterator[None]:
        """SQLite's errors as ours."""
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise explain(error, self.path, self.maker) from error
        except (TypeError, UnicodeDecodeError) as error:
            raise not_ours(self.path, str(error), self.maker) from error

    def _require_place(self) -> None:
        folder = self.path.absolute().parent
        if not folder.is_dir():
            raise PreconditionError(f"state: the folder {str(folder)!r} does not exist; create it first")
        if self.path.is_dir():
            raise PreconditionError(f"state: {str(self.path)!r} is a folder; give the name of a file")

    def _take_lock(self) -> IO[bytes]:
        import fcntl

        try:
            file = self.path.open("ab")
        except OSError as error:
            raise PreconditionError(
                f"state: cannot write {str(self.path)!r}: {error.strerror}; choose another place"
            ) from error
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.close()
            raise PreconditionError(
                f"state: another run is writing {str(self.path)!r}; wait for it, or give this run a file of its own "
                "(fxfactor.Exploration.read shows how far another exploration is)"
            ) from error
        return file

    def _require_same_run(self, about: Mapping[str, Any]) -> None:
        """Write down what this run is, or compare with what the file says."""
        wanted = {"format": self.format, **{key: json.dumps(value) for key, value in about.items()}}
        found = dict(self.connection.execute("select key, value from about"))
        if not found:
            with self.transaction():
                self.connection.executemany("insert into about values (?, ?)", list(wanted.items()))
            return
        differing = [key for key in {**wanted, **found} if found.get(key) != wanted.get(key)]
        if differing:
            key = differing[0]
            raise PreconditionError(
                f"state: {str(self.path)!r} belongs to another {self.kind}: its {key} is {found.get(key)}, here it is "
                f"{wanted.get(key)}; give this one a file of its own"
            )

    def _require_ours(self) -> None:
        """Raise PreconditionError for a file that holds something else: before a lock or a table is put into it."""
        if not self.path.is_file() or not self.path.stat().st_size:
            return
        try:
            with closing(
                sqlite3.connect(f"{self.path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)
            ) as connection:
                tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
        except sqlite3.OperationalError:
            return  # locked, say: what follows explains it
        except sqlite3.DatabaseError as error:
            raise not_ours(self.path, str(error), self.maker) from error
        if tables and not {"about", *self.required} <= tables:
            raise not_ours(self.path, f"it has other tables: {', '.join(sorted(tables)[:5])}", self.maker)


def not_ours(path: Path, text: str, maker: str) -> PreconditionError:
    """The error for a file that holds something else."""
    return PreconditionError(f"state: {str(path)!r} is no file that {maker} has written ({text}); give another name")


def explain(error: sqlite3.DatabaseError, path: Path, maker: str) -> FxfactorError:
    """What SQLite says, as an error of ours."""
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return FxfactorError(
            f"no room to write {str(path)!r} ({text}); every candidate before this one is kept: free some space and call "
            f"{maker.removeprefix('fxfactor.')} again with the same arguments"
        )
    if any(each in text for each in ("not a database", "malformed", "no such table", "no such column", "not UTF-8")):
        return not_ours(path, text, maker)
    return FxfactorError(f"state: SQLite cannot work on {str(path)!r}: {text}")
