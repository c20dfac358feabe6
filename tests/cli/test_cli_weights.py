"""State dicts in the forms that people save them."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from fxfactor import PreconditionError
from fxfactor.cli.weights import load_weights

State = dict[str, Tensor]


def net(classes: int = 4) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, classes))


def prefixed(state: State, prefix: str) -> State:
    return {prefix + name: value for name, value in state.items()}


def halved(state: State) -> State:
    return {name: value / 2 if value.is_floating_point() else value for name, value in state.items()}


FORMS: dict[str, Callable[[State], Any]] = {
    "plain": lambda state: state,
    "state_dict": lambda state: {"state_dict": state, "epoch": 3},
    "model_state_dict": lambda state: {
        "model_state_dict": state,
        "optimizer_state_dict": {"state": {0: torch.ones(3)}},
    },
    "model": lambda state: {"model": state, "args": argparse.Namespace(lr=0.1)},
    "net within a state": lambda state: {"state": {"net": state}},
    "DataParallel": lambda state: prefixed(state, "module."),
    "Lightning": lambda state: {"state_dict": prefixed(state, "model.") | {"loss.weight": torch.ones(3)}},
    "compiled and parallel": lambda state: {"model": prefixed(state, "_orig_mod.module.")},
    "AveragedModel": lambda state: {**prefixed(state, "module."), "n_averaged": torch.tensor(7)},
    "timm's moving average": lambda state: {"state_dict": halved(state), "state_dict_ema": state},
    "a moving average beside a model": lambda state: {"model_ema": prefixed(state, "module."), "model": halved(state)},
    "without counters": lambda state: {k: v for k, v in state.items() if not k.endswith("num_batches_tracked")},
}


@pytest.mark.parametrize("form", FORMS)
def test_a_state_dict_is_found(tmp_path: Path, form: str, capsys: pytest.CaptureFixture[str]) -> None:
    trained = net()
    with torch.no_grad():
        for parameter in trained.parameters():
            parameter.normal_()
    torch.save(FORMS[form](trained.state_dict()), tmp_path / "w.pth")
    model = net()
    load_weights(model, tmp_path / "w.pth")
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), trained.parameters(), strict=True))
    told = capsys.readouterr().err
    assert ("weights:" in told) == (form not in ("plain", "without counters"))
    assert ("left aside" in told) == (form in ("timm's moving average", "a moving average beside a model"))


def test_what_does_not_match_is_listed(tmp_path: Path) -> None:
    state = net(classes=7).state_dict()
    state["extra.weight"] = torch.ones(1)
    del state["0.bias"]
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(PreconditionError) as raised:
        load_weights(net(), tmp_path / "w.safetensors")
    told = str(raised.value)
    assert "do not fit Sequential, 6 of 9 tensors match:" in told
    assert "  2 of another shape: 3.bias (7,) instead of (4,), 3.weight (7, 8) instead of (4, 8)\n" in told
    assert "  1 missing in the file: 0.bias\n" in told
    assert "  1 unknown to the network: extra.weight\n" in told


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state["0.weight"].fill_(torch.nan), "1 not finite: 0.weight"),
        (
            lambda state: state.update({"0.weight": state["0.weight"].to(torch.int8)}),
            r"another kind of number .*: 0.weight",
        ),
    ],
)
def test_weights_that_are_no_trained_ones(tmp_path: Path, change: Callable[[State], Any], message: str) -> None:
    state = net().state_dict()
    change(state)
    torch.save(state, tmp_path / "w.pth")
    with pytest.raises(PreconditionError, match=message):
        load_weights(net(), tmp_path / "w.pth")


class Executed:
    def __reduce__(self) -> Any:
        return open, ("executed", "w")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (net(), "without running code from it"),
        ({"model": Executed()}, "without running code from it"),
        ([1, 2], "hold no state dict, found list"),
        ({"epoch": 3}, "hold no state dict, found a dictionary with 'epoch'"),
        ({}, "hold no state dict, found an empty one"),
    ],
)
def test_a_file_that_is_no_state_dict(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: object, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(content, "w.pth")
    with pytest.raises(PreconditionError, match=message):
        load_weights(net(), Path("w.pth"))
    assert not Path("executed").exists()


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors"])
@pytest.mark.parametrize("data", [b"", b"junk", b"PK\x03\x04junk", b"\x80\x02junk", b"\xff" * 100, None])
def test_a_damaged_file_is_explained(tmp_path: Path, name: str, data: bytes | None) -> None:
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(PreconditionError, match="cannot read the weights"):
        load_weights(net(), tmp_path / name)
