"""What `make docs` needs: pages from elsewhere in the repository, links that lead to them, examples in docstrings as code."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

DOCS = Path(__file__).parent.parent / "docs"


def module(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"docs_{name}", DOCS / f"{name}.py")
    assert spec is not None and spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


site = module("site")


@pytest.mark.parametrize(
    ("page", "link", "led"),
    [
        ("levels.md", "accuracy.md#what", "accuracy.md#what"),
        ("finn.md", "../examples/10_finn_resnet18.py", "examples.md"),
        ("README.md", "../README.md", "readme.md"),
        ("README.md", "../benchmarks/README.md", "benchmarks.md"),
        ("reference/finn.md", "../finn.md", "../finn.md"),
        ("faq.md", "https://github.com/Xilinx/finn/issues/996", "https://github.com/Xilinx/finn/issues/996"),
    ],
)
def test_links_lead_to_pages(page: str, link: str, led: str) -> None:
    shown = SimpleNamespace(file=SimpleNamespace(src_uri=page))
    assert site.on_page_markdown(f"see [this]({link}).", shown) == f"see [this]({led})."


def test_links_to_what_has_no_page_are_words() -> None:
    shown = SimpleNamespace(file=SimpleNamespace(src_uri="README.md"))
    assert site.on_page_markdown("[MIT](../LICENSE), [gone](gone.md)", shown) == "MIT, [gone](gone.md)"


def test_pages_from_elsewhere(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    made: dict[str, str] = {}

    class File:
        @staticmethod
        def generated(config: Any, name: str, content: str) -> str:
            made[name] = content
            return name

    structure = SimpleNamespace(File=File)
    monkeypatch.setitem(sys.modules, "mkdocs.structure.files", structure)
    monkeypatch.setattr(site, "GENERATED", tmp_path / "commands.md")
    site.GENERATED.write_text('<span style="font-weight: bold">Example</span>\n\n  fxfactor plan\n')
    files = site.on_files([], None)
    assert sorted(files) == sorted([*site.ELSEWHERE.values(), "examples.md", "commands.md"])
    assert made["commands.md"] == "**Example**\n\n    fxfactor plan\n"
    assert "](levels.md)" in made["readme.md"]
    numbered = sorted((DOCS.parent / "examples").glob("[0-9]*.py"))
    assert made["examples.md"].count("\n## ") == len(numbered)
    assert all(f"python examples/{path.name}" in made["examples.md"] for path in numbered)


def test_examples_in_docstrings_become_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "griffe", SimpleNamespace(Extension=object))
    as_code = module("griffe_doctests").as_code
    text = "First.\n\n>>> f(1)  # doctest: +SKIP\n2\n>>> f(2)\n\nRaises nothing.\n"
    assert as_code(text) == "First.\n\n\n```pycon\n>>> f(1)\n2\n>>> f(2)\n```\n\nRaises nothing.\n"
    assert as_code("No example.\n") == "No example.\n"
