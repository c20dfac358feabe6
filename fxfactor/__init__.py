"""fxfactor: depth-factorized, quantized CNNs from any PyTorch CNN, ready for FINN."""

from fxfactor.calibrate import calibrate
from fxfactor.capture import capture
from fxfactor.checkpoint import load, save
from fxfactor.cost import cost
from fxfactor.errors import CaptureError, ExportError, FinnError, FxfactorError, GraphError, PreconditionError
from fxfactor.export import Exported, export
from fxfactor.pipeline import Change, Pass, PassResult, Pipeline, Skip
from fxfactor.plan import LayerPlan, Plan, groups_at
from fxfactor.summary import summary
from fxfactor.transform import transform

__all__ = [
    "CaptureError",
    "Change",
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
    "export",
    "groups_at",
    "load",
    "save",
    "summary",
    "transform",
]
