"""Networks, weights and images that the command line is given."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, error_of, run
from safetensors.torch import save_file

import fxfactor
from fxfactor import PreconditionError
from fxfactor.cli.networks import named_model, parse_name, usable_device


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_weights_are_loaded(folder: Path, suffix: str) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    model = sys.modules["cli_nets"].small()
    (save_file if suffix == "safetensors" else torch.save)(model.state_dict(), f"w.{suffix}")
    assert run("transform", *SMALL, "--weights", f"w.{suffix}", "-o", "net") == 0
    assert torch.equal(fxfactor.load("net", model).state_dict()["0.weight"], model[0].weight)


def test_calibration_images_set_the_ranges(capsys: pytest.CaptureFixture[str]) -> None:
    images = np.random.default_rng(0).normal(size=(40, 3, 16, 16))
    for name, scale in (("one", 1.0), ("large", 100.0)):
        np.save(f"{name}.npy", scale * images)
        assert run("transform", *SMALL, "-b", "8", "--calibration", f"{name}.npy", "-o", name) == 0
    model = sys.modules["cli_nets"].small()
    one, large = (fxfactor.load(name, model).state_dict() for name in ("one", "large"))
    (key,) = [key for key in one if key.startswith("input") and key.endswith("value")]
    assert float(large[key] / one[key]) == pytest.approx(100, rel=0.01)


def test_a_variable_inside_a_class_can_be_named() -> None:
    assert run("summary", "cli_nets:Nets.ready") == 0


def test_torchvision_and_its_networks_with_backbones(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", "torchvision:mobilenet_v3_small", "-l", "1", "--input-size", "3x32x32") == 0
    assert "features.0.0" in capsys.readouterr().out
    assert run("summary", "torchvision:lraspp_mobilenet_v3_large", "--input-size", "3x64x64") == 0


def test_weights_of_another_network_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    torch.save(sys.modules["cli_nets"].small(first=24).state_dict(), "other.pth")
    assert "do not fit Sequential" in error_of(capsys, "transform", *SMALL, "--weights", "other.pth")


def test_a_folder_without_source_says_how_to_give_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("summary", "cli_nets:small", "--input-size", "3x16x16") == 0
    fxfactor.save(fxfactor.transform(sys.modules["cli_nets"].small(), level=1), "net")
    assert "does not say where its network comes from" in error_of(capsys, "summary", "net")


def test_errors_of_the_users_own_code_are_explained_and_traced_on_request(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "broken.py").write_text("import a_module_that_is_missing\n")
    told = error_of(capsys, "transform", "broken:net")
    assert "importing 'broken' raised ModuleNotFoundError: No module named 'a_module_that_is_missing' at" in told
    assert "--verbose shows the traceback" in told
    assert run("transform", "broken:net", "--verbose") == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize(
    "source",
    [
        "m:f(",
        "m:f(a)",
        "m:f(__import__('os'))",
        "m:f(**{})",
        "m:f(1)(2)",
        "m:f(open('x'))",
        "m:f(1) or 2",
        "m:f(" + "(" * 300,
    ],
)
def test_arguments_are_literals_and_never_evaluated(source: str) -> None:
    with pytest.raises(PreconditionError, match="must be Python literals"):
        parse_name(source)


def test_arguments_are_read() -> None:
    name = parse_name("my.net:build(3, [1, 2], num_classes=10, act='relu')")
    assert (name.origin, name.name) == ("my.net", "build")
    assert name.arguments == (3, [1, 2])
    assert name.options == {"num_classes": 10, "act": "relu"}


def test_random_weights_are_said_loudly_and_loaded_ones_are_not(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (folder / "loads.py").write_text(
        "import torch\nfrom cli_nets import small\n"
        "def trained():\n    net = small()\n    net.load_state_dict(torch.load('w.pth'))\n    return net\n"
    )
    sys.modules.pop("loads", None)
    named_model("cli_nets:small")
    assert "cli_nets:small has RANDOM weights: give --weights FILE" in capsys.readouterr().err
    torch.save(sys.modules["cli_nets"].small().state_dict(), "w.pth")
    named_model("loads:trained")
    named_model("cli_nets:small", Path("w.pth"))
    assert capsys.readouterr().err == ""


class FakeTimm:
    """What of timm is called, with its names; a test against timm itself needs timm."""

    def __init__(self) -> None:
        self.asked: list[object] = []

    def list_models(self, pretrained: bool = False) -> list[str]:
        return ["tiny.in1k"] if pretrained else ["tiny"]

    def create_model(self, name: str, **options: object) -> torch.nn.Module:
        self.asked.append((name, options))
        return torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3))


def test_timm_is_asked_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    fake = FakeTimm()
    monkeypatch.setitem(sys.modules, "timm", fake)
    named_model("timm:tiny.in1k", pretrained=True)
    named_model("timm:hf-hub:owner/net(num_classes=3)", pretrained=True)
    assert fake.asked == [
        ("tiny.in1k", {"pretrained": True}),
        ("hf-hub:owner/net", {"pretrained": True, "num_classes": 3}),
    ]
    with pytest.raises(PreconditionError, match=r"timm has no model 'tiney'; did you mean 'tiny'"):
        named_model("timm:tiney")


def test_timm_that_is_not_installed_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(PreconditionError, match="timm is not installed; run pip install timm"):
        named_model("timm:resnet18")


def test_published_weights_without_a_connection_are_explained(monkeypatch: pytest.MonkeyPatch) -> None:
    from urllib.error import URLError

    def fail(*_: object, **__: object) -> None:
        raise URLError("no route to host")

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fail)
    with pytest.raises(PreconditionError, match="cannot load the published weights of torchvision:resnet18.*no route"):
        named_model("torchvision:resnet18", pretrained=True)


def test_devices_that_are_not_there_are_explained() -> None:
    for device in ("cuda:99", "toaster", "meta"):
        with pytest.raises(PreconditionError, match="give --device cpu"):
            usable_device(device)
    assert usable_device(None) == torch.device("cpu")
