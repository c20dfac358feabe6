"""What is printed where: JSON for programs, less with --quiet, and nothing of other packages."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from cli_helpers import SMALL, run

from fxfactor.cli.output import NORMAL, VERBOSE, loudness, show_json, suggest, tell, warn


def test_json_is_all_that_stdout_gets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", *SMALL, "-l", "2", "-b", "4", "-o", "net", "--json") == 0
    printed = json.loads(capsys.readouterr().out)
    assert [row["site"] for row in printed["sites"]] == ["0", "3", "8"]
    assert printed["macs"] < printed["macs_before"]
    assert run("summary", "net", "--model", SMALL[0], "--json") == 0
    assert json.loads(capsys.readouterr().out) == printed
    assert run("export", "net", "net.onnx", "--model", SMALL[0], "--json") == 0
    assert json.loads(capsys.readouterr().out)["relative_difference"] < 1e-5


def test_quiet_prints_results_and_warnings_only(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("transform", *SMALL, "-l", "2", "-o", "net", "--quiet") == 0
    printed = capsys.readouterr()
    assert "g4 + 1×1" in printed.out
    assert "RANDOM" in printed.err
    assert "saved in" not in printed.err


@pytest.mark.parametrize(
    "command",
    [[], ["transform"], ["plan"], ["summary"], ["export"], ["evaluate"], ["finetune"], ["distributions"], ["report"],
     ["explore"], ["search"], ["finn"], ["finn", "check"], ["finn", "compare"], ["finn", "estimate"], ["finn", "prepare"]],
    ids=" ".join,
)  # fmt: skip
def test_every_command_has_a_short_help(command: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert run(*command, "-h") == 0
    printed = capsys.readouterr().out
    assert "Usage" in printed
    if command not in ([], ["finn"]):
        assert "--quiet" in printed
        assert "--verbose" in printed
    if command not in ([], ["finn"], ["plan"], ["report"], ["finn", "prepare"]):
        assert "--json" in printed


def test_the_shell_can_complete(capsys: pytest.CaptureFixture[str]) -> None:
    assert run("--help") == 0
    assert "--install-completion" in capsys.readouterr().out


def test_other_packages_are_kept_out_and_ours_are_not(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("torch.utils.cpp_extension")
    with loudness(NORMAL):
        warnings.simplefilter("always")
        warnings.warn("Named tensors are experimental", UserWarning, stacklevel=1)
        logger.warning("No CUDA runtime is found")
        warnings.warn_explicit("ours", UserWarning, "/site-packages/fxfactor/recipe.py", 3)
        assert not logger.isEnabledFor(logging.WARNING)
    told = capsys.readouterr().err
    assert "Named tensors" not in told
    assert "No CUDA" not in told
    assert "warning: ours" in told
    with loudness(VERBOSE):
        assert logger.isEnabledFor(logging.WARNING)
    assert logger.isEnabledFor(logging.WARNING)


def test_a_whole_command_says_nothing_that_is_not_ours(folder: Path) -> None:
    """In a process of its own, where every package warns for the first time."""
    command = [sys.executable, "-c", "from fxfactor.cli import main; main()", "transform", "cli_nets:small",
               "--input-size", "3x16x16", "-l", "2", "-b", "4", "-o", "net", "-q"]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=folder)
    assert [line.partition(":")[0] for line in done.stderr.splitlines()] == ["warning"]
    assert "RANDOM" in done.stderr


def test_a_hint_is_a_whole_command_for_the_shell(capsys: pytest.CaptureFixture[str]) -> None:
    suggest(
        "done", "transform", "m:f(a='b c')", weights=Path("my weights.pth"), pretrained=False, round=True, plan=None
    )
    assert capsys.readouterr().err == (
        "done; next: fxfactor transform 'm:f(a='\"'\"'b c'\"'\"')' --weights 'my weights.pth' --round\n"
    )


def test_the_hint_of_search_keeps_the_weights(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from cli_helpers import NETS

    names: dict[str, object] = {}
    exec(NETS, names)
    torch.save(names["small"]().state_dict(), "w.pth")  # type: ignore[operator]
    np.save("i.npy", np.random.default_rng(0).normal(size=(8, 3, 16, 16)))
    assert run("search", "cli_nets:small", "--weights", "w.pth", "--images", "i.npy", "--bops", "0.02", "--bits", "4",
               "--levels", "0,1", "--json") == 0  # fmt: skip
    printed = capsys.readouterr()
    assert json.loads(printed.out)["layers"]
    assert (
        "saved in plan.json; next: fxfactor transform cli_nets:small --plan plan.json --weights w.pth --calibration i.npy "
        "--output plan\n"
    ) in printed.err


def test_control_characters_and_markup_are_shown_as_they_are(capsys: pytest.CaptureFixture[str]) -> None:
    tell("a\x1b[2Jb [red]c[/red] [/x]")
    warn("two\nlines")
    assert capsys.readouterr().err == "a\\x1b[2Jb [red]c[/red] [/x]\nwarning: two\nlines\n"


def test_json_has_no_numbers_that_json_lacks(capsys: pytest.CaptureFixture[str]) -> None:
    show_json({"a": float("nan"), "b": (1, Path("x")), 3: True})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [1, "x"], "3": True}
