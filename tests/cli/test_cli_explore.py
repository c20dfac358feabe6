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

    grid = ("explore", "small_net:net", "--images", "train.npy", "--validation", "test.npz", "--levels", "0,2-3",
            "--bits", "8/4,4")  # fmt: skip
    explored = run(*grid)
    assert "6 of 6 evaluated" in explored
    run(*grid, "-o", "most.json")
    found = fxfactor.Exploration.read("explore.sqlite")
    assert fxfactor.Plan.load("most.json") == fxfactor.Plan.from_json(found.best().plan or "")
    asked: dict[str, float] = {}
    real = fxfactor.Exploration.best

    def best(exploration: fxfactor.Exploration, **limits: float) -> Any:
        asked.update(limits)
        return real(exploration, **limits)

    monkeypatch.setattr(fxfactor.Exploration, "best", best)
    run(*grid, "--best", "macs=400000", "--best", "accuracy=0.1", "--best", "weight_bits=1e6", "-o", "least.json")
    assert asked == {"max_macs": 400000.0, "min_accuracy": 0.1, "max_weight_bits": 1e6}
    assert fxfactor.Plan.load("least.json").layers
    for wrong, code, message in (
        (("--best", "accuracy=0.9"), 2, "give --output"),
        (("--best", "speed=3", "-o", "plan.json"), 2, "--best: NAME=N is required"),
        (("--best", "lut=few", "-o", "plan.json"), 2, "--best: NAME=N is required"),
        (("-o", "plan.txt"), 1, "must end in .json"),
        (("-o", "nowhere/plan.json"), 1, "nowhere"),
        (("--best", "accuracy=2", "-o", "plan.json"), 1, "no candidate with a metric of at least 2"),
    ):
        with pytest.raises(SystemExit) as ended:
            main([*grid, *wrong])
        said = capsys.readouterr()
        assert ended.value.code == code
        assert message in " ".join(said.err.split())
        assert ("evaluated" in said.out) == ("accuracy=2" in wrong)  # else known before the work
    assert not list(Path().glob("plan.*"))
    searched = run("search", "small_net:net", "--images", "train.npy", "--bops", "0.01", "--widths", "1,2", "-o",
                   "found.json")  # fmt: skip
    assert "block.conv1" in searched
    assert fxfactor.Plan.load("found.json").explain().budget.keys() == {"bops"}
    with pytest.raises(SystemExit) as ended:
        main(["explore", "small_net:net", "--images", "train.npy", "--validation", "train.npy"])
    assert ended.value.code == 1
    assert "cannot read the validation set" in capsys.readouterr().err
