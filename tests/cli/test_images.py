"""Images as users have them: arrays and folders of pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from fxfactor import PreconditionError
from fxfactor.cli.images import Folder, Pictures, Shuffled, read_images, read_labelled

Image = pytest.importorskip("PIL.Image")
PLAIN = Pictures((8, 8), mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def picture(path: Path, size: tuple[int, int] = (8, 8), color: tuple[int, int, int] = (255, 0, 51)) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.new("RGB", size, color).save(path)


def test_a_picture_becomes_an_image_as_torchvision_makes_it(tmp_path: Path) -> None:
    transforms = pytest.importorskip("torchvision.transforms")
    values = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    Image.fromarray(values).save(tmp_path / "a.png")
    pictures = Pictures((24, 24), resize=32)
    theirs = transforms.Compose(
        [transforms.Resize(32), transforms.CenterCrop(24), transforms.ToTensor(),
         transforms.Normalize(pictures.mean, pictures.std)]
    )(Image.open(tmp_path / "a.png"))  # fmt: skip
    assert torch.allclose(pictures.read(tmp_path / "a.png"), theirs, atol=1e-6)


@pytest.mark.parametrize("size", [(8, 8), (16, 9), (5, 40)])
def test_without_a_size_to_scale_to_the_image_just_fits(tmp_path: Path, size: tuple[int, int]) -> None:
    picture(tmp_path / "a.png", size)
    image = PLAIN.read(tmp_path / "a.png")
    assert image.shape == (3, 8, 8)
    assert torch.allclose(image.mean((1, 2)), torch.tensor([1.0, 0.0, 0.2]))


def test_grey_pictures(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", color=(102, 102, 102))
    image = Pictures((4, 4), mean=(0.4,), std=(0.5,)).read(tmp_path / "a.png")
    assert image.shape == (1, 4, 4)
    assert float(image.abs().max()) < 1e-6


def test_folders_of_classes_are_numbered_by_their_names(tmp_path: Path) -> None:
    for name in ("dog/2.png", "dog/1.JPG", "cat/a.png", ".hidden/x.png", "cat/notes.txt"):
        picture(tmp_path / name) if not name.endswith("txt") else (tmp_path / name).write_text("")
    folder = Folder(tmp_path, PLAIN)
    assert folder.classes == ("cat", "dog")
    assert [(file.name, label) for file, label in folder.files] == [("a.png", 0), ("1.JPG", 1), ("2.png", 1)]
    labelled = read_labelled(tmp_path, PLAIN, size=2)
    assert [labels.tolist() for _, labels in labelled] == [[0, 1], [1]]
    assert [len(images) for images, _ in labelled] == [2, 1]


def test_a_flat_folder_is_for_calibration_only(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for index in range(5):
        picture(tmp_path / f"{index}.png", color=(51 * index, 0, 0))
    batches = read_images(tmp_path, PLAIN, at_most=2, size=1)
    assert [round(float(batch[0, 0, 0, 0]), 2) for batch in batches] == [0.0, 0.4]
    assert "2 of 5 pictures" in capsys.readouterr().err
    with pytest.raises(PreconditionError, match="must have a folder for each class"):
        read_labelled(tmp_path, PLAIN)


def test_arrays(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(5, 3, 8, 8)), np.arange(5)
    np.save(tmp_path / "x.npy", x)
    np.savez(tmp_path / "xy.npz", x=x, y=y)
    for name in ("x.npy", "xy.npz"):
        assert torch.equal(torch.cat(read_images(tmp_path / name, size=2)), torch.from_numpy(x).float())
    assert len(torch.cat(read_images(tmp_path / "x.npy", at_most=3))) == 3
    labelled = read_labelled(tmp_path / "xy.npz", size=3)
    assert torch.equal(torch.cat([labels for _, labels in labelled]), torch.arange(5))


def test_training_sees_every_image_once_in_an_order_of_the_seed(tmp_path: Path) -> None:
    np.savez(tmp_path / "xy.npz", x=np.zeros((9, 3, 4, 4)), y=np.arange(9))
    shuffled = Shuffled(read_labelled(tmp_path / "xy.npz", size=4))
    orders = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        orders.append(torch.cat([labels for _, labels in shuffled]).tolist())
    assert orders[0] == orders[1] != orders[2]
    assert sorted(orders[0]) == list(range(9))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.arange(3)}, "a label for each image"),
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.zeros((2, 10))}, "a label for each image"),
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.array([0.5, 1])}, "values that are not whole"),
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.array([0, np.nan])}, "values that are not whole"),
        ({"x": np.zeros((2, 3, 4, 4)), "y": np.array([0, -1])}, "class numbers from 0, found -1"),
        ({"x": np.full((2, 3, 4, 4), np.inf), "y": np.arange(2)}, "image 0 .* NaN or infinite"),
        ({"x": np.zeros((0, 3, 4, 4)), "y": np.zeros(0)}, "at least one"),
        ({"x": np.zeros((2, 3, 4, 4))}, "y is not a file in the archive"),
    ],
)
def test_labelled_arrays_that_are_none(tmp_path: Path, data: dict[str, np.ndarray], message: str) -> None:
    np.savez(tmp_path / "xy.npz", **data)
    with pytest.raises(PreconditionError, match=message):
        read_labelled(tmp_path / "xy.npz")


def test_folders_without_pictures_and_pictures_without_a_size(tmp_path: Path) -> None:
    with pytest.raises(PreconditionError, match="holds no picture"):
        read_images(tmp_path, PLAIN)
    picture(tmp_path / "a.png")
    with pytest.raises(PreconditionError, match="say their size, with --image-size 224"):
        read_images(tmp_path)


@pytest.mark.parametrize("data", [b"", b"junk", b"\x89PNG\r\n\x1a\njunk", b"GIF89a" + b"\xff" * 10])
def test_a_damaged_picture_is_named(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "a.png").write_bytes(data)
    with pytest.raises(PreconditionError, match=r"cannot read the picture '.*a\.png'"):
        PLAIN.read(tmp_path / "a.png")


def test_a_picture_of_too_many_pixels_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "a.png", (20, 20))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 300)
    with pytest.raises(PreconditionError, match="cannot read the picture .* exceeds limit"):
        PLAIN.read(tmp_path / "a.png")


@pytest.mark.parametrize("numbers", [((0.5,), (0.5, 0.5)), ((0.5, 0.5), (1.0, 1.0)), ((0.5,), (0.0,))])
def test_mean_and_std_of_no_picture(numbers: tuple[tuple[float, ...], tuple[float, ...]]) -> None:
    with pytest.raises(PreconditionError, match="mean and std must be 3 numbers each"):
        Pictures((8, 8), mean=numbers[0], std=numbers[1])


FAKE = "torchvision:FakeData(size=6, image_size=(3, 12, 12), num_classes=3)"


def test_datasets_of_torchvision(capsys: pytest.CaptureFixture[str]) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    theirs = datasets.FakeData(size=6, image_size=(3, 12, 12), num_classes=3)
    labelled = read_labelled(Path(FAKE), PLAIN, size=4)
    assert [len(labels) for _, labels in labelled] == [4, 2]
    assert [int(each) for _, labels in labelled for each in labels] == [int(theirs[index][1]) for index in range(6)]
    assert torch.equal(labelled[0][0][1], PLAIN.image(theirs[1][0]))
    assert f"6 pictures of {FAKE}, 8×8" in " ".join(capsys.readouterr().err.split())
    (batch,) = read_images(Path(FAKE), PLAIN, at_most=3)
    assert torch.equal(batch, torch.stack([PLAIN.image(theirs[index][0]) for index in (0, 2, 4)]))


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("torchvision:CIFAR10(root='nowhere')", "Dataset not found.*download=True where it is to be fetched"),
        ("torchvision:CIFAR10", "cannot open torchvision:CIFAR10: .*root"),
        ("torchvision:CIFA10(root='x')", "torchvision has no dataset 'CIFA10'; did you mean 'CIFAR10'"),
        ("torchvision:FakeData(size=__import__('os'))", "must be Python literals"),
        ("torchvision:FakeData(size=0)", "it is empty"),
        ("torchvision:ImageFolder(root='nowhere')", "cannot open .*nowhere"),
    ],
)
def test_datasets_that_are_not_there(source: str, message: str) -> None:
    pytest.importorskip("torchvision")
    with pytest.raises(PreconditionError, match=message):
        read_images(Path(source), PLAIN)
    with pytest.raises(PreconditionError, match=r"holds pictures: say their size, with --image-size 224"):
        read_images(Path(source))


def test_a_dataset_without_class_numbers_is_for_calibration_only(monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("torchvision.datasets")
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (Image.new("RGB", (8, 8)), "cat"))
    assert len(read_images(Path(FAKE), PLAIN)[0]) == 6
    with pytest.raises(PreconditionError, match="must have a class number for each picture, found str"):
        read_labelled(Path(FAKE), PLAIN)[0]
    monkeypatch.setattr(datasets.FakeData, "__getitem__", lambda self, index: (torch.zeros(3), 1))
    with pytest.raises(PreconditionError, match="must hold pictures, found Tensor"):
        read_images(Path(FAKE), PLAIN)
