"""The inputs of a capture: those that are given, or those that the network is likely made for."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from fxfactor.errors import PreconditionError
from fxfactor.graph.questions import CONVOLUTIONS, TRANSPOSED

# Sizes tried, in turn, where no example is given: ImageNet's, then those that small networks insist on.
_SIZES = (224, 299, 32, 28, 64, 96, 128, 256, 16, 8)
_LENGTHS = (1024, 16000, 512, 256, 128, 2048, 64, 100)


def as_tuple(example_inputs: Any) -> tuple[Any, ...]:
    """The model's arguments, in order. Raise PreconditionError where they are none or hold no tensor."""
    if isinstance(example_inputs, Tensor):
        return (example_inputs,)
    if isinstance(example_inputs, dict) or (
        isinstance(example_inputs, tuple | list) and any(isinstance(x, dict) for x in example_inputs)
    ):
        raise PreconditionError(
            "example_inputs must be a tensor or a tuple of tensors in the order of forward's arguments, found a dict: a "
            "captured graph takes tensors by position; wrap the model in a module whose forward takes them one by one"
        )
    if isinstance(example_inputs, tuple | list) and any(isinstance(x, Tensor) for x in example_inputs):
        return tuple(example_inputs)
    raise PreconditionError(
        f"example_inputs must be a tensor or a tuple of the model's arguments, found {type(example_inputs).__name__}; "
        "pass torch.randn(1, channels, height, width), say"
    )


def candidates(model: nn.Module) -> Iterator[tuple[Tensor, ...]]:
    """Inputs that the network may be made for: channels of the first convolution, usual sizes."""
    first = next((m for m in model.modules() if isinstance(m, (*CONVOLUTIONS, *TRANSPOSED))), None)
    parameter = next(model.parameters(), None)
    if first is None or parameter is None:
        return
    dimensions = len(first.kernel_size)
    config = getattr(model, "default_cfg", None)
    if isinstance(config, dict) and "input_size" in config:
        yield (torch.zeros(1, *config["input_size"]).to(parameter),)
    for size in _LENGTHS if dimensions == 1 else _SIZES if dimensions == 2 else (32, 16, 64):
        yield (torch.zeros(1, first.in_channels, *[size] * dimensions).to(parameter),)


def accepted(model: nn.Module) -> tuple[Tensor, ...]:
    """The first inferred inputs that the model itself runs on. Raise PreconditionError where there are none."""
    for candidate in candidates(model):
        if runs(model, candidate):
            return candidate
    raise cannot_infer(model, None)


def cannot_infer(model: nn.Module, reason: Exception | None) -> PreconditionError:
    """The error that asks for inputs, with the `reason` why the last ones tried were refused."""
    why = f"the last one tried was refused: {reason}" if reason is not None else "no usual size runs through it"
    return PreconditionError(
        f"the input of {type(model).__name__} cannot be inferred: {why}. "
        "Pass example_inputs=torch.randn(1, channels, height, width), or the tuple of all the model's arguments"
    )


def runs(model: nn.Module, inputs: tuple[Any, ...]) -> bool:
    """Whether the model takes these inputs in eval."""
    return why_not(model, inputs) is None


def why_not(model: nn.Module, inputs: tuple[Any, ...]) -> Exception | None:
    """What the model raises on these inputs in eval; None where it takes them."""
    try:
        with torch.no_grad():
            copy.deepcopy(model).eval()(*inputs)
    except Exception as error:  # whatever the user's code raises on a shape it is not made for
        return error
    return None
