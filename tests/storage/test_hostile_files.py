"""Damaged and hostile folders and files are explained, and nothing in them is executed."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError
from fxfactor.arrays import read_arrays, require_images
from fxfactor.graph.compare import random_inputs
from fxfactor.storage.checkpoint import read_about


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)).eval()


@pytest.fixture(scope="module")
def qmodel() -> GraphModule:
    return fxfactor.transform(small(), level=1, bits=4, example_inputs=torch.zeros(1, 3, 8, 8))


@pytest.fixture
def saved(tmp_path: Path, qmodel: GraphModule) -> Path:
    return fxfactor.save(qmodel, tmp_path / "net", source="os:getcwd")


def _about(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        about, tensors = read_about(folder), load_file(path)
        changed = change(about)
        text = changed if isinstance(changed, str) else json.dumps(about)
        save_file(tensors, path, {"fxfactor": text})

    return edit


def _weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = folder / "model.safetensors"
        about, tensors = read_about(folder), load_file(path)
        change(tensors)
        save_file(tensors, path, {"fxfactor": json.dumps(about)})

    return edit


def _plan(change: Callable[[dict[str, Any]], object]) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        plan = json.loads((folder / "plan.json").read_text())
        changed = change(plan)
        (folder / "plan.json").write_text(changed if isinstance(changed, str) else json.dumps(plan))

    return edit


def _set(name: str, value: object) -> Callable[[dict[str, Any]], None]:
    return lambda entries: entries.update({name: value})


def _layer(**fields: object) -> Callable[[Path], None]:
    return _plan(lambda plan: plan["layers"]["2"].update(fields))


def _first(tensors: dict[str, torch.Tensor]) -> str:
    return next(name for name in tensors if name.endswith("weight"))


def _fill(value: float) -> Callable[[Path], None]:
    return _weights(lambda tensors: tensors[_first(tensors)].flatten().__setitem__(0, value))


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "notes are no JSON": (_about(lambda about: "{"), "the notes in .* are damaged"),
    "notes are a list": (_about(lambda about: "[]"), "the notes in .* are damaged"),
    "notes are null": (_about(lambda about: "null"), "the notes in .* are damaged"),
    "notes in a thousand brackets": (_about(lambda about: "[" * 100_000), "the notes in .* are damaged"),
    "no source": (_about(lambda about: about.pop("source") and None), "KeyError: 'source'"),
    "a source that is a number": (_about(_set("source", 3)), "source must be a name or null, found 3"),
    "a source with terminal codes": (_about(_set("source", "a\x1b[2J:b")), "source must be a name or null"),
    "no input shapes": (_about(_set("input_shapes", [])), "input_shapes a list"),
    "input shapes of text": (_about(_set("input_shapes", [["a"]])), "a list of positive ints"),
    "an input of no pixels": (_about(_set("input_shapes", [[1, 3, 0, 8]])), "a list of positive ints"),
    "an input of a negative size": (_about(_set("input_shapes", [[1, -3, 8, 8]])), "a list of positive ints"),
    "an input of 40 GB": (_about(_set("input_shapes", [[1, 3, 60000, 60000]])), "has more than 134,217,728 numbers"),
    "an input for another network": (_about(_set("input_shapes", [[1, 5, 8, 8]])), "example inputs"),
    "a flag that is text": (_about(_set("input_assumed", "yes")), "input_assumed must be true or false"),
    "a history without kinds": (_about(_set("history", [{"site": "2"}])), "KeyError: 'kind'"),
    "a history of another kind": (_about(_set("history", [{"kind": "Path"}])), "must be a Change, a Skip or a Judged"),
    "a history with more fields": (
        _about(_set("history", [{"kind": "Skip", "site": "2", "reason": "", "more": 1}])),
        "TypeError",
    ),
    "a history with terminal codes": (
        _about(_set("history", [{"kind": "Skip", "site": "2", "reason": "\x1b]0;x\x07"}])),
        "printable text",
    ),
    "a history with an error of text": (
        _about(_set("history", [{"kind": "Change", "site": "2", "into": [], "relative_error": "a"}])),
        "must be numbers",
    ),
    "a judgement without its error": (
        _about(
            _set("history", [{"kind": "Judged", "step": "rounded", "output_error": None, "agreement": 1, "images": 1}])
        ),
        "must be numbers",
    ),
    "a judgement with terminal codes": (
        _about(
            _set("history", [{"kind": "Judged", "step": "\x1b[2J", "output_error": 1, "agreement": 1, "images": 1}])
        ),
        "printable text",
    ),
    "curves of a million pieces": (_about(_set("learned_thresholds", [[1_000_000, 4]])), "must be an int from 2 to 32"),
    "curves of text": (_about(_set("learned_thresholds", ["ab"])), "must be an int from 2 to 32"),
    "curves a thousand times": (_about(_set("learned_thresholds", [[4, 4]] * 1000)), "at most 8 pairs"),
    "curves that the weights do not have": (_about(_set("learned_thresholds", [[4, 4]])), "do not fit"),
    "a weight of NaN": (_fill(float("nan")), "has values that are not finite"),
    "a weight of infinity": (_fill(float("inf")), "has values that are not finite"),
    "weights of int8": (
        _weights(lambda tensors: tensors.update({_first(tensors): tensors[_first(tensors)].to(torch.int8)})),
        "must be float32, found int8",
    ),
    "weights of another shape": (
        _weights(lambda tensors: tensors.update({_first(tensors): torch.zeros(2, 2)})),
        "do not fit",
    ),
    "a weight is missing": (_weights(lambda tensors: tensors.pop(_first(tensors))), "do not fit"),
    "the weights are a folder": (
        lambda folder: [(folder / "model.safetensors").unlink(), (folder / "model.safetensors").mkdir()],
        "is not a saved network",
    ),
    "the weights are a pickle": (
        lambda folder: (folder / "model.safetensors").write_bytes(pickle.dumps({"a": 1})),
        "the file is damaged",
    ),
    "the plan is a list": (_plan(lambda plan: "[]"), "a plan must be a JSON object"),
    "the plan is a number of 10,000 digits": (_plan(lambda plan: "1" * 10_000), "a plan must be JSON"),
    "the plan is in a thousand brackets": (_plan(lambda plan: "[" * 100_000), "a plan must be JSON"),
    "the plan is no text": (lambda folder: (folder / "plan.json").write_bytes(b"\xff\xfe"), "a plan must be JSON"),
    "the plan of a later version": (_plan(_set("schema_version", 99)), "schema_version 1, found 99"),
    "a plan for a layer that is not there": (
        _plan(lambda plan: plan["layers"].update({"9": plan["layers"]["2"]})),
        "no convolution or linear layer '9'",
    ),
    "a middle of 10**12 channels": (_layer(mid=10**12), "a mid of at most 72"),
    "a middle of infinity": (_layer(mid=1e400), "mid must be a positive int"),
    "a billion groups": (_layer(groups=10**9), "groups that divide the 8 input channels"),
    "bits of text": (_layer(weight_bits="4"), "weight_bits must be an int"),
    "an unknown field": (_layer(code="import os"), "unknown field 'code'"),
    "joins of 99 bits": (_plan(_set("join_bits", 99)), "join_bits must be an int"),
    "a damaged explanation": (_plan(_set("explanation", {"layers": 3})), "the plan's explanation is damaged"),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damaged_folder_is_explained(saved: Path, name: str) -> None:
    damage, message = DAMAGES[name]
    damage(saved)
    with pytest.raises(fxfactor.FxfactorError, match=message):
        fxfactor.load(saved, small())


def test_a_sound_folder_loads(saved: Path, qmodel: GraphModule) -> None:
    (images,) = random_inputs(qmodel)
    assert torch.equal(fxfactor.load(saved, small())(images), qmodel.eval()(images))
    assert read_about(saved)["source"] == "os:getcwd"  # read, and not called


class Executed:
    """What pickle would call."""

    def __reduce__(self) -> Any:
        return open, ("executed", "w")


def npz(path: Path, **entries: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in entries.items():
            archive.writestr(f"{name}.npy", data)
    return path


def npy(array: Any) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def _header(shape: str) -> bytes:
    text = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}".encode().ljust(118)
    return b"\x93NUMPY\x01\x00" + len(text).to_bytes(2, "little") + text + b"\0" * 64


ARRAYS: dict[str, tuple[Callable[[Path], object], str]] = {
    "nothing": (lambda path: None, "No such file"),
    "a folder": (lambda path: path.mkdir(), "Is a directory"),
    "empty": (lambda path: path.write_bytes(b""), "cannot read the images"),
    "junk": (lambda path: path.write_bytes(b"junk" * 100), "cannot read the images"),
    "a pickle": (lambda path: path.write_bytes(pickle.dumps(Executed())), "cannot read the images"),
    "an array of objects": (lambda path: path.write_bytes(npy(np.array([Executed()]))), "Python objects"),
    "an archive of objects": (lambda path: npz(path, x=npy(np.array([Executed()]))), "allow_pickle=False"),
    "a size that is not there": (lambda path: path.write_bytes(_header("(1000000000000,)")), "cannot read the images"),
    "a size that is code": (
        lambda path: path.write_bytes(_header("(open('executed','w'),)")),
        "cannot read the images",
    ),
    "half an archive": (
        lambda path: path.write_bytes(npz(path, x=npy(np.zeros((9, 9)))).read_bytes()[:100]),
        "cannot read the images",
    ),
    "an archive without the name": (lambda path: npz(path, images=npy(np.zeros(3))), "x is not a file in the archive"),
    "an archive of text": (lambda path: path.write_bytes(npy(np.array(["a", "b"]))), "must hold numbers, found <U1"),
    "an archive in which x is no array": (
        lambda path: npz(path, x=b"junk"),
        "must hold numbers|cannot read the images",
    ),
}


@pytest.mark.parametrize("name", ARRAYS)
def test_a_damaged_array_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    make, message = ARRAYS[name]
    make(tmp_path / "images")
    with pytest.raises(PreconditionError, match=message):
        read_arrays("images", ("x",), "images")
    assert not (tmp_path / "executed").exists()


def test_a_small_archive_that_unpacks_to_gigabytes_is_refused_before_it_is_unpacked(tmp_path: Path) -> None:
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive, archive.open("x.npy", "w", force_zip64=True) as x:
        for _ in range(300):
            x.write(b"\0" * 2**20)
    assert path.stat().st_size < 2**20
    with pytest.raises(PreconditionError, match=r"would unpack to 314,572,800"):
        read_arrays(path, ("x",), "images")


def test_sound_arrays_are_read(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.ones((2, 3)))
    np.savez(tmp_path / "xy.npz", x=np.ones((2, 3)), y=np.arange(2))
    assert read_arrays(tmp_path / "x.npy", ("x",), "images")[0].shape == (2, 3)
    assert [array.shape for array in read_arrays(tmp_path / "xy.npz", ("x", "y"), "images")] == [(2, 3), (2,)]


def test_images_that_are_no_numbers_are_named() -> None:
    images = np.zeros((300, 3, 4, 4), np.float32)
    images[271, 1, 2, 3] = np.nan
    with pytest.raises(PreconditionError, match=r"image 271 of the images 'a\.npy' has values that are NaN"):
        require_images(images, "a.npy", "images")


@pytest.mark.parametrize("shape", [(0, 3, 4, 4), (4,), (2, 3, 0, 4)])
def test_arrays_that_are_no_images_are_explained(shape: tuple[int, ...]) -> None:
    with pytest.raises(PreconditionError, match="at least one, found shape"):
        require_images(np.zeros(shape), "a.npy", "images")
