"""From a QONNX file to what it costs on an FPGA, with FINN: `check`, `estimate`, `prepare`.

Importing this needs neither FINN nor a look at it; finn-plus is started in a process of its own when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfactor.finn.boards import BOARDS, Resources
    from fxfactor.finn.checking import check
    from fxfactor.finn.exact_reference import reference
    from fxfactor.finn.legalizing import legalize
    from fxfactor.finn.preparing import Prepared, prepare
    from fxfactor.finn.report import Estimate, HardwareLayer, Step
    from fxfactor.finn.rules import Finding
    from fxfactor.finn.runner import estimate

_HOMES = {
    "BOARDS": "boards",
    "Estimate": "report",
    "Finding": "rules",
    "HardwareLayer": "report",
    "Prepared": "preparing",
    "Resources": "boards",
    "Step": "report",
    "check": "checking",
    "estimate": "runner",
    "legalize": "legalizing",
    "prepare": "preparing",
    "reference": "exact_reference",
}

__all__ = [
    "BOARDS",
    "Estimate",
    "Finding",
    "HardwareLayer",
    "Prepared",
    "Resources",
    "Step",
    "check",
    "estimate",
    "legalize",
    "prepare",
    "reference",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
