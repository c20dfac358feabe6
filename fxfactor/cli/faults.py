"""How commands end: exit code 0 done, 1 an error that is explained, 2 wrong usage, 130 stopped by the user."""

from __future__ import annotations

import errno
import os
import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxfactor.cli.output import is_verbose, tell
from fxfactor.errors import FxfactorError, PreconditionError


class UserCodeError(PreconditionError):
    """The user's own code, named on the command line, raised something; that is the `__cause__`."""


def explain(error: BaseException) -> int:
    """Print what went wrong, in one message, and return the exit code. Tracebacks only where --verbose asks for them."""
    if is_verbose():
        traceback.print_exception(error)
    tell(_message(error), "error: ", "bold red")
    return 130 if isinstance(error, KeyboardInterrupt) else 1


def _message(error: BaseException) -> str:
    if isinstance(error, FxfactorError):
        more = "" if is_verbose() or not isinstance(error, UserCodeError) else "\n--verbose shows the traceback"
        return "\n".join([str(error), *getattr(error, "__notes__", ())]) + more
    if isinstance(error, KeyboardInterrupt):
        return "stopped; nothing half-written is left"
    if isinstance(error, MemoryError) or "out of memory" in str(error).lower():
        return "out of memory; take smaller or fewer images, or a machine with more of it"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "no space left on the disk; nothing half-written is left: free some space and run the command again"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror}: {str(error.filename)!r}; check the path and its permissions"
    first = (str(error).splitlines() or [""])[0]
    return (
        f"unexpected {type(error).__name__}: {first}\nThis is a defect, of fxfactor or of the network's own code: "
        "--verbose shows where; please report it with that output"
    )


def close_broken_pipe() -> None:
    """After the reader of our output has gone (`fxfactor … | head`): end without a message from the interpreter."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


@contextmanager
def of_the_user(what: str) -> Iterator[None]:
    """Whatever the user's code raises meanwhile becomes a UserCodeError that says where; our own errors stay."""
    try:
        yield
    except FxfactorError:
        raise
    except (Exception, SystemExit) as error:
        last = traceback.extract_tb(error.__traceback__)[-1]
        ours = Path(last.filename).parent == Path(__file__).parent  # the call itself did not fit, say
        place = "" if ours else f" at {last.filename}:{last.lineno}"
        first = (str(error).splitlines() or [""])[0]
        raise UserCodeError(f"{what} raised {type(error).__name__}: {first}{place}; mend it there") from error
