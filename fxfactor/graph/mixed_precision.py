"""Mixed precision: convolutions and linear layers in bfloat16 where everything else stays in float32."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from fxfactor.errors import PreconditionError

Precision = Literal["float32", "bfloat16"]
"""What convolutions and linear layers compute in; weights, quantizers and losses stay in float32."""


def require_precision(precision: str) -> None:
    """Raise PreconditionError where it is none."""
    if precision not in get_args(Precision):
        raise PreconditionError(f'precision must be "float32" or "bfloat16", found {precision!r}')


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """torch's mixed precision for a forward pass: nothing changes for "float32"."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")
