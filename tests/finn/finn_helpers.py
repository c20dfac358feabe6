"""Functions that the FINN tests share."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


def spread_batch_norms(model: nn.Module) -> None:
    """Give the batch norms of an untrained network factors and shifts that differ, a few of them negative."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            with torch.no_grad():
                module.weight[::7] *= -1


@torch.no_grad()
def outputs_in_float64(model: nn.Module, images: Tensor) -> Tensor:
    """What the network gives in eval mode, one image at a time, without float32's rounding of sums."""
    double = copy.deepcopy(model).double().eval()
    return torch.cat([double(image[None].double()) for image in images])


def export_to(path: Path, model: nn.Module, shape: tuple[int, ...]) -> Path:
    """Write `model` as QONNX as it is, not legalized and not cleaned up."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from brevitas.export import export_qonnx

        export_qonnx(model.eval(), torch.randn(shape), str(path), dynamo=False)
    return path


def relative(found: Any, wanted: Any) -> float:
    """Largest difference divided by the largest wanted value."""
    found, wanted = np.asarray(found), np.asarray(wanted)
    return float(np.abs(found - wanted).max() / np.abs(wanted).max())
