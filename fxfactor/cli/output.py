"""What commands print, and where: results on stdout, everything else on stderr, and less or more of it on request."""

from __future__ import annotations

import functools
import inspect
import json
import logging
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from typing import Annotated, Any, get_type_hints

import typer

from fxfactor.progress import hidden, is_watched

QUIET, NORMAL, VERBOSE = range(3)

_loudness: ContextVar[int] = ContextVar("loudness", default=NORMAL)
_on: ContextVar[str] = ContextVar("how to go on", default="")

Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print results, warnings and errors only.", rich_help_panel="Output")
]
Verbose = Annotated[
    bool,
    typer.Option(
        "--verbose", "-v", help="Also the warnings of other packages, and tracebacks.", rich_help_panel="Output"
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON, for programs.", rich_help_panel="Output")]

_SILENCED = ("torch", "brevitas", "qonnx", "onnx", "matplotlib", "PIL", "timm", "huggingface_hub", "finn")
"""Packages whose log and warnings say nothing that a user of the command line could act on."""


def command(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command --quiet and --verbose, and an end without a traceback when it is interrupted."""
    hints = get_type_hints(function, include_extras=True)
    extra = {"quiet": Quiet, "verbose": Verbose}

    @functools.wraps(function)
    def run(*arguments: Any, quiet: bool = False, verbose: bool = False, **options: Any) -> Any:
        with ExitStack() as stack:
            stack.enter_context(loudness(VERBOSE if verbose else QUIET if quiet else NORMAL))
            stack.callback(_on.reset, _on.set(""))
            try:
                return function(*arguments, **options)
            except KeyboardInterrupt:
                tell(f"stopped. {_on.get() or 'Nothing half-written is left; the same command starts anew.'}")
                raise SystemExit(130) from None

    parameters = [
        each.replace(annotation=hints.get(each.name, each.annotation))
        for each in inspect.signature(function).parameters.values()
    ]
    parameters += [
        inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=False, annotation=kind)
        for name, kind in extra.items()
    ]
    run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {**hints, **extra}
    return run


@contextmanager
def loudness(level: int) -> Iterator[None]:
    """How much is printed meanwhile, by ourselves and by other packages."""
    token = _loudness.set(level)
    try:
        with ExitStack() as stack:
            if level == QUIET:
                stack.enter_context(hidden())
            if level < VERBOSE:
                stack.enter_context(others_kept_out())
            yield
    finally:
        _loudness.reset(token)


@contextmanager
def going_on(how: str) -> Iterator[None]:
    """What is said when the user stops the command meanwhile, in place of the usual."""
    token = _on.set(how)
    yield
    _on.reset(token)  # not after an interrupt, when it is still to be said


def is_verbose() -> bool:
    """Whether tracebacks are wanted."""
    return _loudness.get() == VERBOSE


@contextmanager
def others_kept_out() -> Iterator[None]:
    """Keep the warnings and the log of other packages from the terminal; warnings of fxfactor's own are shown."""
    import torch  # noqa: F401  # it sets the level of its log when it is imported, so before we do

    loggers = [logging.getLogger(name) for name in _SILENCED]
    before = [(logger, logger.level) for logger in loggers]
    with warnings.catch_warnings():
        shown = warnings.showwarning

        def ours_only(
            message: Warning | str, category: type[Warning], filename: str, lineno: int, *rest: Any, **more: Any
        ) -> None:
            if category.__module__.partition(".")[0] == "fxfactor" or "/fxfactor/" in filename:
                warn(str(message))

        warnings.showwarning = ours_only
        for logger in loggers:
            logger.setLevel(logging.CRITICAL)
        try:
            yield
        finally:
            warnings.showwarning = shown
            for logger, level in before:
                logger.setLevel(level)


def tell(text: str, label: str = "", style: str = "") -> None:
    """A message on stderr, as it is: brackets are no markup, control characters are shown as such."""
    from rich.console import Console
    from rich.text import Text

    safe = "".join(each if each.isprintable() or each == "\n" else repr(each)[1:-1] for each in text)
    Console(stderr=True).print(Text.assemble((label, style), safe), soft_wrap=True)


def note(text: str) -> None:
    """Something worth knowing; hidden by --quiet."""
    if _loudness.get() > QUIET:
        tell(text)


def warn(text: str) -> None:
    """Something that is likely wrong; --quiet does not hide it."""
    tell(text, "warning: ", "bold yellow")


def suggest(done: str, *words: object, **options: object) -> None:
    """What was done, and the whole command that comes next; options that are None or False are left out."""
    if _loudness.get() == QUIET:
        return
    parts = ["fxfactor", *map(str, words)]
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if value is True:
            parts.append(option)
        elif value is not None and value is not False:
            parts += [option, str(value)]
    note(f"{done}; next: {shlex.join(parts)}")


def show(renderable: Any) -> None:
    """A result on stdout, in the width of the terminal."""
    from rich.console import Console

    Console().print(renderable)


def show_json(data: Any) -> None:
    """A result on stdout as JSON; numbers that are not finite as null."""
    sys.stdout.write(json.dumps(_plain(data), indent=2, ensure_ascii=False) + "\n")


def _plain(data: Any) -> Any:
    """Dictionaries, lists, texts and numbers that JSON has."""
    if isinstance(data, dict):
        return {str(key): _plain(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_plain(value) for value in data]
    if isinstance(data, float):
        return data if data - data == 0 else None
    return data if data is None or isinstance(data, bool | int | str) else str(data)


@contextmanager
def working(what: str, silent: bool = False) -> Iterator[None]:
    """A spinner on a terminal; nothing elsewhere, and nothing where a progress bar will show."""
    if silent or _loudness.get() == QUIET or not is_watched():
        yield
        return
    from rich.console import Console

    with Console(stderr=True).status(what):
        yield
