"""Arrays from files that may be damaged or hostile: .npy and .npz, without pickle and without surprises in size."""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    Array = NDArray[Any]

_BOMB_BYTES, _BOMB_RATIO = 2**28, 100
"""An archive that unpacks to more bytes than this, and to so many times its own size, is refused."""


def require_no_bomb(path: str | Path) -> None:
    """Raise PreconditionError for a zip archive (.npz, .pth) that would unpack to far more than it holds.

    Only the table of contents is read: a small file cannot fill the memory or the disk. Other files pass.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return  # no archive, or a damaged one: whoever reads it says so
    packed = Path(path).stat().st_size
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    if unpacked > memory or (unpacked > _BOMB_BYTES and unpacked > _BOMB_RATIO * packed):
        raise PreconditionError(
            f"{str(path)!r} has {packed:,} bytes and would unpack to {unpacked:,}, more than data usually does or than fits "
            "into memory; write it again with numpy.savez, in parts if need be"
        )


def read_arrays(path: str | Path, names: tuple[str, ...], what: str) -> tuple[Array, ...]:
    """The arrays `names` of an .npz file, or the single array of a .npy file where one name is asked for.

    Raises PreconditionError where the file is missing, damaged, holds pickled objects, lacks a name, holds no numbers,
    or would unpack to far more than it holds.
    """
    import numpy as np

    require_no_bomb(path)
    shape = f"an .npz file with {' and '.join(map(repr, names))}, written by numpy.savez"
    remedy = f"write {'a .npy file with numpy.save, or ' if len(names) == 1 else ''}{shape}"
    try:
        with open(path, "rb") as file:
            if file.read(2) == b"PK":
                file.seek(0)
                with np.load(file, allow_pickle=False) as archive:
                    arrays = tuple(archive[name] for name in names)
            elif len(names) > 1:
                raise KeyError("it is no .npz archive")
            else:  # mapped, so that a size in the header that the file does not have is found before memory is taken
                arrays = (np.load(path, mmap_mode="r", allow_pickle=False),)
    except (OSError, ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile, zlib.error, NotImplementedError,
            MemoryError, OverflowError, SyntaxError, RecursionError) as error:  # fmt: skip
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise PreconditionError(f"cannot read the {what} {str(path)!r}: {reason}; {remedy}") from error
    for name, array in zip(names, arrays, strict=True):
        if not isinstance(array, np.ndarray) or array.dtype.kind not in "fiub":
            kind = getattr(array, "dtype", type(array).__name__)
            raise PreconditionError(f"the {what} {str(path)!r} must hold numbers, found {kind} in {name!r}; {remedy}")
    return arrays


def require_images(array: Array, path: str | Path, what: str) -> None:
    """Raise PreconditionError unless `array` is a batch of images (N, C, *size) with at least one, all finite."""
    import numpy as np

    if array.ndim < 3 or not math.prod(array.shape):
        raise PreconditionError(
            f"the {what} {str(path)!r} must be images of shape (N, C, H, W), at least one, found shape {array.shape}"
        )
    bad = [begin for begin in range(0, len(array), 256) if not np.isfinite(array[begin : begin + 256]).all()]
    if bad:
        batch = array[bad[0] : bad[0] + 256]
        first = bad[0] + int(np.flatnonzero(~np.isfinite(batch).reshape(len(batch), -1).all(1))[0])
        raise PreconditionError(
            f"image {first} of the {what} {str(path)!r} has values that are NaN or infinite; repair or drop it"
        )
