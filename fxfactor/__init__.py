"""fxfactor: depth-factorized, quantized CNNs from any PyTorch CNN, ready for FINN.

Each public name is imported when it is first used, so that `fxfactor --help` answers without waiting for torch.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfactor import finn as finn
    from fxfactor import passes as passes
    from fxfactor import report as report
    from fxfactor.budget import Budget
    from fxfactor.calibrate import calibrate
    from fxfactor.capture import capture
    from fxfactor.checkpoint import load, save
    from fxfactor.cost import cost
    from fxfactor.distributions import distributions
    from fxfactor.errors import CaptureError, ExportError, FinnError, FxfactorError, GraphError, PreconditionError
    from fxfactor.exploration import Exploration
    from fxfactor.explore import explore
    from fxfactor.export import Exported, export
    from fxfactor.finetune import finetune
    from fxfactor.pipeline import Change, Pass, PassResult, Pipeline, Skip
    from fxfactor.plan import LayerPlan, Plan, groups_at
    from fxfactor.reconstruct import reconstruct
    from fxfactor.rounding import round_weights
    from fxfactor.search import search
    from fxfactor.summary import summary
    from fxfactor.transform import transform

__all__ = [
    "Budget",
    "CaptureError",
    "Change",
    "Exploration",
    "ExportError",
    "Exported",
    "FinnError",
    "FxfactorError",
    "GraphError",
    "LayerPlan",
    "Pass",
    "PassResult",
    "Pipeline",
    "Plan",
    "PreconditionError",
    "Skip",
    "calibrate",
    "capture",
    "cost",
    "distributions",
    "explore",
    "export",
    "finetune",
    "groups_at",
    "load",
    "reconstruct",
    "round_weights",
    "save",
    "search",
    "summary",
    "transform",
]

_MODULES = {
    "budget": ("Budget",),
    "checkpoint": ("load", "save"),
    "errors": ("CaptureError", "ExportError", "FinnError", "FxfactorError", "GraphError", "PreconditionError"),
    "exploration": ("Exploration",),
    "export": ("Exported", "export"),
    "pipeline": ("Change", "Pass", "PassResult", "Pipeline", "Skip"),
    "plan": ("LayerPlan", "Plan", "groups_at"),
    "rounding": ("round_weights",),
}
"""Where public names live that are not in a module of their own name."""

_PACKAGES = ("finn", "passes", "report")
"""Packages below this one that users reach as `fxfactor.finn`, without an import of their own."""

_HOME = {name: module for module, names in _MODULES.items() for name in names}


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME.get(name, name)}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return __all__


class _Package(ModuleType):
    """Python binds a submodule to its package once it is imported; here `fxfactor.capture` stays the function."""

    def __setattr__(self, name: str, value: Any) -> None:
        if name in __all__ and isinstance(value, ModuleType):
            value = getattr(value, name)
        super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
