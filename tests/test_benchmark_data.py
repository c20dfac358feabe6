"""Where the benchmarks find images and weights, and what they say where there are none. Needs no data and no network."""

from __future__ import annotations

import importlib.util
import re
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
THREE_WAYS = (
    r"\(1\) the folder that FXFACTOR_DATA names, \(2\) .*shared/data, or \(3\) torchvision's and torch.hub's downloads"
)


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """benchmarks/data.py in a place that has none of the three."""
    spec = importlib.util.spec_from_file_location("benchmark_data", BENCHMARKS / "data.py")
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "benchmark_data", module)
    spec.loader.exec_module(module)
    monkeypatch.delenv("FXFACTOR_DATA", raising=False)
    monkeypatch.setattr(module, "BESIDE", tmp_path / "shared" / "data")
    return module


def folder_of(path: Path, data: ModuleType) -> Path:
    """A folder of two images for each split, one photo and weights that no one trained."""
    for name in ("cifar10", "weights", "photos"):
        (path / name).mkdir(parents=True)
    for number, split in enumerate(("train", "train_rest", "test")):
        pixels = np.full((2, 32, 32, 3), 51 * number, np.uint8)
        np.savez(path / "cifar10" / f"{split}.npz", x=pixels, y=np.array([number, number]))
    state = {f"module.{key}": value for key, value in data.CifarResNet(3).state_dict().items()}
    torch.save({"state_dict": state}, path / "weights" / data.WEIGHTS[20])
    Image.new("RGB", (224, 224), (255, 0, 0)).save(path / "photos" / "a.png", "JPEG")
    (path / "photos" / "a.png").rename(path / "photos" / "a.jpg")
    (path / "photos" / "labels.csv").write_text("ImageId,TrueLabel\na,8\n")
    return path


def test_the_variable_comes_first(data, tmp_path, monkeypatch, capsys):
    folder_of(data.BESIDE, data)
    named = folder_of(tmp_path / "named", data)
    monkeypatch.setenv("FXFACTOR_DATA", str(named))
    assert data.find().path == named
    assert capsys.readouterr().err == f"data: {named} (FXFACTOR_DATA)\n"


def test_then_the_folder_beside_the_repository(data, capsys):
    folder_of(data.BESIDE, data)
    assert data.find().path == data.BESIDE
    assert f"data: {data.BESIDE} (beside" in capsys.readouterr().err


def test_what_a_folder_gives(data, tmp_path):
    found = data.Folder(folder_of(tmp_path / "named", data))
    images, labels = found.cifar10("train_all")
    assert images.shape == (4, 3, 32, 32)
    assert labels.tolist() == [0, 0, 1, 1]
    wanted = (torch.tensor([0.2, 0.2, 0.2]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(images[2, :, 5, 7], wanted)
    photos, labels = found.photos()
    assert photos.shape == (1, 3, 224, 224)
    assert photos.dtype == torch.uint8
    assert photos[0, 0].min() > 250
    assert labels.tolist() == [7]
    model = found.cifar_resnet(20)
    assert not model.training
    assert sum(parameter.numel() for parameter in model.parameters()) == 269_722  # He et al. 2015: 0.27 million
    assert model(images).shape == (4, 10)


def test_what_a_download_gives(data, monkeypatch, capsys):
    torchvision = pytest.importorskip("torchvision")
    asked = []

    def cifar10(root: str, train: bool, download: bool) -> SimpleNamespace:
        asked.append((train, download))
        count = 20_003 if train else 1_005
        return SimpleNamespace(data=np.zeros((count, 1, 1, 3), np.uint8), targets=list(range(count)))

    def weights(url: str, **settings: object) -> dict[str, object]:
        asked.append((url.rpartition("/")[2], settings["check_hash"], settings["weights_only"]))
        return {"state_dict": {f"module.{key}": value for key, value in data.CifarResNet(5).state_dict().items()}}

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", cifar10)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", weights)
    found = data.find()
    assert "data: downloads of torchvision and torch.hub" in capsys.readouterr().err
    parts = {split: found.cifar10(split)[1].tolist() for split in ("train", "train_rest", "train_all", "test")}
    assert parts["train"] == list(range(20_000))
    assert parts["train_rest"] == [20_000, 20_001, 20_002]
    assert parts["train_all"] == list(range(20_003))
    assert parts["test"] == list(range(1_000))
    assert len(found.cifar_resnet(32).layer1) == 5
    assert asked == [(True, True)] * 3 + [(False, True), ("resnet32-d509ac18.th", True, True)]


def test_a_variable_that_names_no_folder_is_refused(data, monkeypatch, tmp_path):
    folder_of(data.BESIDE, data)
    monkeypatch.setenv("FXFACTOR_DATA", str(tmp_path / "absent"))
    with pytest.raises(
        SystemExit, match=rf"^FXFACTOR_DATA names {re.escape(str(tmp_path / 'absent'))}, .*{THREE_WAYS}"
    ):
        data.find()


def test_a_folder_that_lacks_a_file_says_which(data, tmp_path):
    with pytest.raises(SystemExit, match=rf"has no cifar10/test.npz\. .*{THREE_WAYS}"):
        data.Folder(tmp_path).cifar10("test")
    with pytest.raises(SystemExit, match=rf"has no weights/resnet20-12fca82f.th\. .*{THREE_WAYS}"):
        data.Folder(tmp_path).cifar_resnet(20)


def test_without_a_network_the_three_ways_are_named(data, monkeypatch):
    torchvision = pytest.importorskip("torchvision")

    def unreachable(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr(torchvision.datasets, "CIFAR10", unreachable)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", unreachable)
    found = data.find()
    with pytest.raises(SystemExit, match=rf"^CIFAR-10 could not be downloaded \(URLError: .*no route.*{THREE_WAYS}"):
        found.cifar10("test")
    with pytest.raises(SystemExit, match=rf"resnet20-12fca82f.th could not be downloaded .*{THREE_WAYS}"):
        found.cifar_resnet(20)
    with pytest.raises(SystemExit, match=rf"^the photos are in no download\. .*{THREE_WAYS}"):
        found.photos()


def test_other_names_are_refused(data):
    with pytest.raises(ValueError, match="train, train_rest, train_all, test, found 'validation'"):
        data.Download().cifar10("validation")
    with pytest.raises(ValueError, match="depth 20 and 32, found 56"):
        data.Folder(Path()).cifar_resnet(56)


def test_no_benchmark_finds_data_in_another_way():
    for path in BENCHMARKS.glob("*.py"):
        if path.name != "data.py":
            assert not re.search(r"realdata|shared/data|\"shared\"", path.read_text()), path.name
