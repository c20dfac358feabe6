"""fxfactor: depth-factorized, quantized CNNs from any PyTorch CNN, ready for FINN.

Each public name is imported when it is first used, so that `fxfactor --help` answers without waiting for torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fxfactor import finn as finn
    from fxfactor import passes as passes
    from fxfactor import report as report
    from fxfactor.analysis.cost import cost
    from fxfactor.analysis.distributions import distributions
    from fxfactor.analysis.summary import summary
    from fxfactor.compression.compress import compress
    from fxfactor.compression.result import Compressed
    from fxfactor.errors import (
        CaptureError,
        ExportError,
        FinnError,
        FxfactorError,
        GraphError,
        InfeasibleError,
        PreconditionError,
    )
    from fxfactor.exploration.explore import explore
    from fxfactor.exploration.result import Exploration
    from fxfactor.graph.capture import capture
    from fxfactor.pipeline import Change, Pass, PassResult, Pipeline, Skip
    from fxfactor.plan.budget import Budget
    from fxfactor.plan.ladder import groups_at
    from fxfactor.plan.layer_plan import LayerPlan
    from fxfactor.plan.plan import Plan
    from fxfactor.planning.search import search
    from fxfactor.quantization.calibrate import calibrate
    from fxfactor.quantization.fused import fused_quantizers
    from fxfactor.recipe import transform
    from fxfactor.recovery.augment import flip_and_shift, flip_shift_and_cut
    from fxfactor.recovery.finetune import continue_from, finetune
    from fxfactor.recovery.reconstruct import reconstruct
    from fxfactor.recovery.round_weights import round_weights
    from fxfactor.storage.checkpoint import load, save
    from fxfactor.storage.qonnx import Exported, export

_HOMES = {
    "analysis.cost": ("cost",),
    "analysis.distributions": ("distributions",),
    "analysis.summary": ("summary",),
    "compression.compress": ("compress",),
    "compression.result": ("Compressed",),
    "errors": (
        "CaptureError",
        "ExportError",
        "FinnError",
        "FxfactorError",
        "GraphError",
        "InfeasibleError",
        "PreconditionError",
    ),
    "exploration.explore": ("explore",),
    "exploration.result": ("Exploration",),
    "graph.capture": ("capture",),
    "pipeline": ("Change", "Pass", "PassResult", "Pipeline", "Skip"),
    "plan.budget": ("Budget",),
    "plan.ladder": ("groups_at",),
    "plan.layer_plan": ("LayerPlan",),
    "plan.plan": ("Plan",),
    "planning.search": ("search",),
    "quantization.calibrate": ("calibrate",),
    "quantization.fused": ("fused_quantizers",),
    "recipe": ("transform",),
    "recovery.augment": ("flip_and_shift", "flip_shift_and_cut"),
    "recovery.finetune": ("continue_from", "finetune"),
    "recovery.reconstruct": ("reconstruct",),
    "recovery.round_weights": ("round_weights",),
    "storage.checkpoint": ("load", "save"),
    "storage.qonnx": ("Exported", "export"),
}
"""Module -> the public names that live there."""

_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

_PACKAGES = ("finn", "passes", "report")
"""Packages that users reach as `fxfactor.finn`, without an import of their own."""

__all__ = [
    "Budget",
    "CaptureError",
    "Change",
    "Compressed",
    "Exploration",
    "ExportError",
    "Exported",
    "FinnError",
    "FxfactorError",
    "GraphError",
    "InfeasibleError",
    "LayerPlan",
    "Pass",
    "PassResult",
    "Pipeline",
    "Plan",
    "PreconditionError",
    "Skip",
    "calibrate",
    "capture",
    "compress",
    "continue_from",
    "cost",
    "distributions",
    "explore",
    "export",
    "finetune",
    "flip_and_shift",
    "flip_shift_and_cut",
    "fused_quantizers",
    "groups_at",
    "load",
    "reconstruct",
    "round_weights",
    "save",
    "search",
    "summary",
    "transform",
]


def __getattr__(name: str) -> Any:
    if name in _PACKAGES:
        return import_module(f"{__name__}.{name}")
    if name not in _HOME_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f"{__name__}.{_HOME_OF[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return [*__all__, *_PACKAGES]
