"""One look for all progress bars: on a terminal they show and vanish when done, elsewhere they stay silent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show how far it is. `total` where the length of `items` is not known by itself."""
    from rich.console import Console
    from rich.progress import track as rich_track

    console = Console(stderr=True)
    if not console.is_terminal:  # rich would print an empty line at the end all the same
        yield from items
        return
    if total is None and isinstance(items, Sized):
        total = len(items)
    yield from rich_track(items, what, total=total, console=console, transient=True)
