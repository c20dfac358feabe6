"""What FINN imports on its way and no step of ours uses: empty modules stand in, so that a worker starts three times as fast.

Measured on FINN 1.6.1: 9.4 CPU seconds and 728 MiB to import its build steps, 2.5 seconds and 134 MiB with the stand-ins
(medians of three, in turn; 8.8 to 10.3 and 2.5 to 3.0).
Nothing here needs fxfactor.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any

UNUSED = {
    "torch": "executes LayerNorm, an operation that fxfactor refuses",
    "sklearn": "estimates by regression models, which FINN does not ship",
    "pandas": "tables for those models, and of FINN's own simulation, which needs Vivado",
    "sympy": "symbolic dimensions in onnx_ir, and ours are numbers",
    "finn.builder.passes": "another front end, step_passes_frontend",
}
"""Module or package -> what FINN would use it for. What a package contains is left out with it."""


class Unused:
    """Stands for any name of a module that was left out; it may be named in a type or asked for by isinstance, not used."""

    def __init__(self, *_: Any, **__: Any) -> None:
        raise ImportError("FINN wanted a module that fxfactor leaves out (process/stand_ins.py): report it as a defect")


class _StandIn(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return Unused


class _Finder:
    """Finds a stand-in for each module of UNUSED, and makes it."""

    def find_spec(self, name: str, path: Sequence[str] | None, target: ModuleType | None = None) -> ModuleSpec | None:
        left_out = any(f"{name}.".startswith(f"{each}.") for each in UNUSED)
        return ModuleSpec(name, self, is_package=True) if left_out else None  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


@contextmanager
def stand_ins() -> Iterator[None]:
    """While it lasts, the modules of UNUSED are empty; those imported before stay, and what is imported later is whole."""
    finder = _Finder()
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for name in [name for name, module in sys.modules.items() if isinstance(module, _StandIn)]:
            del sys.modules[name]
