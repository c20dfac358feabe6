"""Activation functions that never fall, as factories from an ONNX node's attributes and constant inputs.

Such a function followed by a quantizer is again a staircase, so it costs nothing in hardware (see
`fxfactor.finn.integer.streams`). A factory returns None where its parameters make the function fall somewhere.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from fxfactor.finn.integer.streams import Function, Reals

Constants = list[Reals | None]
Factory = Callable[[dict[str, Any], Constants], Function | None]


def _relu(attributes: dict[str, Any], constants: Constants) -> Function:
    return lambda x: np.maximum(x, 0)


def _clip(attributes: dict[str, Any], constants: Constants) -> Function:
    bounds = [attributes.get("min", -np.inf), attributes.get("max", np.inf)]
    for index, value in enumerate(constants[:2]):
        if value is not None:
            bounds[index] = float(value.ravel()[0])
    return lambda x: np.clip(x, *bounds)


def _leaky_relu(attributes: dict[str, Any], constants: Constants) -> Function | None:
    slope = attributes.get("alpha", 0.01)
    return (lambda x: np.where(x < 0, slope * x, x)) if slope >= 0 else None


def _p_relu(attributes: dict[str, Any], constants: Constants) -> Function | None:
    assert constants[0] is not None
    slope = constants[0].reshape(-1, 1)
    return (lambda x: np.where(x < 0, slope * x, x)) if (slope >= 0).all() else None


def _elu(attributes: dict[str, Any], constants: Constants) -> Function | None:
    alpha = attributes.get("alpha", 1.0)
    return (lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)) if alpha >= 0 else None


def _celu(attributes: dict[str, Any], constants: Constants) -> Function | None:
    alpha = attributes.get("alpha", 1.0)
    return (lambda x: np.where(x < 0, alpha * np.expm1(np.minimum(x, 0) / alpha), x)) if alpha > 0 else None


def _selu(attributes: dict[str, Any], constants: Constants) -> Function:
    alpha, gamma = attributes.get("alpha", 1.6732632), attributes.get("gamma", 1.0507010)
    return lambda x: gamma * np.where(x < 0, alpha * np.expm1(np.minimum(x, 0)), x)


def _hard_sigmoid(attributes: dict[str, Any], constants: Constants) -> Function | None:
    alpha, beta = attributes.get("alpha", 0.2), attributes.get("beta", 0.5)
    return (lambda x: np.clip(alpha * x + beta, 0, 1)) if alpha >= 0 else None


def _sigmoid(attributes: dict[str, Any], constants: Constants) -> Function:
    return lambda x: 0.5 * (1 + np.tanh(x / 2))


def _tanh(attributes: dict[str, Any], constants: Constants) -> Function:
    return np.tanh


def _softplus(attributes: dict[str, Any], constants: Constants) -> Function:
    return lambda x: np.logaddexp(x, 0)


FUNCTIONS: dict[str, Factory] = {
    "Celu": _celu,
    "Clip": _clip,
    "Elu": _elu,
    "HardSigmoid": _hard_sigmoid,
    "LeakyRelu": _leaky_relu,
    "PRelu": _p_relu,
    "Relu": _relu,
    "Selu": _selu,
    "Sigmoid": _sigmoid,
    "Softplus": _softplus,
    "Tanh": _tanh,
}
"""ONNX operation -> its factory."""
