"""fxfactor explore and fxfactor search on the command line."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from small_exploration import TRAIN, VALIDATION

import fxfactor


def test_explore_and_search_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import numpy as np

    from fxfactor.cli.app import main

    (tmp_path / "small_net.py").write_text(
        "from networks import ResidualNet, randomized\nnet = lambda: randomized(ResidualNet(16))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", torch.cat(TRAIN).numpy())
    np.savez("test.npz", x=VALIDATION[0][0].numpy(), y=VALIDATION[0][1].numpy())

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code in (0, None)
        return str(capsys.readouterr().out)

    explored = run("explore", "small_net:net", "--images", "train.npy", "--validation", "test.npz", "--levels", "0,2-3",
                   "--bits", "8/4,4")  # fmt: skip
    assert "6 of 6 evaluated" in explored
    searched = run("search", "small_net:net", "--images", "train.npy", "--bops", "0.01", "--widths", "1,2", "-o",
                   "found.json")  # fmt: skip
    assert "block.conv1" in searched
    assert fxfactor.Plan.load("found.json").explain().budget.keys() == {"bops"}
    with pytest.raises(SystemExit) as ended:
        main(["explore", "small_net:net", "--images", "train.npy", "--validation", "train.npy"])
    assert ended.value.code == 1
    assert "cannot read the validation set" in capsys.readouterr().err
