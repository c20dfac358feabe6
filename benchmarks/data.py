"""Images and trained networks for the benchmarks, from the first of three places; which one is printed.

1. The folder that the environment variable FXFACTOR_DATA names.
2. `../shared/data` beside the repository, if it is there.
3. The internet: CIFAR-10 by torchvision's own download, the weights by torch.hub, which keeps both (`torch.hub.get_dir()`).

A folder has, each as far as the benchmark needs it:

* `cifar10/train.npz`, `train_rest.npz`, `test.npz`: x (N, 32, 32, 3) uint8 and y (N,), 20,000, 30,000 and 1,000 images
* `weights/resnet20-12fca82f.th`, `weights/resnet32-d509ac18.th` of akamaster/pytorch_resnet_cifar10
* `photos/labels.csv` (columns ImageId, TrueLabel) and `photos/ImageId.jpg`, 224 × 224 pixels: the development images of the
  NIPS 2017 adversarial competition, which are in no download

The documented figures were made with a folder. Torchvision's images have another order, so "train" is another 20,000 there.
"""

from __future__ import annotations

import csv
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

BESIDE = Path(__file__).resolve().parents[2] / "shared" / "data"
MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
SPLITS = {"train": ("train",), "train_rest": ("train_rest",), "train_all": ("train", "train_rest"), "test": ("test",)}
TRAIN, TEST = 20_000, 1_000
WEIGHTS_URL = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"
WEIGHTS = {20: "resnet20-12fca82f.th", 32: "resnet32-d509ac18.th"}
"""By depth; the digits are the start of the file's SHA-256, which torch.hub checks. BSD-2-Clause (Y. Idelbayev)."""


class Data(Protocol):
    """What a benchmark asks for."""

    def cifar10(self, split: str) -> tuple[Tensor, Tensor]:
        """Images (N, 3, 32, 32) float32, normalised as the weights expect, and labels (N,) int64.

        split: "train" (20,000 of the training images), "train_rest" (the other 30,000), "train_all" or "test" (1,000).
        """

    def cifar_resnet(self, depth: int) -> CifarResNet:
        """The ResNet-20 or ResNet-32 trained on CIFAR-10, in eval mode."""

    def photos(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        """RGB photos (N, 3, 224, 224) uint8 and ImageNet-1k labels (N,) int64, in the order of labels.csv."""


def find() -> Data:
    """The first of the three places, said on stderr. A folder named by FXFACTOR_DATA that is not there is refused."""
    named = os.environ.get("FXFACTOR_DATA")
    if named and not Path(named).is_dir():
        raise SystemExit(_missing(f"FXFACTOR_DATA names {named}, which is no folder"))
    if named:
        print(f"data: {named} (FXFACTOR_DATA)", file=sys.stderr)
        return Folder(Path(named))
    if BESIDE.is_dir():
        print(f"data: {BESIDE} (beside the repository; FXFACTOR_DATA is not set)", file=sys.stderr)
        return Folder(BESIDE)
    print(f"data: downloads of torchvision and torch.hub, kept in {torch.hub.get_dir()}", file=sys.stderr)
    return Download()


def _missing(what: str) -> str:
    return (
        f"{what}. Images and weights come from (1) the folder that FXFACTOR_DATA names, (2) {BESIDE}, or (3) torchvision's and "
        f"torch.hub's downloads where the network allows; the head of {Path(__file__).name} says what a folder must have"
    )


@dataclass(frozen=True)
class Folder:
    """Data in a folder, as the head of this file describes it."""

    path: Path

    def cifar10(self, split: str) -> tuple[Tensor, Tensor]:
        parts = [np.load(self._file(f"cifar10/{part}.npz")) for part in _parts(split)]
        return _normalised(np.concatenate([part["x"] for part in parts]), np.concatenate([part["y"] for part in parts]))

    def cifar_resnet(self, depth: int) -> CifarResNet:
        file = self._file(f"weights/{_name(depth)}")
        return _trained(depth, torch.load(file, map_location="cpu", weights_only=True))

    def photos(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        from PIL import Image

        with open(self._file("photos/labels.csv"), newline="") as file:
            rows = list(csv.DictReader(file))[:limit]
        images = [np.asarray(Image.open(self._file(f"photos/{row['ImageId']}.jpg"))) for row in rows]
        labels = torch.tensor([int(row["TrueLabel"]) - 1 for row in rows])
        return torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2), labels

    def _file(self, name: str) -> Path:
        if not (self.path / name).is_file():
            raise SystemExit(_missing(f"{self.path} has no {name}"))
        return self.path / name


@dataclass(frozen=True)
class Download:
    """Data from the internet, each part at its first use."""

    def cifar10(self, split: str) -> tuple[Tensor, Tensor]:
        from torchvision.datasets import CIFAR10

        parts, root = _parts(split), Path(torch.hub.get_dir()) / "datasets"
        whole = _fetched("CIFAR-10", lambda: CIFAR10(str(root), train=parts != ("test",), download=True))
        chosen = {
            "train": slice(TRAIN),
            "train_rest": slice(TRAIN, None),
            "train_all": slice(None),
            "test": slice(TEST),
        }
        return _normalised(whole.data[chosen[split]], np.asarray(whole.targets)[chosen[split]])

    def cifar_resnet(self, depth: int) -> CifarResNet:
        url = f"{WEIGHTS_URL}/{_name(depth)}"
        load = torch.hub.load_state_dict_from_url
        state = _fetched(url, lambda: load(url, map_location="cpu", check_hash=True, weights_only=True))
        return _trained(depth, state)

    def photos(self, limit: int | None = None) -> tuple[Tensor, Tensor]:
        raise SystemExit(_missing("the photos are in no download"))


def _fetched(what: str, fetch: Callable[[], Any]) -> Any:
    try:
        return fetch()
    except (OSError, RuntimeError) as error:  # no network; another file than was asked for
        raise SystemExit(_missing(f"{what} could not be downloaded ({type(error).__name__}: {error})")) from error


def _parts(split: str) -> tuple[str, ...]:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}, found {split!r}")
    return SPLITS[split]


def _normalised(images: np.ndarray, labels: np.ndarray) -> tuple[Tensor, Tensor]:
    return (torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255 - MEAN) / STD, torch.from_numpy(labels).long()


def _name(depth: int) -> str:
    if depth not in WEIGHTS:
        raise ValueError(f"there are trained networks of depth {' and '.join(map(str, WEIGHTS))}, found {depth}")
    return WEIGHTS[depth]


def _trained(depth: int, state: dict[str, Any]) -> CifarResNet:
    model = CifarResNet((depth - 2) // 6)
    model.load_state_dict({key.removeprefix("module."): value for key, value in state["state_dict"].items()})
    return model.eval()


class _PaddedShortcut(nn.Module):
    """Parameter-free shortcut of He et al. 2015 (option A): subsample, then zero-pad the channels."""

    def __init__(self, new_channels: int) -> None:
        super().__init__()
        self.half = new_channels // 2

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.half, self.half))


class _BasicBlock(nn.Module):
    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        grows = channels_out - channels_in
        self.shortcut = _PaddedShortcut(grows) if grows else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        return F.relu(self.bn2(self.conv2(y)) + self.shortcut(x))


class CifarResNet(nn.Module):
    """ResNet-(6n+2) for 32 × 32 images (He et al. 2015); the state dict's keys are those of the trained weights."""

    def __init__(self, blocks_per_stage: int, classes: int = 10) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = self._stage(16, 16, 1, blocks_per_stage)
        self.layer2 = self._stage(16, 32, 2, blocks_per_stage)
        self.layer3 = self._stage(32, 64, 2, blocks_per_stage)
        self.linear = nn.Linear(64, classes)

    @staticmethod
    def _stage(channels_in: int, channels_out: int, stride: int, blocks: int) -> nn.Sequential:
        first = _BasicBlock(channels_in, channels_out, stride)
        return nn.Sequential(first, *(_BasicBlock(channels_out, channels_out, 1) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))
