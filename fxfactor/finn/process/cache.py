"""Models that FINN's first steps made, kept between calls in the user's cache folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

KEPT = 8
"""Cached networks; the one used longest ago goes first."""


def default_cache() -> Path:
    """Where models are kept between calls: fxfactor/finn in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fxfactor" / "finn"


def publish(folder: Path, kept: Path) -> None:
    """Move a finished folder to its place in the cache, and drop what was used longest ago."""
    try:
        folder.rename(kept)
    except OSError:  # another run was faster: its models are the same
        return
    drop_oldest(kept.parent, KEPT)


def drop_oldest(store: Path, count: int) -> None:
    """Keep the `count` entries of a folder that were used last."""
    entries = sorted((entry for entry in store.iterdir() if not entry.name.startswith(".")), key=_age)
    for entry in entries[:-count]:
        if entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        else:
            entry.unlink(missing_ok=True)


def _age(entry: Path) -> float:
    return entry.stat().st_mtime


def sweep(store: Path) -> None:
    """Remove folders of runs that were killed and could not clean up themselves."""
    for entry in store.glob(".run-*-*"):
        owner = entry.name.split("-")[1]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(entry, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
