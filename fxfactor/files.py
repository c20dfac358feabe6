"""Files appear whole or not at all: everything is written under a temporary name and then renamed."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fxfactor.errors import PreconditionError


def _require_writable(folder: Path, what: str) -> None:
    if not folder.is_dir():
        raise PreconditionError(f"{what}: the folder {str(folder)!r} does not exist; create it first")
    if not os.access(folder, os.W_OK):
        raise PreconditionError(f"{what}: the folder {str(folder)!r} is read-only; choose another one")


@contextmanager
def new_file(path: str | Path, what: str) -> Iterator[Path]:
    """A temporary path beside `path`, renamed to `path` if the block ends well and deleted if it raises.

    Raises PreconditionError where the folder is missing or read-only, or `path` is a folder.
    """
    target = Path(path)
    _require_writable(target.parent, what)
    if target.is_dir():
        raise PreconditionError(f"{what}: {str(target)!r} is a folder; give the name of a file")
    with _temporary_folder(target, what) as scratch:
        yield scratch / target.name
        os.replace(scratch / target.name, target)


def require_place_for_folder(path: str | Path, what: str, marker: str) -> None:
    """Raise PreconditionError unless `new_folder` can write there: worth asking before long work."""
    target = Path(path)
    _require_writable(target.absolute().parent, what)
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

    An existing folder is replaced only if it is empty or holds the file `marker`, that is, if we wrote it.
    Raises PreconditionError otherwise, and where the parent is missing or read-only.
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


@contextmanager
def _temporary_folder(target: Path, what: str) -> Iterator[Path]:
    try:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.absolute().parent))
    except OSError as error:
        raise PreconditionError(f"{what}: cannot write beside {str(target)!r}: {error.strerror}") from error
    try:
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def write_text(path: str | Path, text: str, what: str) -> None:
    """Write a text file as a whole (see `new_file`)."""
    with new_file(path, what) as temporary:
        temporary.write_text(text, encoding="utf-8")
