"""From a QONNX file to what it costs on an FPGA, with FINN: `check`, `compare`, `estimate`, `prepare`, `simulate`, `synthesize`.

Importing this needs neither FINN nor a look at it; finn-plus is started in a process of its own when it is used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfactor.finn.boards import BOARDS, Resources
    from fxfactor.finn.checking import check
    from fxfactor.finn.comparison import compare
    from fxfactor.finn.comparison_result import Comparison
    from fxfactor.finn.estimation import estimate
    from fxfactor.finn.exact_reference import reference
    from fxfactor.finn.preparation import Prepared, prepare
    from fxfactor.finn.result import Estimate, HardwareLayer, Step
    from fxfactor.finn.rules import Finding
    from fxfactor.finn.simulation.flow import simulate
    from fxfactor.finn.simulation.result import Simulation
    from fxfactor.finn.synthesis.flow import synthesize
    from fxfactor.finn.synthesis.result import Synthesis
    from fxfactor.storage.qonnx import legalize

_HOME_OF = {
    "BOARDS": "finn.boards",
    "Comparison": "finn.comparison_result",
    "Estimate": "finn.result",
    "Finding": "finn.rules",
    "HardwareLayer": "finn.result",
    "Prepared": "finn.preparation",
    "Resources": "finn.boards",
    "Simulation": "finn.simulation.result",
    "Step": "finn.result",
    "Synthesis": "finn.synthesis.result",
    "check": "finn.checking",
    "compare": "finn.comparison",
    "estimate": "finn.estimation",
    "legalize": "storage.qonnx",
    "prepare": "finn.preparation",
    "reference": "finn.exact_reference",
    "simulate": "finn.simulation.flow",
    "synthesize": "finn.synthesis.flow",
}

__all__ = [
    "BOARDS",
    "Comparison",
    "Estimate",
    "Finding",
    "HardwareLayer",
    "Prepared",
    "Resources",
    "Simulation",
    "Step",
    "Synthesis",
    "check",
    "compare",
    "estimate",
    "legalize",
    "prepare",
    "reference",
    "simulate",
    "synthesize",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"fxfactor.{_HOME_OF[name]}"), name)
