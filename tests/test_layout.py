"""Every module has its tests, where the folders say or where a reason says."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from layout import ELSEWHERE, ROOT, modules
from layout import tests_of as files_for
from named_mutations import NAMED


def _defines_something(module: str) -> bool:
    kinds = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef
    return any(isinstance(node, kinds) for node in ast.parse((ROOT / module).read_text()).body)


@pytest.mark.parametrize("module", modules())
def test_a_module_has_a_test_file_or_a_reason(module: str) -> None:
    if module.endswith("__init__.py") and not _defines_something(module):
        return
    assert files_for(module), f"{module}: write tests/…/test_{Path(module).name}, or give a reason in tests/layout.py"


def test_reasons_are_for_modules_without_a_file_and_name_files_that_are_there() -> None:
    for module, (files, reason) in ELSEWHERE.items():
        assert (ROOT / module).exists(), module
        assert " ".join(files_for(module)) == files, (
            f"{module} has a test file of its own now: take it out of ELSEWHERE"
        )
        assert all((ROOT / file).exists() for file in files.split()), module
        assert reason


def test_tests_import_no_private_names() -> None:
    """What is worth a test of its own is public by its name."""
    for file in (ROOT / "tests").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("fxfactor"):
                names = [node.module or "", *(alias.name for alias in node.names)]
                assert not any(part.startswith("_") for name in names for part in name.split(".")), (file, names)


@pytest.mark.parametrize("name", NAMED)
def test_a_named_mutation_stands_where_it_says_and_is_python(name: str) -> None:
    """Code that moves on takes its mutation with it: `make mutation` is not part of CI."""
    file, before, after = NAMED[name]
    source = (ROOT / file).read_text(encoding="utf-8")
    assert source.count(before) == 1
    ast.parse(source.replace(before, after))
