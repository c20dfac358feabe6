"""Brevitas' activation quantizers with a hand-written gradient, for as long as a network is trained.

In eager mode an activation quantizer of Brevitas is some twenty elementwise operations forward and backward, and they
take more time than the convolutions. Here it is four forward and six backward, with the same values and gradients:
those of LSQ (Esser et al. 2020, arXiv 1902.08153). PyTorch's own kernel for it, _fake_quantize_learnable_per_tensor_affine,
is no faster on a CPU than Brevitas.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, cast

import torch
from brevitas.core.function_wrapper import RoundSte, TensorClamp
from brevitas.core.quant import IntQuant
from brevitas.core.zero_point import ZeroZeroPoint
from torch import Tensor, nn

from fxfactor.graph import is_quantizer


class _Round(torch.autograd.Function):
    """scale · clamp(round(x / scale), low, high); gradients pass the rounding, and end where it clamps."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, low: int, high: int) -> Tensor:
        levels = x / scale
        ctx.save_for_backward(levels, scale)
        ctx.limits = low, high
        return levels.round().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        levels, scale = ctx.saved_tensors
        low, high = ctx.limits
        rounded = levels.round()
        # one pass and no mask in memory: the gradient where low - 0.5 < rounded < high + 0.5, else 0
        passed = torch.ops.aten.hardtanh_backward(gradient, rounded, low - 0.5, high + 0.5)
        of_scale = rounded.clamp_(low, high).mul_(gradient).addcmul_(passed, levels, value=-1).sum()
        return passed, of_scale.reshape(scale.shape), None, None


class _FusedIntQuant(nn.Module):
    """Stands for Brevitas' IntQuant with a zero point of 0."""

    def __init__(self, low: int, high: int) -> None:
        super().__init__()
        self.low, self.high = low, high

    def forward(self, scale: Tensor, zero_point: Tensor, bit_width: Tensor, x: Tensor) -> Tensor:
        return cast(Tensor, _Round.apply(x, scale, self.low, self.high))


@contextmanager
def fused_quantizers(graph: nn.Module) -> Iterator[None]:
    """Let all activation quantizers in `graph` that can be fused be so meanwhile; parameters and state stay the same."""
    replaced: list[tuple[Any, nn.Module]] = []
    try:
        for module in graph.modules():
            if not is_quantizer(module):
                continue
            quantizer = cast(Any, module).act_quant.fused_activation_quant_proxy.tensor_quant
            if _can_fuse(quantizer):
                low, high = _limits(quantizer)
                replaced.append((quantizer, quantizer.int_quant))
                quantizer.int_quant = _FusedIntQuant(low, high)
        yield
    finally:
        for quantizer, original in replaced:
            quantizer.int_quant = original


def _can_fuse(quantizer: Any) -> bool:
    """Whether this is plain rounding and clamping around zero with one scale, not compiled by BREVITAS_JIT."""
    inner = quantizer.int_quant
    return (
        type(inner) is IntQuant
        and isinstance(inner.float_to_int_impl, RoundSte)
        and isinstance(inner.tensor_clamp_impl, TensorClamp)
        and isinstance(quantizer.zero_point_impl, ZeroZeroPoint)
        and quantizer.scaling_impl.value.numel() == 1
    )


def _limits(quantizer: Any) -> tuple[int, int]:
    bits = quantizer.msb_clamp_bit_width_impl()
    return int(quantizer.int_quant.min_int(bits)), int(quantizer.int_quant.max_int(bits))
