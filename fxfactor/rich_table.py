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


_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""))


def unit_for(largest: float) -> tuple[float, str]:
    """What numbers up to `largest` are divided by, and the prefix that says so, so that the largest is from 1 to 1000.

    >>> [unit_for(number) for number in (2.5e9, 1e6, 1290.0, 0)]
    [(1000000000.0, 'G'), (1000000.0, 'M'), (1000.0, 'k'), (1.0, '')]
    """
    return next(((size, prefix) for size, prefix in _PREFIXES if largest >= size), (1.0, ""))


def amount(value: float) -> str:
    """A number with three digits or so and a prefix.

    >>> [amount(number) for number in (1_182_000_000, 43_100, 12)]
    ['1.18 G', '43.1 k', '12 ']
    """
    size, prefix = unit_for(value)
    number = value / size
    return f"{number:.{0 if size == 1.0 or number >= 100 else 1 if number >= 10 else 2}f} {prefix}"


def bytes_as_text(count: float) -> str:
    """Bytes in the unit that fits.

    >>> [bytes_as_text(number) for number in (500, 2048, 3 * 2**20)]
    ['500 B', '2.0 KiB', '3.00 MiB']
    """
    if count >= 2**20:
        return f"{count / 2**20:,.2f} MiB"
    return f"{count / 2**10:,.1f} KiB" if count >= 2**10 else f"{count:,.0f} B"


def as_text(renderable: Any, width: int) -> str:
    """What rich prints of `renderable` in `width` characters, without colours."""
    from rich.console import Console

    text = io.StringIO()
    Console(file=text, width=width).print(renderable)
    return text.getvalue()
