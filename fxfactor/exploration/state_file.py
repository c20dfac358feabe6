"""The state of an exploration: candidates, each a row, and what the next of a level starts from."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from fxfactor.errors import PreconditionError
from fxfactor.storage.state_file import StateFile, explain, not_ours

_TABLES = """
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


class Store(StateFile):
    """The file of one exploration, open for writing. Use it in a `with` block; `read` is for everyone else."""

    tables, required, format = _TABLES, frozenset({"candidates"}), "3"
    maker, kind = "fxfactor.explore", "exploration"

    def candidates(self) -> list[Candidate]:
        """All candidates so far, in the order in which they came."""
        with self.explained():
            return _rows(self.connection)

    def add(self, candidate: Candidate, state: bytes | None = None) -> None:
        """Keep a candidate and, where given, the state that the next one of its level starts from: both or neither."""
        values = tuple(asdict(candidate).values())
        with self.transaction():
            self.connection.execute(f"insert into candidates values ({', '.join('?' * len(values))})", values)
            if state is not None:
                self._put(candidate.rung, state)

    def add_snapshot(self, rung: str, state: bytes) -> None:
        """Keep what the candidates of a level and width start from."""
        with self.transaction():
            self._put(rung, state)

    def snapshot(self, rung: str) -> bytes | None:
        """What was kept for a level and width; None where nothing was."""
        with self.explained():
            row = self.connection.execute("select state from snapshots where rung = ?", (rung,)).fetchone()
        return None if row is None else bytes(row[0])

    def drop_snapshots(self, rungs: Iterable[str]) -> None:
        """Forget what is not needed any more."""
        with self.transaction():
            self.connection.executemany("delete from snapshots where rung = ?", [(rung,) for rung in rungs])

    def _put(self, rung: str, state: bytes) -> None:
        self.connection.execute("insert or replace into snapshots values (?, ?)", (rung, state))


def read(path: str | Path) -> tuple[list[Candidate], dict[str, Any]]:
    """All candidates in a file so far and what it says about the run; also while a run is writing it."""
    if not Path(path).is_file():
        raise PreconditionError(f"there is no file {str(path)!r}; fxfactor.explore(state=…) writes one")
    connection = sqlite3.connect(f"{Path(path).absolute().as_uri()}?mode=ro", uri=True, timeout=30)
    try:
        about = {key: json.loads(value) for key, value in connection.execute("select key, value from about")}
        return _rows(connection), about
    except sqlite3.DatabaseError as error:
        raise explain(error, Path(path), Store.maker) from error
    except (ValueError, TypeError, RecursionError) as error:
        raise not_ours(Path(path), str(error), Store.maker) from error
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
