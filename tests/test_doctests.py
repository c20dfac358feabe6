"""The examples in docstrings print what they say."""

from __future__ import annotations

import doctest
from importlib import import_module
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def modules() -> list[str]:
    """The importable names of the modules that have examples; passes/ is fxfactor.passes."""
    found = []
    for folder in ("fxfactor", "passes"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            if ">>> " in path.read_text(encoding="utf-8"):
                parts = path.relative_to(ROOT).with_suffix("").parts
                found.append(".".join(("fxfactor", *parts) if folder == "passes" else parts).removesuffix(".__init__"))
    return found


def test_there_are_examples() -> None:
    assert len(modules()) >= 4


@pytest.mark.parametrize("name", modules())
def test_examples_in_docstrings(name: str) -> None:
    failed, _ = doctest.testmod(import_module(name), optionflags=doctest.ELLIPSIS)
    assert not failed
