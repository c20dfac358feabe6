"""How commands end: bad command lines are answered in one message with what to do, never with a traceback."""

from __future__ import annotations

import errno
import sqlite3
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from cli_helpers import SMALL, error_of, run

import fxfactor

NET = SMALL[0]


@pytest.fixture
def files(folder: Path) -> Path:
    """Sound and unsound files for the command lines below."""
    images = np.random.default_rng(0).normal(size=(4, 3, 16, 16)).astype(np.float32)
    np.save("images.npy", images)
    np.save("flat.npy", np.zeros(7))
    np.save("none.npy", images[:0])
    np.save("nan.npy", np.full_like(images, np.nan))
    np.savez("test.npz", x=images, y=np.arange(4))
    np.savez("x.npz", x=images)
    np.savez("classes.npz", x=images, y=np.arange(4) + 100)
    np.savez("grey.npz", x=images[:, :1], y=np.arange(4))
    for name in ("junk", "junk.npy", "junk.npz", "junk.pth", "junk.safetensors", "junk.onnx", "junk.json"):
        Path(name).write_bytes(b"\x00junk\xff")
    Path("list.json").write_text("[1, 2]")
    Path("object.json").write_text('{"streams": []}')
    Path("deep.json").write_text("[" * 100_000)
    Path("empty").mkdir()
    Path("raises.py").write_text("1 / 0\n")
    Path("syntax.py").write_text("def f(:\n")
    Path("leaves.py").write_text("import sys\nsys.exit(3)\n")
    Path("factory.py").write_text("def broken():\n    raise KeyError('depth')\ndef slow(depth):\n    pass\n")
    for name in ("raises", "syntax", "leaves", "factory"):
        sys.modules.pop(name, None)
    sqlite3.connect("songs.sqlite").execute("create table songs (title text)").connection.close()
    return folder


IMAGES = ["--images", "images.npy"]
TEST = ["--validation", "test.npz"]

EXPLAINED = [
    (["transform", "resnet18"], "a network is named"),
    (["transform", ":"], "a network is named"),
    (["transform", "a:"], "a network is named"),
    (["transform", "(a):b"], "a network is named"),
    (["transform", f"{NET}(first=a)"], "must be Python literals"),
    (["transform", f"{NET}(second=3)"], "raised TypeError"),
    (["transform", f"{NET}(first='a')"], "raised TypeError"),
    (["transform", "torchvision:resnt18"], "did you mean 'resnet18'"),
    (["transform", "torchvision:resnet18(depth=3)"], "cannot make 'resnet18' with the arguments"),
    (["transform", "no_such_module:x"], "there is no module 'no_such_module'"),
    (["transform", "raises:x"], "importing 'raises' raised ZeroDivisionError"),
    (["transform", "syntax:x"], "importing 'syntax' raised SyntaxError"),
    (["transform", "leaves:x"], "importing 'leaves' raised SystemExit"),
    (["transform", "factory:broken"], "calling factory:broken raised KeyError: 'depth' at"),
    (["transform", "factory:slow"], "calling factory:slow raised TypeError"),
    (["transform", "factory:missing"], "has no 'missing'"),
    (["transform", "sys:path"], "must be a torch.nn.Module or give one when called, found list"),
    (["transform", "cli_nets:wrong"], "found int"),
    (["transform", NET, "--pretrained"], "is your own: pass --weights FILE"),
    (["transform", "torchvision:resnet18", "--pretrained", "--weights", "junk.pth"], "not both"),
    (["transform", NET, "--device", "toaster"], "give --device cpu"),
    (["transform", NET, "--device", "cuda:77"], "give --device cpu"),
    (["transform", NET, "--device", "meta"], "give --device cpu"),
    (["transform", NET, "--weights", "nowhere.pth"], "cannot read the weights"),
    (["transform", NET, "--weights", "junk.pth"], "cannot read the weights"),
    (["transform", NET, "--weights", "junk.safetensors"], "cannot read the weights"),
    (["transform", NET, "--weights", "empty"], "cannot read the weights"),
    (["transform", NET, "--plan", "nowhere.json"], "cannot read the plan"),
    (["transform", NET, "--plan", "junk.json"], "a plan must be JSON"),
    (["transform", NET, "--plan", "list.json"], "a plan must be a JSON object"),
    (["transform", NET, "--plan", "deep.json"], "a plan must be JSON"),
    (["transform", NET, "--calibration", "nowhere.npy"], "cannot read the images"),
    (["transform", NET, "--calibration", "junk.npy"], "cannot read the images"),
    (["transform", NET, "--calibration", "junk.npz"], "cannot read the images"),
    (["transform", NET, "--calibration", "flat.npy"], "must be images of shape"),
    (["transform", NET, "--calibration", "none.npy"], "at least one, found shape (0, 3, 16, 16)"),
    (["transform", NET, "--calibration", "nan.npy"], "image 0 of the images 'nan.npy' has values that are NaN"),
    (["transform", NET, "--calibration", "empty"], "say their size, with --image-size 224"),
    (["transform", NET, "--calibration", "empty", "--image-size", "16"], "holds no picture"),
    (["transform", NET, *IMAGES, "--image-size", "16", "--mean", "0.5", "--std", "0"], "std above 0"),
    (["transform", NET, "-o", "no/where"], "does not exist; create it first"),
    (["transform", NET, "-o", "junk"], "is a file; give the name of a folder"),
    (["transform", NET, "-o", "."], "holds other files and no plan.json"),
    (["transform", *SMALL, "-l", "1", "--keep", "7"], "no convolution or linear layer '7'"),
    (["plan", NET, "-o", "no/plan.json"], "does not exist; create it first"),
    (["plan", NET, "-o", "empty"], "is a folder; give the name of a file"),
    (["summary", "empty"], "is not a saved network"),
    (["summary", "nowhere"], "a network is named"),
    (["export", NET, "a.txt"], "must end in .onnx"),
    (["export", NET, "no/a.onnx"], "does not exist; create it first"),
    (["evaluate", NET, "--images", "x.npz"], "y is not a file in the archive"),
    (["evaluate", NET, "--images", "images.npy"], "it is no .npz archive"),
    (["evaluate", NET, "--images", "classes.npz"], "a label is 103 and 'cli_nets:small' has 10 classes"),
    (["evaluate", NET, "--images", "grey.npz"], "does not take images of shape (4, 1, 16, 16)"),
    (["evaluate", NET, NET, "--images", "test.npz"], "must have different names"),
    (["evaluate", NET, "--images", "test.npz", "-o", "no/a.json"], "does not exist"),
    (["finetune", NET, "--images", "test.npz", "-o", "tuned"], "is no saved network"),
    (["finetune", "empty", "--images", "test.npz", "-o", "tuned"], "is not a saved network"),
    (["explore", NET, *IMAGES, *TEST, "--picture", "x.txt"], "must end in .png or .svg or .pdf"),
    (["explore", NET, *IMAGES, *TEST, "--picture", "no/x.png"], "does not exist"),
    (["explore", NET, *IMAGES, "--validation", "junk.npz"], "cannot read the validation set"),
    (["explore", NET, *IMAGES, *TEST, "--state", "songs.sqlite"], "is no file that fxfactor.explore has written"),
    (["explore", NET, *IMAGES, *TEST, "--state", "empty"], "is a folder; give the name of a file"),
    (["search", NET, *IMAGES], "a Budget needs at least one of"),
    (["search", NET, *IMAGES, "--bops", "-1"], "must be a number above 0"),
    (["search", NET, *IMAGES, "--bops", "nan"], "must be a number above 0"),
    (["search", NET, *IMAGES, "--bops", "0.1", "-o", "no/plan.json"], "does not exist"),
    (["distributions", "empty", *IMAGES], "is not a saved network"),
    (["distributions", "empty", *IMAGES, "-o", "a.txt"], "must end in .json or .csv"),
    (["report", "empty"], "is not a saved network"),
    (["report", "empty", "--accuracy", "list.json"], "must be a JSON object, found list"),
    (["report", "empty", "--accuracy", "junk.json"], "cannot read the accuracies"),
    (["report", "empty", "--accuracy", "deep.json"], "must be a JSON object"),
    (["report", "empty", "--distributions", "junk.json"], "junk.json"),
    (["report", "empty", "--simulation", "object.json"], "a simulation, as fxfactor finn simulate -o writes it"),
    (["report", "empty", "--compressed", "object.json"], "candidates, as fxfactor compress writes"),
    (["report", "empty", "--synthesis", "object.json"], "counts by Yosys, as fxfactor finn synthesize -o writes"),
    (["report", "empty", "-o", "no/page.html"], "does not exist"),
    (["report", "empty", "empty"], "must have different names"),
]

WRONG_USAGE = [
    (["transfrom"], "transfrom"),
    (["transform"], "source"),
    (["transform", NET, "--bits", "9"], "--bits"),
    (["transform", NET, "--bits", "four"], "--bits"),
    (["transform", NET, "--level", "-1"], "depthwise"),
    (["transform", NET, "--level", "99999999999"], "depthwise"),
    (["transform", NET, "--width", "0"], "a number above 0"),
    (["transform", NET, "--width", "nan"], "a number above 0"),
    (["transform", NET, "--input-size", "3x0x8"], "3x32x32"),
    (["transform", NET, "--input-size", "3x99999999x8"], "3x32x32"),
    (["transform", NET, "--image-size", "0"], "224x320"),
    (["transform", NET, "--mean", "a"], "0.485"),
    (["transform", NET, "--mean", "0.5", "--image-size", "8"], "--mean and --std"),
    (["transform", NET, "--round"], "--calibration"),
    (["transform", NET, "--reconstruct", "0"], "--reconstruct"),
    (["transform", NET, "--max-images", "0"], "--max-images"),
    (["export", NET], "path"),
    (["export", NET, "a.onnx", "--target", "vivado"], "finn"),
    (["export", "empty", "a.onnx", "--pretrained"], "own weights"),
    (["evaluate", "empty", "--images", "test.npz", "--pretrained"], "own weights"),
    (["evaluate", NET], "--images"),
    (["finetune", "empty", "--images", "test.npz"], "--output"),
    (["finetune", "empty", "--images", "test.npz", "-o", "t", "--epochs", "0"], "--epochs"),
    (["explore", NET, *IMAGES, *TEST, "--bits", "99"], "bits from 2 to 8"),
    (["explore", NET, *IMAGES, *TEST, "--levels", "a-b"], "levels like 0-6"),
    (["explore", NET, *IMAGES, *TEST, "--levels", "0-99999999999"], "levels like 0-6"),
    (["explore", NET, *IMAGES, *TEST, "--widths", "-1"], "widths above 0"),
    (["explore", NET, *IMAGES, *TEST, "--workers", "0"], "--workers"),
    (["search", NET, *IMAGES, "--bops", "0.1", "--bits", "8/4"], "one by one"),
    (["search", NET, "--bops", "0.1"], "--images"),
    (["finn"], "Usage"),
    (["finn", "chek", "a.onnx"], "chek"),
    (["finn", "estimate", "a.onnx", "--target-fps", "0"], "--target-fps"),
    (["finn", "estimate", "a.onnx", "--limit", "lut"], "lut=65000"),
]


@pytest.mark.parametrize(("arguments", "message"), EXPLAINED, ids=lambda each: " ".join(each)[:70])
def test_an_error_is_explained_in_one_message(
    arguments: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(path.name for path in files.iterdir() if path.name != "__pycache__")
    told = error_of(capsys, *arguments)
    assert message in " ".join(told.split())
    assert told.count("error:") == 1
    assert "a defect, of fxfactor" not in told
    assert sorted(path.name for path in files.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(("arguments", "message"), WRONG_USAGE, ids=lambda each: " ".join(each)[:70])
def test_wrong_usage_says_what_is_right(
    arguments: list[str], message: str, files: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    assert message in captured.err + captured.out


def raising(error: BaseException, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> None:
        raise error

    assert callable(fxfactor.summary)  # looked up before it is replaced
    monkeypatch.setattr("fxfactor.summary", fail)


@pytest.mark.parametrize(
    ("error", "code", "message"),
    [
        (KeyboardInterrupt(), 130, "stopped. Nothing half-written is left; the same command starts anew."),
        (MemoryError(), 1, "out of memory; take smaller or fewer images"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried"), 1, "out of memory; take smaller or fewer images"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "no space left on the disk"),
        (PermissionError(errno.EACCES, "Permission denied", "x"), 1, "Permission denied: 'x'; check the path"),
        (RuntimeError("odd"), 1, "unexpected RuntimeError: odd\nThis is a defect"),
    ],
)
def test_what_nobody_foresaw_is_said_without_a_traceback(
    error: BaseException, code: int, message: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    raising(error, monkeypatch)
    assert run("summary", *SMALL) == code
    told = capsys.readouterr().err
    assert message in told
    assert "Traceback" not in told


def test_verbose_shows_where(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    raising(RuntimeError("odd"), monkeypatch)
    assert run("summary", *SMALL, "-v") == 1
    assert "Traceback" in capsys.readouterr().err


def test_an_exploration_that_is_stopped_says_how_to_go_on(
    files: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fxfactor.exploration.explore.explore", stop)
    assert run("explore", NET, *IMAGES, *TEST, "--state", "s.sqlite") == 130
    assert "Every candidate so far is kept: the same command goes on from s.sqlite." in capsys.readouterr().err


def test_junk_to_verify_with_is_explained(files: Path) -> None:
    from fxfactor import FxfactorError
    from fxfactor.finn.process.load import load_images

    for name in ("junk", "junk.npz", "images.npy", "x.npz", "nowhere"):
        with pytest.raises(FxfactorError, match=name):
            load_images(name)


def test_there_are_enough_command_lines() -> None:
    assert len(EXPLAINED) + len(WRONG_USAGE) >= 100
