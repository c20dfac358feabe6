"""The command line: what each command prints, writes and answers to mistakes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, error_of, run

import fxfactor
from fxfactor.cli.networks import named_model


def test_transform_save_summary_export(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", *SMALL, "--level", "2", "--bits", "4", "--output", "net") == 0
    printed, told = capsys.readouterr()
    assert "16→32 3×3 → g4 + 1×1" in printed
    assert "saved in net; next: fxfactor export net net.onnx --model cli_nets:small\n" in told
    assert run("summary", "net", "--model", SMALL[0]) == 0
    assert capsys.readouterr().out == printed
    assert run("export", "net", "net.onnx", "--model", SMALL[0]) == 0
    assert "relative difference" in capsys.readouterr().out
    assert sorted(path.name for path in folder.iterdir() if path.suffix != ".py" and path.name[0] != "_") == [
        "net",
        "net.onnx",
    ]


def test_bits_of_weights_and_activations(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", *SMALL, "--weight-bits", "3", "--activation-bits", "5") == 0
    assert "3/5" in capsys.readouterr().out


def test_an_edited_plan_is_followed(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL, "-l", "2", "-b", "4", "-o", "plan.json") == 0
    plan = json.loads((folder / "plan.json").read_text())
    plan["layers"]["3"]["groups"] = 8
    (folder / "plan.json").write_text(json.dumps(plan))
    assert run("transform", *SMALL, "--plan", "plan.json") == 0
    assert "g8 + 1×1" in capsys.readouterr().out


def test_rounding_brings_the_output_nearer_and_reconstruction_comes_after_it(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = np.random.default_rng(0).normal(size=(48, 3, 16, 16)).astype(np.float32)
    np.save(folder / "images.npy", images)
    calibrated = ["transform", *SMALL, "-l", "2", "-b", "3", "--calibration", "images.npy"]
    steps = {
        "none": ["calibrated"],
        "round": ["calibrated", "rounded"],
        "both": ["calibrated", "rounded", "reconstructed"],
    }
    for name, more in {"none": ["--no-round"], "round": [], "both": ["--reconstruct", "60"]}.items():
        assert run(*calibrated, *more, "-o", name) == 0
        assert re.findall(r"^  (\w+): \d+% off", capsys.readouterr().out, re.MULTILINE) == steps[name]
    x = torch.from_numpy(images)
    model = named_model(SMALL[0])
    with torch.no_grad():
        wanted = model(x)
        errors = {name: float((fxfactor.load(name, model)(x) - wanted).norm()) for name in ("none", "round")}
    assert errors["round"] < 0.5 * errors["none"]


def test_plan_goes_to_the_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL, "--level", "depthwise", "--keep", "8") == 0
    assert fxfactor.Plan.from_json(capsys.readouterr().out).layers["3"].groups == 16


def test_a_plan_without_a_level_is_that_of_level_3(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL) == 0
    assert fxfactor.Plan.from_json(capsys.readouterr().out).layers["3"].groups == 8


def test_bits_of_additions_are_in_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL, "--bits", "4", "--join-bits", "8") == 0
    plan = fxfactor.Plan.from_json(capsys.readouterr().out)
    assert (plan.join_bits, plan.residual_bits) == (8, 8)
    assert run("transform", *SMALL, "--bits", "4", "--join-bits", "8") == 0


def test_width_is_channels_between_the_factors(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("plan", *SMALL, "--level", "depthwise", "--width", "2") == 0
    assert fxfactor.Plan.from_json(capsys.readouterr().out).layers["3"].mid == 32
    assert run("transform", *SMALL, "--level", "depthwise", "--width", "2") == 0
    assert "32" in capsys.readouterr().out


def test_keep_leaves_a_layer_in_one_piece(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", *SMALL, "-l", "2", "--keep", "3") == 0
    assert "kept on request" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["transform", "resnet18"],
            "a network is named torchvision:NAME, timm:NAME or package.module:factory or by a saved folder",
        ),
        (["transform", "torchvision:resnt18"], "did you mean 'resnet18'"),
        (["transform", "cli_nets:wrong"], "must be a torch.nn.Module or give one when called, found int"),
        (["transform", "cli_nets:Nets.nothing"], "has no 'Nets.nothing'"),
        (["transform", "no_such_module:x"], "there is no module 'no_such_module'"),
        (["transform", *SMALL, "-l", "1", "--keep", "7"], "no convolution or linear layer '7' in the network"),
        (["transform", *SMALL, "--plan", "none.json"], "cannot read the plan 'none.json'"),
        (["transform", *SMALL, "--weights", "none.pth"], "cannot read the weights 'none.pth'"),
        (["transform", *SMALL, "--weights", "cli_nets.py"], "cannot read the weights"),
        (["transform", *SMALL, "--calibration", "cli_nets.py"], "cannot read the images 'cli_nets.py'"),
        (["transform", *SMALL[:1], "--input-size", "4x16x16"], "the example inputs"),
        (["transform", *SMALL, "-o", "no/where"], "no' does not exist"),
        (["transform", *SMALL, "-o", "cli_nets.py"], "'cli_nets.py' is a file; give the name of a folder"),
        (["transform", *SMALL, "--calibration", "images.npy", "--round"], "no layer is quantized; give bits="),
        (["summary", "."], "is not a saved network"),
        (["transform", "."], "is a saved network, which is factorized already"),
        (["export", *SMALL, "no/where.onnx"], "the folder 'no' does not exist"),
    ],
)
def test_one_clear_message_and_exit_code_1(
    arguments: list[str], message: str, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    np.save(folder / "images.npy", np.random.default_rng(0).normal(size=(4, 3, 16, 16)))
    before = sorted(folder.glob("[!_]*"))
    assert message in error_of(capsys, *arguments)
    assert sorted(folder.glob("[!_]*")) == before


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["transform", *SMALL, "--bits", "9"], "--bits"),
        (["transform", *SMALL, "--level", "-1"], "depthwise"),
        (["transform", *SMALL, "--level", "deep"], "depthwise"),
        (["transform", *SMALL[:1], "--input-size", "32"], "3x32x32"),
        (["transform", *SMALL, "--plan", "plan.json", "--level", "1"], "not both"),
        (["transform", *SMALL, "--plan", "plan.json", "--width", "2"], "not both"),
        (["export", "net", "net.onnx", "--target", "vivado"], "finn"),
        (["transform", *SMALL, "-b", "4", "--round"], "give --calibration"),
        (["transform", *SMALL, "--reconstruct", "10"], "give --calibration"),
        (["transform", *SMALL, "--calibration", "x.npy", "--reconstruct", "10", "--no-round"], "leave out --no-round"),
        (["transfrom"], "transfrom"),
    ],
)
def test_wrong_usage_is_exit_code_2(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    (Path.cwd() / "plan.json").write_text('{"schema_version": 1, "layers": {}}')
    assert message in error_of(capsys, *arguments, code=2)


@pytest.mark.parametrize("command", [[], ["transform"], ["plan"], ["summary"], ["export"]])
def test_help_teaches_with_an_example(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "--help") == 0
    assert "fxfactor transform torchvision:resnet18" in capsys.readouterr().out or command not in ([], ["plan"])


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--version") == 0
    assert capsys.readouterr().out[0].isdigit()
