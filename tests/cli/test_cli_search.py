"""fxfactor search on the command line: what it passes on, and what it refuses."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cli_helpers import error_of, run

import fxfactor

IMAGES = np.random.default_rng(0).normal(size=(12, 3, 16, 16)).astype(np.float32)


def test_budgets_levels_bits_and_kept_layers_are_passed_on(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    np.save("images.npy", IMAGES)
    assert run("search", "cli_nets:small", "--images", "images.npy", "--bops", "0.05", "--weight-bits", "0.5", "--macs", "1.0",
               "--levels", "0,2", "--bits", "4,8", "--keep", "3", "--join-bits", "4,8", "-o", "found.json") == 0  # fmt: skip
    plan = fxfactor.Plan.load("found.json")
    assert plan.join_bits == 8  # the best there is: BOPs know nothing of additions
    assert plan.explain().budget.keys() == {"bops", "macs", "weight_bits"}
    assert plan.layers["3"].groups is None
    assert {layer.weight_bits for layer in plan.layers.values()} <= {4, 8}
    told = capsys.readouterr().err
    assert "next: fxfactor transform cli_nets:small --plan found.json --calibration images.npy --output found\n" in told


def test_pairs_of_bits_are_refused(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.save("images.npy", IMAGES)
    told = error_of(
        capsys, "search", "cli_nets:small", "--images", "images.npy", "--bops", "0.05", "--bits", "8/4", code=2
    )
    assert "chosen one by one" in told
    for bits in ("8/4", "9", "4,,8"):
        asked = ("search", "cli_nets:small", "--images", "images.npy", "--bops", "0.05", "--join-bits", bits)
        assert "bits from 2 to 8, like 8 or 4,6,8, are required" in error_of(capsys, *asked, code=2)
    assert not Path("plan.json").exists()


def test_workers_find_the_same_plan(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("scipy")
    np.save("images.npy", IMAGES)
    asked = ("search", "cli_nets:small", "--images", "images.npy", "--bops", "0.05", "--levels", "0,2", "--bits", "4,8")
    assert run(*asked, "-o", "alone.json") == 0
    assert run(*asked, "--workers", "2", "-o", "together.json") == 0  # which import cli_nets from here
    assert Path("alone.json").read_bytes() == Path("together.json").read_bytes()
