"""Inputs of other shapes than those of a capture: what was read from the shapes while tracing shows there."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

_SMALL = 64


def variants(inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """What may differ from the capture, and random inputs in which it does; last, the shapes of the capture.

    Small images first, which take little time: of uneven size and of even size after every halving, for what is read of a
    size is often whether it can be halved. Then larger ones, for models that pool too much for small ones.
    """
    batch = next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim() > 1), None)
    images = [x for x in inputs if isinstance(x, Tensor) and x.dim() > 2]
    other = 3 if batch == 2 else 2
    sizes = [[_uneven_size, _other_size], [_larger]]
    if batch is not None and images and batch >= 1:
        for resized in sizes:
            yield ("batch", "size"), [_reshaped(inputs, other, each) for each in resized]
        yield ("batch",), [_reshaped(inputs, other, _same_size)]
        for resized in sizes:
            yield ("size",), [_reshaped(inputs, batch, each) for each in resized]
    elif batch is not None:
        yield ("batch",), [_reshaped(inputs, other, _same_size)]
    yield (), [_as_random(inputs)]


def _reshaped(inputs: tuple[Any, ...], batch: int, resized: Callable[[int, int], int]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def reshape(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 2:
            return x
        sizes = [resized(size, axis) for axis, size in enumerate(x.shape[2:])]
        if not x.is_floating_point():
            return x.new_zeros(batch, x.shape[1], *sizes)
        return torch.randn(batch, x.shape[1], *sizes, generator=generator).to(x)

    return tuple(reshape(x) for x in inputs)


def _same_size(size: int, axis: int) -> int:
    return size


def _other_size(size: int, axis: int) -> int:
    if size >= 2 * _SMALL:
        return _SMALL
    return size // 32 * 16 if size >= 32 else 2 * size


def _uneven_size(size: int, axis: int) -> int:
    """Odd, and again after every halving: rounded up along the first axis (65, 33, 17), down along the second (63, 31, 15)."""
    power = 2 ** (min(max(size, 16), 2 * _SMALL).bit_length() - 2)
    return power + (1 if axis % 2 == 0 else -1)


def _larger(size: int, axis: int) -> int:
    return size + 32


def _as_random(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def fill(x: Any) -> Any:
        real = isinstance(x, Tensor) and x.is_floating_point()
        return torch.randn(x.shape, generator=generator).to(x) if real else x

    return tuple(fill(x) for x in inputs)
