"""What a compression has done so far: results by name, each of them JSON."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from fxfactor.storage.state_file import StateFile

_TABLES = "create table if not exists results (name text primary key, value text not null);"


class Store(StateFile):
    """The file of one compression, open for writing. Use it in a `with` block."""

    tables, required, format = _TABLES, frozenset({"results"}), "1"
    maker, kind = "fxfactor.compress", "compression"

    def known(self, name: str) -> Any:
        """The result of that name; None where there is none yet."""
        with self.explained():
            row = self.connection.execute("select value from results where name = ?", (name,)).fetchone()
        return None if row is None else json.loads(row[0])

    def once(self, name: str, make: Callable[[], Any]) -> Any:
        """The result of that name, made and kept where there is none yet."""
        found = self.known(name)
        if found is None:
            found = make()
            self.keep(name, found)
        return found

    def keep(self, name: str, value: Any) -> None:
        """Write a result down."""
        with self.transaction():
            self.connection.execute("insert into results values (?, ?)", (name, json.dumps(value)))
