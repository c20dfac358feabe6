"""One look for all progress: a bar with the time left on a terminal, a plain line now and then elsewhere."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator, Sized
from contextlib import contextmanager
from contextvars import ContextVar
from time import monotonic
from typing import Any, TypeVar

T = TypeVar("T")

BETWEEN_LINES_S = 10.0
"""Off a terminal a line is printed this often: work of a few seconds prints nothing."""

_hidden: ContextVar[bool] = ContextVar("progress is hidden", default=False)


def track(items: Iterable[T], what: str, total: int | None = None) -> Iterator[T]:
    """Yield `items` and show how far it is, on stderr. `total` where the length of `items` is not known by itself."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    if _hidden.get():
        yield from items
    elif is_watched():
        yield from _with_bar(items, what, total)
    else:
        yield from _with_lines(items, what, total)


def heartbeat(what: str) -> Callable[[], None]:
    """A function for work whose length nobody knows: called again and again, it says now and then how long it has been.

    It writes to what is stderr now, wherever stderr leads when it is called.
    """
    stream, hushed, started = sys.stderr, _hidden.get(), monotonic()
    told = started

    def beat() -> None:
        nonlocal told
        now = monotonic()
        if not hushed and now - told >= BETWEEN_LINES_S:
            told = now
            print(f"{what}: {duration(now - started)} so far", file=stream, flush=True)

    return beat


def is_watched() -> bool:
    """Whether stderr is a terminal, where a bar can move."""
    from rich.console import Console

    return Console(stderr=True).is_terminal


@contextmanager
def hidden() -> Iterator[None]:
    """Show no progress meanwhile."""
    token = _hidden.set(True)
    try:
        yield
    finally:
        _hidden.reset(token)


def duration(seconds: float) -> str:
    """A time as people say it.

    >>> [duration(seconds) for seconds in (0.4, 45, 80, 7500)]
    ['0 s', '45 s', '1 min 20 s', '2 h 5 min']
    """
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60} s"
    return f"{whole // 3600} h {whole % 3600 // 60} min"


def time_left(done: int, total: int | None, elapsed: float) -> str:
    """ "1 min 20 s left" at the speed so far; what has passed where the total is not known."""
    if not total or not done:
        return f"{duration(elapsed)} so far"
    return f"{duration(elapsed / done * max(total - done, 0))} left"


def _with_lines(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    started = told = monotonic()
    for done, item in enumerate(items):
        now = monotonic()
        if now - told >= BETWEEN_LINES_S:
            told = now
            share = f"{done / total:.0%} ({done} of {total})" if total else f"{done} done"
            print(f"{what}: {share}, {time_left(done, total, now - started)}", file=sys.stderr, flush=True)
        yield item


def _with_bar(items: Iterable[T], what: str, total: int | None) -> Iterator[T]:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn
    from rich.table import Column

    text: Any = Column(no_wrap=True, overflow="ellipsis", ratio=1)
    left: Any = Column(no_wrap=True, width=16)
    columns = (
        TextColumn("{task.description}", table_column=text),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[left]}", table_column=left),
    )
    started = monotonic()
    with Progress(*columns, console=Console(stderr=True), transient=True, expand=True) as progress:
        task = progress.add_task(what, total=total, left="")
        for done, item in enumerate(items):
            progress.update(task, completed=done, left=time_left(done, total, monotonic() - started) if done else "")
            yield item
        if total:
            progress.update(task, completed=total, left="")
