"""The README and the pages under docs/ are true: their code runs, their links lead somewhere, their lists are whole."""

from __future__ import annotations

import re
import shlex
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.cli.app import main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        code = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        found += [pytest.param(text, id=f"{page.stem}-{index}") for index, text in enumerate(code)]
    return found


def given() -> dict[str, object]:
    """What the pages under docs/ take for granted: a model of the user's and some images."""
    model = nn.Sequential(
        *(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.Conv2d(8, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4)),
    ).eval()
    images = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    return {
        "__name__": "__main__",
        "fxfactor": fxfactor,
        "model": model,
        "images": images,
        "loader": images.split(1),
    } | {
        "train": images.split(2),
        "validation": [(images, model(images).argmax(1))],
    }


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "finn.estimate" in code or "board=" in code:
        try:  # not by import: the folder tests/finn answers to that name too
            version("finn-plus")
        except PackageNotFoundError:
            pytest.skip("finn-plus is not installed")
    monkeypatch.chdir(tmp_path)
    exec(compile(code, "README.md", "exec"), given())


def test_command_lines_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    lines = [line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith("fxfactor ")]
    assert len(lines) >= 4
    for line in lines:
        with pytest.raises(SystemExit) as stopped:
            main(shlex.split(line)[1:])
        assert not stopped.value.code, line


def test_make_targets_are_there() -> None:
    wanted = set(re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert wanted == {"demo", "test"}
    assert all(f"\n{target}:" in (ROOT / "Makefile").read_text() for target in wanted)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_levels_in_the_table() -> None:
    rows = re.findall(r"^\| (\d) \| (\d+) \| .*= ([\d ]+) \|$", (ROOT / "README.md").read_text(), re.MULTILINE)
    assert len(rows) == 5
    for level, groups, macs in rows:
        assert fxfactor.groups_at(int(level), 64) == int(groups)
        assert 64 * 64 * 9 // int(groups) + 64 * 64 == int(macs.replace(" ", ""))


def test_every_dependency_has_its_reason() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    section = (ROOT / "README.md").read_text().partition("## Dependencies")[2].partition("\n## ")[0]
    listed = re.findall(r"^\| ([\w-]+) \| .+ \|$", section, re.MULTILINE)[1:]
    assert listed == [re.split(r"[<>=]", line)[0] for line in project["dependencies"]]
    for extra, packages in project["optional-dependencies"].items():
        assert f"`{extra}`" in section
        assert all(re.split(r"[<>=]", line)[0] in section for line in packages)


def test_the_picture_is_what_its_script_draws() -> None:
    script = ROOT / "docs" / "images" / "convolution.py"
    names: dict[str, object] = {"__name__": "drawing", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert names["draw"]() == script.with_suffix(".svg").read_text()  # type: ignore[operator]
