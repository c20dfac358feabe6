"""Changes to training images for which a teacher has an answer: mirrored, moved, and with a part of another image.

Each is a function `(images, generator) → images`, (N, C, *size) → the same, as `fxfactor.reconstruct` and
`fxfactor.finetune` take it; series (N, C, length) are moved and cut, not mirrored.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError


@checked
def flip_and_shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror half of the images left to right and move each by up to 1/8 of its size, zeros at the edges."""
    if images.dim() < 3 or not len(images):
        raise PreconditionError(
            f"images (N, C, H, W), one at least, are required, found a tensor of shape {tuple(images.shape)}"
        )
    sizes = images.shape[2:]
    if len(sizes) > 1:
        mirrored = torch.rand(len(images), generator=generator) < 0.5
        images = torch.where(mirrored.view(-1, *[1] * (images.dim() - 1)).to(images.device), images.flip(-1), images)
    margins = [size // 8 for size in sizes]
    padded = F.pad(images, [margin for margin in reversed(margins) for _ in range(2)])
    offsets = torch.stack([torch.randint(2 * m + 1, (len(images),), generator=generator) for m in margins], 1).tolist()
    moved = []
    for image, offset in zip(padded, offsets, strict=True):
        window = tuple(slice(start, start + size) for start, size in zip(offset, sizes, strict=True))
        moved.append(image[(slice(None), *window)])
    return torch.stack(moved)


@checked
def flip_shift_and_cut(images: Tensor, generator: torch.Generator) -> Tensor:
    """`flip_and_shift`, and in every second batch, drawn by lot, a part of each image comes from another one.

    As CutMix (Yun et al. 2019, arXiv 1905.04899), with the teacher's answer to the mixed image in the place of mixed
    labels. The part is the same rectangle for the whole batch; its share of the image is uniform in (0, 1) before it is
    cut off at the edges. With few images this is what makes more of them.
    """
    images = flip_and_shift(images, generator)
    if float(torch.rand((), generator=generator)) < 0.5:
        return images
    sizes = images.shape[2:]
    others = torch.randperm(len(images), generator=generator).to(images.device)
    side = float(torch.rand((), generator=generator)) ** (1 / len(sizes))
    window: list[slice] = [slice(None), slice(None)]
    for size in sizes:
        length = max(1, int(side * size))
        begin = int(torch.randint(size, (), generator=generator)) - length // 2
        window.append(slice(max(0, begin), begin + length))
    images = images.clone()
    images[tuple(window)] = images[others][tuple(window)]
    return images
