"""The state of an exploration: one SQLite file that survives a kill, that others may read meanwhile, and one run writes.

Write-ahead logging lets readers look on. Each candidate is one transaction. The run that writes holds a lock on the file
(flock), which the system takes back when the process ends, however it ends.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from fxfactor.errors import FxfactorError, PreconditionError

FORMAT = "3"
_TABLES = """
create table if not exists about (key text primary key, value text not null);
create table if not exists candidates (
    level text not null, width real not null, weight_bits integer, activation_bits integer, status text not null, metric real,
    macs integer, bops integer, total_weight_bits integer, seconds real not null, message text not null, plan text,
    lut integer, bram18 integer, dsp integer, fps real,
    unique (level, width, weight_bits, activation_bits)
);
create table if not exists snapshots (rung text primary key, state blob not null);
"""


@dataclass(frozen=True)
class Candidate:
    """One network of an exploration. `status`: "done", "failed" (`message` says why) or "nan" (the metric was no number).

    width: channels between the factors, as a multiple of the input channels. macs, bops: for one image. total_weight_bits: of
    all weights together. seconds: what it took. plan: as JSON. lut, bram18, dsp, fps: FINN's estimates, where a board was
    given; None where FINN does not take it (`message` says why).
    """

    level: str
    width: float
    weight_bits: int | None
    activation_bits: int | None
    status: str
    metric: float | None
    macs: int | None
    bops: int | None
    total_weight_bits: int | None
    seconds: float
    message: str
    plan: str | None
    lut: int | None = None
    bram18: int | None = None
    dsp: int | None = None
    fps: float | None = None

    @property
    def key(self) -> tuple[str, float, int | None, int | None]:
        """What tells candidates apart."""
        return self.level, self.width, self.weight_bits, self.activation_bits

    @property
    def rung(self) -> str:
        """Level and width in short: "3", or "3 ×2" where the width is not 1."""
        return rung_name(self.level, self.width)


def rung_name(level: int | str, width: float) -> str:
    """What the candidates of one level and width are called: "3", or "3 ×2" where the width is not 1."""
    return str(level) if width == 1 else f"{level} ×{width:g}"


COLUMNS = tuple(each.name for each in fields(Candidate))


class Store:
    """The file of one exploration, open for writing. Use it in a `with` block; `read` is for everyone else."""

    def __init__(self, path: str | Path, about: Mapping[str, Any]) -> None:
        self.path = Path(path)
        self._require_place()
        _require_ours(self.path)
        self.lock = self._take_lock()
        try:
            with self._explained():
                self.connection = sqlite3.connect(self.path, timeout=30, isolation_level=None)
                self.connection.execute("pragma journal_mode = wal")
                self.connection.executescript(_TABLES)
                self._require_same_run(about)
        except BaseException:
            self.lock.close()
            raise

    def __enter__(self) -> Store:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.connection.close()
        self.lock.close()

    def candidates(self) -> list[Candidate]:
        """All candidates so far, in the order in which they came."""
        with self._explained():
            return _rows(self.connection)

    def add(self, candidate: Candidate, state: bytes | None = None) -> None:
        """Keep a candidate and, where given, the state that the next one of its level starts from: both or neither."""
        values = tuple(asdict(candidate).values())
        with self._transaction():
            self.connection.execute(f"insert into candidates values ({', '.join('?' * len(values))})", values)
            if state is not None:
                self._put(candidate.rung, state)

    def add_snapshot(self, rung: str, state: bytes) -> None:
        """Keep what the candidates of a level and width start from."""
        with self._transaction():
            self._put(rung, state)

    def snapshot(self, rung: str) -> bytes | None:
        """What was kept for a level and width; None where nothing was."""
        with self._explained():
            row = self.connection.execute("select state from snapshots where rung = ?", (rung,)).fetchone()
        return None if row is None else bytes(row[0])

    def drop_snapshots(self, rungs: Iterable[str]) -> None:
        """Forget what is not needed any more."""
        with self._transaction():
            self.connection.executemany("delete from snapshots where rung = ?", [(rung,) for rung in rungs])

    def _put(self, rung: str, state: bytes) -> None:
        self.connection.execute("insert or replace into snapshots values (?, ?)", (rung, state))

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self.connection.execute("begin immediate")
            try:
                yield
                self.connection.execute("commit")
            except BaseException:
                if self.connection.in_transaction:
                    self.connection.execute("rollback")
                raise

    @contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.DatabaseError as error:
            raise _explain(error, self.path) from error
        except (TypeError, UnicodeDecodeError) as error:
            raise _not_ours(self.path, str(error)) from error

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
                "(fxfactor.Exploration.read shows how far the other one is)"
            ) from error
        return file

    def _require_same_run(self, about: Mapping[str, Any]) -> None:
        """Write down what this run is, or compare with what the file says."""
        wanted = {"format": FORMAT, **{key: json.dumps(value) for key, value in about.items()}}
        found = dict(self.connection.execute("select key, value from about"))
        if not found:
            with self._transaction():
                self.connection.executemany("insert into about values (?, ?)", list(wanted.items()))
            return
        differing = [key for key in wanted if found.get(key) != wanted[key]]
        if differing:
            key = differing[0]
            raise PreconditionError(
                f"state: {str(self.path)!r} belongs to another exploration: its {key} is {found.get(key)}, here it is "
                f"{wanted[key]}; give this one a file of its own"
            )


def _require_ours(path: Path) -> None:
    """Raise PreconditionError for a file that holds something else: before a lock or a table is put into it."""
    if not path.is_file() or not path.stat().st_size:
        return
    try:
        with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=30)) as connection:
            tables = {name for (name,) in connection.execute("select name from sqlite_master where type = 'table'")}
    except sqlite3.OperationalError:
        return  # locked, say: what follows explains it
    except sqlite3.DatabaseError as error:
        raise _not_ours(path, str(error)) from error
    if tables and not {"about", "candidates"} <= tables:
        raise _not_ours(path, f"it has other tables: {', '.join(sorted(tables)[:5])}")


def _not_ours(path: Path, text: str) -> PreconditionError:
    return PreconditionError(
        f"state: {str(path)!r} is no file that fxfactor.explore has written ({text}); give another name"
    )


def read(path: str | Path) -> tuple[list[Candidate], dict[str, Any]]:
    """All candidates in a file so far and what it says about the run; also while a run is writing it."""
    if not Path(path).is_file():
        raise PreconditionError(f"there is no file {str(path)!r}; fxfactor.explore(state=…) writes one")
    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        about = {key: json.loads(value) for key, value in connection.execute("select key, value from about")}
        return _rows(connection), about
    except sqlite3.DatabaseError as error:
        raise _explain(error, Path(path)) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise _not_ours(Path(path), str(error)) from error
    finally:
        connection.close()


def _rows(connection: sqlite3.Connection) -> list[Candidate]:
    query = f"select {', '.join(COLUMNS)} from candidates order by rowid"
    return [_candidate(row) for row in connection.execute(query)]


_TYPES: dict[str, type | tuple[type, ...]] = {
    "level": str,
    "width": float,
    "status": str,
    "seconds": (int, float),
    "message": str,
    "plan": (str, type(None)),
}
"""Of a candidate's fields; the others are numbers or None. SQLite itself keeps anything in any column."""


def _candidate(row: tuple[Any, ...]) -> Candidate:
    """Raise TypeError where a value is not of its column's type."""
    for name, value in zip(COLUMNS, row, strict=True):
        if not isinstance(value, _TYPES.get(name, (int, float, type(None)))):
            raise TypeError(f"{name} is {value!r}")
    return Candidate(*row)


def _explain(error: sqlite3.DatabaseError, path: Path) -> FxfactorError:
    text = str(error)
    if "full" in text or "disk I/O" in text:
        return FxfactorError(
            f"no room to write {str(path)!r} ({text}); every candidate before this one is kept: free some space and call "
            "explore again with the same arguments"
        )
    if any(each in text for each in ("not a database", "malformed", "no such table", "no such column", "not UTF-8")):
        return _not_ours(path, text)
    return FxfactorError(f"state: SQLite cannot work on {str(path)!r}: {text}")
