"""Images as users have them: arrays in .npy and .npz files, folders of pictures, datasets of torchvision."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.arrays import read_arrays, require_images
from fxfactor.cli.output import note
from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from torch import Tensor

IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".ppm", ".pgm", ".tif", ".tiff", ".webp", ".gif")
CALIBRATION = 512
"""Pictures that are read of a folder for calibration, spread evenly over it."""


@dataclass(frozen=True)
class Pictures:
    """How a picture becomes an image: RGB (or grey, for one mean), its shorter side `resize`, the middle of it `size`.

    mean, std: what is subtracted from the values in 0 … 1, and what the rest is divided by, one for each channel.
    """

    size: tuple[int, int]
    resize: int | None = None
    mean: tuple[float, ...] = IMAGENET[0]
    std: tuple[float, ...] = IMAGENET[1]

    def __post_init__(self) -> None:
        if len(self.mean) != len(self.std) or len(self.mean) not in (1, 3) or min(self.std) <= 0:
            raise PreconditionError(
                "mean and std must be 3 numbers each for RGB, or 1 for grey, std above 0, found "
                f"mean={self.mean}, std={self.std}"
            )

    def read(self, path: Path) -> Tensor:
        """One image (C, H, W). Raises PreconditionError where the file is no picture."""
        import warnings

        try:
            from PIL import Image
        except ModuleNotFoundError as error:
            raise PreconditionError("pictures need Pillow, which is not installed; run pip install pillow") from error
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("error", Image.DecompressionBombWarning)
                with Image.open(path) as opened:
                    picture = opened.convert("RGB" if len(self.mean) == 3 else "L")  # reads it
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError,
                Image.DecompressionBombWarning) as error:  # fmt: skip
            raise PreconditionError(
                f"cannot read the picture {str(path)!r}: {str(error).splitlines()[0]}; repair it or take it away"
            ) from error
        return self.image(picture)

    def image(self, picture: Any) -> Tensor:
        """One image (C, H, W) of a PIL image."""
        import torch
        from PIL import Image

        picture = picture.convert("RGB" if len(self.mean) == 3 else "L")
        height, width = self.size
        scale = max((self.resize or 0) / min(picture.size), height / picture.height, width / picture.width)
        scaled = (max(width, round(picture.width * scale)), max(height, round(picture.height * scale)))
        if scaled != picture.size:
            picture = picture.resize(scaled, Image.Resampling.BILINEAR)
        left, top = (scaled[0] - width) // 2, (scaled[1] - height) // 2
        picture = picture.crop((left, top, left + width, top + height))
        values = torch.frombuffer(bytearray(picture.tobytes()), dtype=torch.uint8).float().div_(255)
        mean, std = (torch.tensor(each).view(-1, 1, 1) for each in (self.mean, self.std))
        return (values.view(height, width, -1).permute(2, 0, 1) - mean) / std


class Folder(Sequence[Any]):
    """Pictures in a folder, read when they are asked for. With folders of classes: (image, label), else images alone."""

    def __init__(self, path: Path, pictures: Pictures) -> None:
        self.path, self.pictures = path, pictures
        folders = sorted(each for each in path.iterdir() if each.is_dir() and not each.name.startswith("."))
        self.classes = tuple(each.name for each in folders)
        if self.classes:
            self.files = [(file, label) for label, each in enumerate(folders) for file in _pictures_below(each)]
        else:
            self.files = [(file, -1) for file in _pictures_below(path)]
        if not self.files:
            raise PreconditionError(
                f"the folder {str(path)!r} holds no picture ({', '.join(SUFFIXES)}), itself or in folders of classes"
            )

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: Any) -> Any:
        label = self.files[index][1]
        return (self.image(index), label) if self.classes else self.image(index)

    def image(self, index: int) -> Tensor:
        """The image alone."""
        return self.pictures.read(self.files[index][0])

    def __str__(self) -> str:
        return f"{len(self)} pictures{f' of {len(self.classes)} classes' if self.classes else ''} in {self.path}"


class Dataset(Sequence[Any]):
    """A dataset of torchvision's by name, with arguments: torchvision:CIFAR10(root="data", train=False). (image, label)."""

    def __init__(self, source: str, pictures: Pictures) -> None:
        self.source, self.pictures = source, pictures
        self.items = _torchvision_dataset(source)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, index: Any) -> Any:
        label = self.items[index][1]
        if isinstance(label, bool) or not isinstance(label, int):
            raise PreconditionError(
                f"{self.source} must have a class number for each picture, found {type(label).__name__}; for images without "
                "labels it will do"
            )
        return self.image(index), label

    def image(self, index: int) -> Tensor:
        """The image alone."""
        from PIL import Image

        picture = self.items[index][0]
        if not isinstance(picture, Image.Image):
            raise PreconditionError(
                f"{self.source} must hold pictures, found {type(picture).__name__}; videos and pairs of images are not read"
            )
        return self.pictures.image(picture)

    def __str__(self) -> str:
        return f"{len(self)} pictures of {self.source}"


def _torchvision_dataset(source: str) -> Any:
    """Made from what stands in brackets. Raises PreconditionError where it is not there or not what torchvision wants."""
    from fxfactor.cli.networks import parse_name, require_listed

    try:
        from torchvision import datasets
    except ModuleNotFoundError as error:
        raise PreconditionError("torchvision is not installed; run pip install torchvision") from error
    name = parse_name(source)
    require_listed(name, list(datasets.__all__), "torchvision", "dataset")
    try:
        found = getattr(datasets, name.name)(*name.arguments, **name.options)
        if len(found) == 0:
            raise ValueError("it is empty")
    except Exception as error:  # each dataset has its own
        said = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise PreconditionError(
            f'cannot open {source}: {said}; write its arguments as in torchvision:CIFAR10(root="data", train=False), with '
            "download=True where it is to be fetched"
        ) from error
    return found


def _pictures_below(folder: Path) -> list[Path]:
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())


def read_images(
    path: Path, pictures: Pictures | None = None, at_most: int | None = None, size: int = 32
) -> list[Tensor]:
    """Batches (N, C, H, W) of float32 images without labels: of a .npy file, of "x" in an .npz file, of a folder.

    at_most: take so many, spread evenly; by default all of a file, and `CALIBRATION` of a folder.
    Raises PreconditionError where there are none, or where one is no picture or has values that are not finite.
    """
    import torch

    if (pictured := _pictured(path, pictures)) is not None:
        chosen = _spread(len(pictured), at_most or CALIBRATION)
        note(f"images: {len(chosen)} of {pictured}, {_described(pictured.pictures)}")
        return list(torch.stack([pictured.image(index) for index in chosen]).split(size))
    (array,) = read_arrays(path, ("x",), "images")
    require_images(array, path, "images")
    chosen = _spread(len(array), at_most or len(array))
    return list(torch.from_numpy(array[list(chosen)]).float().split(size))


class Labelled(Sequence[Any]):
    """Batches (images, labels), each read when it is asked for. `images` is the number of images in all."""

    def __init__(self, items: Any, size: int) -> None:
        self.items, self.size = items, size
        self.images = len(items[0]) if isinstance(items, tuple) else len(items)

    def __len__(self) -> int:
        return -(-self.images // self.size)

    def __getitem__(self, index: Any) -> Any:
        import torch

        if not 0 <= index < len(self):
            raise IndexError(index)
        part = range(index * self.size, min((index + 1) * self.size, self.images))
        if isinstance(self.items, tuple):
            return self.items[0][part.start : part.stop], self.items[1][part.start : part.stop]
        images, labels = zip(*(self.items[each] for each in part), strict=True)
        return torch.stack(images), torch.tensor(labels)


class Shuffled:
    """The images of a `Labelled` in a new order each time, drawn from torch's own generator: for training."""

    def __init__(self, labelled: Labelled) -> None:
        self.labelled = labelled

    def __len__(self) -> int:
        return len(self.labelled)

    def __iter__(self) -> Iterator[Any]:
        import torch

        items, size = self.labelled.items, self.labelled.size
        for part in torch.randperm(self.labelled.images).split(size):
            if isinstance(items, tuple):
                yield items[0][part], items[1][part]
            else:
                images, labels = zip(*(items[each] for each in part.tolist()), strict=True)
                yield torch.stack(images), torch.tensor(labels)


def read_labelled(
    path: Path, pictures: Pictures | None = None, size: int = 100, what: str = "validation set"
) -> Labelled:
    """Batches (images, labels): of "x" and "y" in an .npz file, or of a folder with a folder of pictures for each class.

    Labels are class numbers from 0; folders of classes are numbered in the order of their names, as torchvision does.
    Raises PreconditionError where there are none.
    """
    import numpy as np
    import torch

    if (pictured := _pictured(path, pictures)) is not None:
        if isinstance(pictured, Folder) and not pictured.classes:
            raise PreconditionError(
                f"the {what} {str(path)!r} must have a folder for each class, found pictures without any; labels are needed"
            )
        note(f"{what}: {pictured}, {_described(pictured.pictures)}")
        return Labelled(pictured, size)
    images, labels = read_arrays(path, ("x", "y"), what)
    require_images(images, path, what)
    if labels.ndim != 1 or len(labels) != len(images):
        raise PreconditionError(
            f"{str(path)!r} must have a label for each image, found labels of shape {labels.shape} for {len(images)} images"
        )
    if labels.dtype.kind == "f" and not bool(np.isfinite(labels).all() and (labels == labels.round()).all()):
        raise PreconditionError(f"labels in {str(path)!r} must be class numbers, found values that are not whole")
    if labels.min() < 0:
        raise PreconditionError(f"labels in {str(path)!r} must be class numbers from 0, found {labels.min()}")
    return Labelled((torch.from_numpy(np.array(images)).float(), torch.from_numpy(labels.astype(np.int64))), size)


def _pictured(path: Path, pictures: Pictures | None) -> Folder | Dataset | None:
    """Pictures where `path` is a folder or names a dataset of torchvision's; None where it is a file."""
    name = str(path)
    if name.startswith("torchvision:"):
        return Dataset(name, _required(pictures, path))
    return Folder(path, _required(pictures, path)) if path.is_dir() else None


def _required(pictures: Pictures | None, path: Path) -> Pictures:
    if pictures is None:
        raise PreconditionError(f"{str(path)!r} holds pictures: say their size, with --image-size 224")
    return pictures


def _spread(total: int, at_most: int) -> list[int]:
    """Up to `at_most` indices, evenly over 0 … total − 1."""
    count = min(total, at_most)
    return [index * total // count for index in range(count)]


def _described(pictures: Pictures) -> str:
    height, width = pictures.size
    return f"{height}×{width}, mean {_numbers(pictures.mean)}, std {_numbers(pictures.std)}"


def _numbers(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)
