"""A saved folder from a stranger runs no code: only networks that the user names are imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from cli_helpers import SMALL, error_of, run

import fxfactor
from fxfactor.cli.networks import current_folder_first, parse_name

EVIL = """
from pathlib import Path
Path("executed").write_text("")
from cli_nets import small
"""


@pytest.fixture
def stranger(folder: Path) -> str:
    """A folder whose own source is a module of the stranger's, which lies beside it."""
    assert run("transform", *SMALL, "-l", "2", "-o", "net") == 0
    (folder / "evil.py").write_text(EVIL)
    sys.modules.pop("evil", None)
    graph = fxfactor.load("net", sys.modules["cli_nets"].small())
    fxfactor.save(graph, "net", source="evil:small")
    return "net"


def test_a_folders_own_source_is_imported_on_trust_only_and_shown_first(
    stranger: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    for command in (["summary", stranger], ["export", stranger, "a.onnx"], ["report", stranger],
                    ["distributions", stranger, "--images", "i.npy"]):  # fmt: skip
        told = error_of(capsys, *command)
        assert "importing that runs code" in told or "cannot read the images" in told
        assert not (folder / "executed").exists()
        assert "evil" not in sys.modules
    assert run("summary", stranger, "--trust-source") == 0
    told = capsys.readouterr().err
    assert "'net' says that its network is 'evil:small': importing and calling it" in told
    assert (folder / "executed").exists()


def test_a_network_named_by_the_user_takes_the_place_of_the_folders(stranger: str, folder: Path) -> None:
    assert run("summary", stranger, "--model", "cli_nets:small") == 0
    assert not (folder / "executed").exists()


def test_trust_is_for_folders(capsys: pytest.CaptureFixture[str]) -> None:
    assert "are for saved folders" in error_of(capsys, "summary", *SMALL, "--trust-source")


@pytest.mark.parametrize(
    ("source", "runs_code"),
    [
        ("torchvision:resnet18", False),
        ("torchvision:resnet18(num_classes=10)", False),
        ("timm:resnet18", False),
        ("timm:hf-hub:somebody/net", True),
        ("timm:resnet18(pretrained=True)", True),
        ("torchvision.models:resnet18", True),
        ("os:system('true')", True),
    ],
)
def test_what_needs_trust(source: str, runs_code: bool) -> None:
    assert parse_name(source).runs_code_of_its_own == runs_code


def test_the_current_folder_is_on_the_path_only_meanwhile(folder: Path) -> None:
    before = list(sys.path)
    with current_folder_first():
        assert sys.path == [str(folder), *before]
    assert sys.path == before
    assert run("summary", *SMALL) == 0
    assert sys.path == before


def test_a_network_with_arguments_comes_back_from_its_folder(capsys: pytest.CaptureFixture[str]) -> None:
    source = "cli_nets:small(first=24)"
    assert run("transform", source, "--input-size", "3x16x16", "-l", "2", "-o", "net") == 0
    printed, told = capsys.readouterr()
    assert "24→32" in printed
    assert f"next: fxfactor export net net.onnx --model '{source}'\n" in told
    assert run("summary", "net", "--model", source) == 0
    assert capsys.readouterr().out == printed
