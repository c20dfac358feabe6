"""One look for all tables on a terminal, and their text elsewhere."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table


def new_table(**options: Any) -> Table:
    """An empty table: bold heads over a rule, no frame. `options` are those of rich.table.Table."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    look: dict[str, Any] = {"header_style": "bold", "box": SIMPLE_HEAD, "padding": (0, 1, 0, 0), "pad_edge": False}
    return Table(**look, title_justify="left", **options)


def as_text(renderable: Any, width: int) -> str:
    """What rich prints of `renderable` in `width` characters, without colours."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width).print(renderable)
    return text.getvalue()
