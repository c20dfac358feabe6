"""What is installed is what is in the repository: every package, and every file that is not Python."""

from __future__ import annotations

import fnmatch
import sys
from pathlib import Path

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
SETUPTOOLS = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]


def test_every_package_is_installed() -> None:
    folders = {path.parent.relative_to(ROOT).parts for path in (ROOT / "fxfactor").rglob("__init__.py")}
    assert {".".join(parts) for parts in folders} | {"fxfactor.passes"} == set(SETUPTOOLS["packages"])


def test_every_other_file_is_installed() -> None:
    for path in (ROOT / "fxfactor").rglob("*"):
        if path.is_file() and path.suffix not in (".py", ".pyc"):
            patterns = [
                "/".join((*package.split("."), pattern))
                for package, listed in SETUPTOOLS["package-data"].items()
                for pattern in listed
            ]
            name = path.relative_to(ROOT).as_posix()
            assert any(fnmatch.fnmatch(name, pattern) for pattern in patterns), f"{name} is in no package-data"
