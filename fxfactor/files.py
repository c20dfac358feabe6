"""Files and folders appear whole or not at all: everything is written under a temporary name and then renamed.

A process that is killed cannot clean up. What it leaves is a hidden folder `.NAME.fxfactor-xxxxxxxx` beside NAME, and
the next run that writes there, or looks for NAME, brings it to an end (`finish_writing`): a lock that the system takes back
when a process ends tells folders of the dead from those in use.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from fxfactor.errors import PreconditionError

_MARK = ".fxfactor-"
_LOCK = "lock"
_YOUNG_S = 3600.0
"""A folder without a lock may be one that is just being made, for this long."""


def _require_writable(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise PreconditionError(f"{what}: the folder {str(folder)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise PreconditionError(f"{what}: the folder {str(folder)!r} is read-only; choose another one")


def require_place_for_file(path: str | Path, what: str, suffixes: Sequence[str] = ()) -> None:
    """Raise PreconditionError unless `new_file` can write there and the name ends as required: ask before long work."""
    target = Path(path)
    if suffixes and target.suffix not in suffixes:
        wanted = " or ".join(suffixes)
        raise PreconditionError(f"{what}: the name of the file must end in {wanted}, found {str(target)!r}")
    _require_writable(target.parent, what)
    if target.is_dir():
        raise PreconditionError(f"{what}: {str(target)!r} is a folder; give the name of a file")


@contextmanager
def new_file(path: str | Path, what: str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` if the block ends well and deleted if it raises.

    Raises PreconditionError where the folder is missing or read-only, or `path` is a folder.
    """
    target = Path(path)
    require_place_for_file(target, what)
    with _temporary_folder(target, what) as scratch:
        new = scratch / "new"
        new.mkdir()
        yield new / target.name
        os.replace(new / target.name, target)


def require_place_for_folder(path: str | Path, what: str, marker: str) -> None:
    """Raise PreconditionError unless `new_folder` can write there: worth asking before long work."""
    target = Path(path)
    _require_writable(target.absolute().parent, what)
    finish_writing(target)
    if target.exists():
        if not target.is_dir():
            raise PreconditionError(f"{what}: {str(target)!r} is a file; give the name of a folder")
        _require_writable(target, what)
        if any(target.iterdir()) and not (target / marker).is_file():
            raise PreconditionError(
                f"{what}: the folder {str(target)!r} holds other files and no {marker}; choose an empty or a new folder"
            )


@contextmanager
def new_folder(path: str | Path, what: str, marker: str) -> Iterator[Path]:
    """A temporary folder that takes the place of `path` if the block ends well and is deleted if it raises.

    An existing folder is replaced only if it is empty or holds the file `marker`, that is, if we wrote it. It takes two
    renames, old folder away and new one in; after a kill between them both are still there, and `finish_writing` does the
    second. Raises PreconditionError where the place is taken, and where the parent is missing or read-only.
    """
    target = Path(path)
    require_place_for_folder(target, what, marker)
    with _temporary_folder(target, what) as scratch:
        new, old = scratch / "new", scratch / "old"
        new.mkdir()
        yield new
        if target.exists():
            os.replace(target, old)
        try:
            os.replace(new, target)
        except BaseException:  # the earlier folder comes back before the temporary one goes
            if old.exists():
                os.replace(old, target)
            raise


def finish_writing(path: str | Path) -> None:
    """Bring to an end what killed processes left in the folder that `path` lies in, for `path` and all beside it.

    A folder that a killed process was about to replace gets its new contents, which were complete by then; everything
    else that was not finished is deleted. Nothing of a process that still runs is touched.
    """
    parent = Path(path).absolute().parent
    with suppress(OSError):  # a folder that cannot be read or written to has nothing that could be swept
        for scratch in [each for each in parent.iterdir() if _MARK in each.name and each.name.startswith(".")]:
            _finish(scratch, parent / scratch.name[1:].rpartition(_MARK)[0])


def _finish(scratch: Path, target: Path) -> None:
    try:
        lock = (scratch / _LOCK).open("rb")
    except FileNotFoundError:  # killed before it took its lock, or just made and about to take it
        if time.time() - scratch.stat().st_mtime > _YOUNG_S:
            shutil.rmtree(scratch, ignore_errors=True)
        return
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            return
        if (scratch / "old").is_dir() and not target.exists():
            complete = "new" if (scratch / "new").is_dir() else "old"
            os.replace(scratch / complete, target)
        shutil.rmtree(scratch, ignore_errors=True)


@contextmanager
def _temporary_folder(target: Path, what: str) -> Iterator[Path]:
    finish_writing(target)
    try:
        scratch, lock = _locked_folder(target)
        while not os.fstat(lock.fileno()).st_nlink:  # swept by another process before the lock was taken
            lock.close()
            scratch, lock = _locked_folder(target)
    except OSError as error:
        raise PreconditionError(f"{what}: cannot write beside {str(target)!r}: {error.strerror}") from error
    with lock:
        try:
            yield scratch
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _locked_folder(target: Path) -> tuple[Path, IO[bytes]]:
    scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}{_MARK}", dir=target.absolute().parent))
    lock = (scratch / _LOCK).open("xb")
    fcntl.flock(lock, fcntl.LOCK_EX)
    return scratch, lock


def write_text(path: str | Path, text: str, what: str) -> None:
    """Write a text file as a whole (see `new_file`)."""
    with new_file(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")


def private_folder(path: str | Path, what: str) -> None:
    """Make `path` and what is missing above it, open to this user alone (mode 0700).

    A folder that is there already stays as it is. Raises PreconditionError where others may write to it, who could then
    put files there, or where it cannot be made.
    """
    folder = Path(path)
    missing = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        for each in reversed(missing):
            each.mkdir(mode=0o700, exist_ok=True)
        found = folder.stat()
    except OSError as error:
        raise PreconditionError(
            f"{what}: cannot make the folder {str(folder)!r}: {error.strerror}; choose another one"
        ) from error
    if found.st_uid != os.getuid() or found.st_mode & 0o022:
        raise PreconditionError(
            f"{what}: others may write to {str(folder)!r}, and files from there are read again; choose a folder of your own "
            "(chmod 700)"
        )
