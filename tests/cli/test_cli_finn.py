"""`fxfactor finn compare`."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import SMALL, error_of, run


def test_where_accuracy_is_lost(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, file, images = (str(tmp_path / name) for name in ("small", "small.onnx", "images.npy"))
    np.save(images, np.random.default_rng(0).normal(size=(9, 3, 16, 16)).astype(np.float32))
    assert run("transform", *SMALL, "--level", "1", "--bits", "4", "-o", folder) == 0
    assert run("export", folder, file, "--model", "cli_nets:small", "--target", "finn") == 0
    capsys.readouterr()
    assert run("finn", "compare", folder, file, images, "--model", "cli_nets:small", "--json") == 0
    found = json.loads(capsys.readouterr().out)
    assert found["images"] == 8
    assert "PyTorch and the file give the same at all" in found["findings"][0]
    assert run("finn", "compare", "cli_nets:small", file, images, "--max-images", "1") == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "small.onnx, 1 image " in out
    assert "grows most at" in out
    said = error_of(capsys, "finn", "compare", folder, file, folder, "--model", "cli_nets:small")
    assert "cannot read the images" in " ".join(said.split())
    np.savez("images.npz", x=np.load(images))
    assert run("finn", "compare", "cli_nets:small", file, "images.npz", "--max-images", "1") == 0
    assert " ".join(capsys.readouterr().out.split()) == out
    said = error_of(capsys, "finn", "compare", "cli_nets:small", file, images, "--model", "cli_nets:small")
    assert "there is no folder 'cli_nets:small'" in " ".join(said.split())


@pytest.mark.parametrize(
    "words",
    [
        ["estimate", "no.onnx"],
        ["synthesize", "no.onnx"],
        ["simulate", "no.onnx", "--images", "no.npy"],
        ["compare", "cli_nets:small", "no.onnx", "no.npy"],
    ],
    ids=lambda words: words[0],
)
def test_where_the_result_goes_is_asked_before_the_work(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    said = " ".join(error_of(capsys, "finn", *words, "-o", "result.txt").split())
    assert "the name of the file must end in .json, found 'result.txt'" in said
    said = " ".join(error_of(capsys, "finn", *words, "-o", "nowhere/result.json").split())
    assert "the folder 'nowhere' does not exist" in said


def test_a_result_is_kept_in_a_file(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, images, kept = (str(tmp_path / name) for name in ("small.onnx", "images.npy", "kept.json"))
    np.save(images, np.random.default_rng(0).normal(size=(2, 3, 16, 16)).astype(np.float32))
    assert run("transform", *SMALL, "--level", "1", "--bits", "4", "-o", str(tmp_path / "small")) == 0
    assert run("export", str(tmp_path / "small"), file, "--model", "cli_nets:small", "--target", "finn") == 0
    capsys.readouterr()
    assert run("finn", "compare", "cli_nets:small", file, images, "-o", kept) == 0
    assert "small.onnx, 2 images " in " ".join(capsys.readouterr().out.split())
    assert run("finn", "compare", "cli_nets:small", file, images, "--json") == 0
    assert json.loads(capsys.readouterr().out) == json.loads(Path(kept).read_text())
