"""What is given to a public function by mistake: refused by the argument's name, and the model stays as it was."""

from __future__ import annotations

import copy
import inspect
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.arguments import checked, described, fits
from fxfactor.errors import FinnError, FxfactorError, PreconditionError
from fxfactor.finn.process import start

WRONG: tuple[Any, ...] = (
    *(None, 5, -1, 0, 3.7, float("nan"), float("inf"), 10**12, True),
    *("x", "", b"x", [], [1], [None], {}, {"a": 1}, (1, 2), range(3)),
    *(object(), nn.ReLU(), torch.zeros(0), torch.zeros(2, 3), np.zeros(3), lambda x: x, int),
)
FUNCTIONS = (
    *(
        "calibrate",
        "capture",
        "continue_from",
        "cost",
        "distributions",
        "explore",
        "export",
        "finetune",
        "flip_and_shift",
    ),
    *("flip_shift_and_cut", "fused_quantizers", "groups_at", "load", "reconstruct", "round_weights", "save", "search"),
    *("summary", "transform", "Plan.from_json", "Plan.load", "Plan.of", "Plan.uniform", "compress"),
)
MUCH = ("epochs", "steps")
"""Of these a large number is right, and never done."""
HEAVY = ("compress", "explore", "search")
"""Work of minutes where an argument is right after all: only those of another kind are tried."""


@pytest.fixture(scope="module")
def given(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What each argument should be."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()
    images = torch.randn(2, 3, 8, 8)
    network = fxfactor.transform(model, level=1, bits=4, calibration=[images])
    folder = tmp_path_factory.mktemp("fuzz")
    fxfactor.save(network, folder / "saved")
    fxfactor.Plan.of(network).save(folder / "plan.json")
    labelled = [(images, model(images).argmax(1))]
    networks = dict.fromkeys(("qmodel", "graph", "trained"), network)
    places = {"path": folder / "file.onnx", "folder": folder / "saved"}
    values = {
        "level": 1,
        "bits": 4,
        "channels": 8,
        "budget": fxfactor.Budget(bops=0.05),
        "text": "{}",
        "epochs": 1,
        "steps": 1,
    }
    loaders = {
        "loader": labelled,
        "batches": [images],
        "calibration": [images],
        "train": labelled,
        "validation": labelled,
    }
    others = {"generator": torch.Generator(), "images": images, "original": model}
    return {"model": model, **networks, **places, **values, **loaders, **others}


def _function(name: str) -> Callable[..., Any]:
    found: Any = fxfactor
    for part in name.split("."):
        found = getattr(found, part)
    return found


def _call(name: str, wrong: str, value: Any, given: Mapping[str, Any]) -> None:
    function = _function(name)
    arguments = {}
    for parameter in inspect.signature(function).parameters.values():
        if parameter.default is inspect.Parameter.empty or parameter.name in ("level", "bits", "epochs", "steps"):
            arguments[parameter.name] = given[parameter.name]
    if name in ("finetune", "continue_from", "reconstruct", "round_weights", "calibrate", "fused_quantizers"):
        arguments |= {key: copy.deepcopy(each) for key, each in arguments.items() if isinstance(each, GraphModule)}
    if name in ("finetune", "continue_from"):
        arguments["model"] = copy.deepcopy(given["qmodel"])
    arguments[wrong] = value
    function(**arguments)


@pytest.mark.parametrize("name", FUNCTIONS)
def test_a_wrong_argument_is_named(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every argument of every function gets every wrong value: an error of ours, or one of Python's that names it."""
    monkeypatch.chdir(tmp_path)  # where "x" would be written
    before = {key: value.clone() for key, value in given["model"].state_dict().items()}
    function = _function(name)
    for parameter in inspect.signature(function).parameters.values():
        for value in WRONG:
            if parameter.name == "augment" and callable(value):
                continue  # what a function of the user's own raises is said as it is
            endless = parameter.name in MUCH and type(value) is int and value > 5
            if endless or (name in HEAVY and _is_right(function, parameter, value)):
                continue
            said = _said(name, parameter.name, value, given)
            assert said is None or parameter.name in said, f"{name}({parameter.name}={value!r}): {said}"
    assert all(torch.equal(value, before[key]) for key, value in given["model"].state_dict().items())
    assert not given["model"].training


@pytest.mark.parametrize(
    "name", ["check", "compare", "estimate", "legalize", "prepare", "reference", "simulate", "synthesize"]
)
def test_a_wrong_argument_of_the_hand_over_is_named(
    name: str, given: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As above; where all is right FINN would be started, and an error of ours stands for it."""
    monkeypatch.chdir(tmp_path)

    def started(*args: Any, **options: Any) -> None:
        raise FinnError("started")

    monkeypatch.setattr(start, "subprocess", SimpleNamespace(**{**vars(subprocess), "Popen": started}))
    file = tmp_path / "model.onnx"
    fxfactor.export(given["qmodel"], file, target="finn")
    right = {**given, "model": file, "file": file, "folder": tmp_path / "build", "example_inputs": given["images"][:1]}
    if name == "compare":
        right["model"] = given["qmodel"]
    wrong = [*WRONG, ([1], [2]), (torch.zeros(1, 3, 8, 8), torch.zeros(1, 2)), {"lut": 1}, {"lut": -1}, {"luts": 3}]
    for parameter in inspect.signature(getattr(fxfactor.finn, name)).parameters.values():
        for value in wrong:
            said = _said(f"finn.{name}", parameter.name, value, right)
            assert said is None or parameter.name in said, f"{name}({parameter.name}={value!r}): {said}"
    assert {each.name for each in tmp_path.iterdir()} <= {"model.onnx", "x"}  # cache="x" is a folder to keep


def _said(name: str, wrong: str, value: Any, given: Mapping[str, Any]) -> str | None:
    """What a TypeError or ValueError says; None where the call is right, or the error is one of ours."""
    try:
        _call(name, wrong, value, given)
    except FxfactorError:
        return None
    except (TypeError, ValueError) as error:
        return str(error)
    return None


def _is_right(function: Callable[..., Any], parameter: inspect.Parameter, value: Any) -> bool:
    names = vars(inspect.getmodule(inspect.unwrap(function)))
    return fits(value, eval(parameter.annotation, {"Iterable": Iterable, **names}))


@pytest.mark.parametrize("name", ["check", "estimate", "prepare", "simulate", "synthesize"])
def test_the_hand_over_to_finn_names_what_is_wrong(name: str) -> None:
    with pytest.raises(FinnError, match=rf"required: {name}\(\w+=…\), text or a Path.*; found: 5 \(int\)"):
        getattr(fxfactor.finn, name)(*[5] * (2 if name in ("prepare", "simulate") else 1))


@pytest.mark.parametrize(
    ("hint", "right", "wrong"),
    [
        (int, (1, np.int64(2)), (True, 1.5, "1", None)),
        (float, (1, 1.5, np.float32(2)), (False, "1", None)),
        (bool, (True,), (1, None)),
        (str | Path, ("a", Path("a")), (b"a", 1)),
        (int | None, (None, 3), ("3",)),
        (Iterable[Any], ([1], iter([1]), {}, range(2)), ("ab", b"ab", torch.zeros(2), nn.Sequential(), 5)),
        (Sequence[int], ([1], (2, 3), []), (["a"], {1}, "1")),
        (Mapping[str, int], ({"a": 1}, {}), ({"a": "b"}, {1: 1}, [("a", 1)])),
        (tuple[int, int | None], ((1, None), (1, 2)), ((1,), [1, 2], (None, 1))),
        (tuple[int, ...], ((), (1, 2)), ((1, "a"),)),
        (Callable[[int], int], (len, lambda x: x), (5, "len")),
        (Literal["a", "b"], ("a", "c"), (5, None)),  # which words there are says the function
        (nn.Module, (nn.ReLU(),), (nn.ReLU, None)),
        (Any, (1, None, "x"), ()),
    ],
)
def test_kinds(hint: Any, right: tuple[Any, ...], wrong: tuple[Any, ...]) -> None:
    assert all(fits(value, hint) for value in right)
    assert not any(fits(value, hint) for value in wrong)
    assert described(hint)


def test_the_message_has_all_of_it() -> None:
    with pytest.raises(PreconditionError) as refused:
        fxfactor.calibrate("x" * 100, [])  # type: ignore[arg-type]
    assert str(refused.value) == (
        "required: calibrate(qmodel=…), a network that fxfactor.capture or fxfactor.transform gave; found: "
        f"'{'x' * 56}... (str); see its help()"
    )


def test_what_a_function_says_itself_is_left_to_it() -> None:
    def halve(number: float, text: str) -> float:
        return number / 2

    assert checked(halve, but=("text",))(3, 5) == 1.5  # type: ignore[arg-type]
    with pytest.raises(FinnError, match=r"halve\(number=…\), a number; found: 'a'"):
        checked(halve, FinnError)("a", "")  # type: ignore[arg-type]


def test_a_data_set_is_a_loader() -> None:
    """torch's data sets have __getitem__ and no __iter__."""
    assert fits(torch.utils.data.TensorDataset(torch.zeros(2, 3)), Iterable[Any])
