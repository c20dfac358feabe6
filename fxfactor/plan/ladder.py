"""What to do at every site: the ladder of levels, the plan, and its JSON.

The ladder is our reading of "algorithmically increasing the granularity of depth factorization in a progressive
manner" (FactorizeNet, Yun and Wong 2020, arXiv 2011.14586): at level ℓ the spatial factor has the largest number of
groups that divides the input channels and is at most 2^ℓ, until every channel is a group of its own (depthwise).
"""

from __future__ import annotations

import math
from functools import partial
from typing import Literal

from torch import nn

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.questions import CONVOLUTIONS, Convolution, Site
from fxfactor.quantization.brevitas_layers import is_quantized_layer

Level = int | Literal["depthwise"]

BITS = range(2, 9)
WEIGHT_BITS = range(1, 9)
MOST_BITS = BITS[-1]
SMALLEST_INPUT = 8
"""Convolutions with fewer input channels are left as they are: there is next to nothing to save."""


def check_level(level: object) -> None:
    """Raise PreconditionError unless `level` is an int ≥ 0 or "depthwise"."""
    if (
        not isinstance(level, int | str)
        or isinstance(level, bool)
        or (level != "depthwise" if isinstance(level, str) else level < 0)
    ):
        raise PreconditionError(
            f'level must be an int of at least 0 or "depthwise", found {level!r}; 3 is a good start'
        )


def check_bits(bits: object, what: str, allowed: range = BITS) -> None:
    """Raise PreconditionError unless `bits` is None (stay in floating point) or an int from 2 to 8, or one that is allowed."""
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or bits not in allowed):
        only = "; one bit is for weights alone, as in bits=(1, 4)" if isinstance(bits, int) and bits == 1 else ""
        raise PreconditionError(
            f"{what} must be an int from {allowed[0]} to {allowed[-1]}, or None for floating point, found {bits!r}{only}"
        )


def check_weight_bits(bits: object, what: str) -> None:
    """Raise PreconditionError unless `bits` is None (stay in floating point) or an int from 1 to 8."""
    check_bits(bits, what, WEIGHT_BITS)


def check_join_bits(bits: int | None, activation_bits: int | None) -> None:
    """Raise PreconditionError unless `bits` is None or, where activations are quantized, an int from 2 to 8."""
    check_bits(bits, "join_bits")
    if bits is not None and activation_bits is None:
        raise PreconditionError(
            f"join_bits={bits} needs bits for activations too, found None: without them additions stay in floating point; "
            "give both, or a plan, which has join_bits and residual_bits of its own"
        )


@partial(checked, but=("level",))
def groups_at(level: Level, channels: int, original_groups: int = 1) -> int:
    """Groups of the spatial factor: the largest divisor of `channels` that is at most 2^level.

    A convolution that has `original_groups` groups already gets a multiple of them, and never fewer.

    >>> [groups_at(level, 64) for level in (0, 1, 3, 6, 9, "depthwise")], groups_at(3, 36)
    ([1, 2, 8, 64, 64, 64], 6)
    """
    check_level(level)
    if channels < 1 or original_groups < 1:
        raise PreconditionError(
            f"groups_at: channels and original_groups must be at least 1, found channels={channels}, "
            f"original_groups={original_groups}"
        )
    most = channels if level == "depthwise" else min(channels, 2 ** min(int(level), channels.bit_length()))
    wanted = (g for g in range(most, original_groups, -1) if channels % g == 0 and g % original_groups == 0)
    return next(wanted, original_groups)


def check_width(width: object) -> None:
    """Raise PreconditionError unless `width` is a finite number above 0."""
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
        raise PreconditionError(
            f"width must be a number above 0, channels between the factors for each input channel, found {width!r}; "
            "1 is the default, 2 keeps far more accuracy"
        )


def mid_at(width: float, channels: int, groups: int) -> int:
    """Channels between the factors: the multiple of `groups` that is closest to width · channels, at least `groups`.

    >>> [mid_at(width, 64, 8) for width in (1, 1.5, 2, 0.01)]
    [64, 96, 128, 8]
    """
    return max(1, round(width * channels / groups)) * groups


def macs_per_output_pixel(conv: Convolution, groups: int | None = None, mid: int | None = None) -> int:
    """Multiply-accumulates of a convolution at one output pixel, as it is or factorized with `groups` and `mid`."""
    kernel, inputs, outputs = math.prod(conv.kernel_size), conv.in_channels, conv.out_channels
    if groups is None:
        return inputs * outputs * kernel // conv.groups
    mid = inputs if mid is None else mid
    return mid * inputs * kernel // groups + mid * outputs // conv.groups


def reason_to_keep(conv: nn.Module, first: bool = False) -> str | None:
    """Why a convolution is left as it is whatever the level, or None if it can be factorized."""
    if not isinstance(conv, CONVOLUTIONS):
        return f"{type(conv).__name__} is not a convolution"
    if is_quantized_layer(conv):
        return "already quantized: factorize before quantizing"
    if first:
        return "the first convolution"
    if math.prod(conv.kernel_size) == 1:
        return "already pointwise"
    if conv.groups == conv.in_channels:
        return "already depthwise"
    if conv.in_channels < SMALLEST_INPUT:
        return f"only {conv.in_channels} input channels, fewer than {SMALLEST_INPUT}"
    return None


def choose_shape(site: Site, level: Level, first: bool, width: float = 1) -> tuple[int, int] | str:
    """Groups and mid that a level and a width stand for at a site, or the reason to leave the site as it is."""
    conv = site.modules[0]
    if site.factorized:
        return "already factorized"
    reason = reason_to_keep(conv, first)
    if reason is not None:
        return reason
    if level == 0:
        return "level 0 keeps every convolution"
    groups = groups_at(level, conv.in_channels, conv.groups)
    if groups == conv.groups:
        return f"level {level} asks for no more groups than the {conv.groups} it has"
    mid = mid_at(width, conv.in_channels, groups)
    before, after = macs_per_output_pixel(conv), macs_per_output_pixel(conv, groups, mid)
    if after >= before:
        wide = "" if width == 1 else f" and {mid} channels between the factors"
        return f"{groups} groups{wide} would not lower the MACs: {after:,} instead of {before:,} at each pixel"
    return groups, mid
