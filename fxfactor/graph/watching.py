"""Images in, and what runs inside a network meanwhile: batches of a loader, modules in evaluation, recorded tensors."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor

from fxfactor.errors import PreconditionError


def inputs_of(batch: Any) -> Tensor:
    """The images of a batch: the batch itself, or its first element where it is a tuple or list."""
    images = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise PreconditionError(
            f"a batch must be a tensor of images or a tuple that starts with one, found {type(images).__name__}; "
            "wrap your loader: (images for images, labels in loader)"
        )
    return images


def first_images(loader: Iterable[Any], count: int) -> list[Tensor]:
    """Batches of the first `count` images of a loader. Raises PreconditionError where there are none."""
    batches: list[Tensor] = []
    left = count
    for batch in loader:
        batches.append(inputs_of(batch)[:left])
        left -= len(batches[-1])
        if left <= 0:
            break
    if not batches:
        raise PreconditionError("calibration images are needed, found an empty loader; pass batches (N, C, H, W)")
    return batches
