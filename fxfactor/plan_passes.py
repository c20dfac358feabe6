"""What a plan stands for: the passes that make its network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fxfactor.graph.mixed_precision import Precision
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Pass
from fxfactor.plan.plan import Plan


def plan_passes(
    plan: Plan,
    calibration: Sequence[Any] | None = None,
    keep: tuple[str, ...] = (),
    fit: bool = True,
    precision: Precision = "float32",
) -> tuple[Pass, ...]:
    """The passes that a plan stands for; with `fit=False` the factors stay empty, for weights to be loaded."""
    layers = plan.layers.values()
    factorize = FactorizeDepth(plan=plan, keep=keep, calibration=calibration, fit=fit, precision=precision)
    quantizes = plan.join_bits is not None or any(layer.weight_bits or layer.activation_bits for layer in layers)
    return (factorize, Quantize(plan=plan)) if quantizes else (factorize,)
