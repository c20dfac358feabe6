"""Steps that win accuracy back on images without labels, each taken back where it brings the outputs no nearer.

What a step is fitted to says little of what it is worth, so a quarter of the images is held out of it, and how near the
compressed network's outputs come to the original's is measured there, before and after.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fxfactor.errors import PreconditionError
from fxfactor.graph.mixed_precision import Precision
from fxfactor.graph.questions import is_quantizer
from fxfactor.graph.watching import evaluating
from fxfactor.pipeline import Judged
from fxfactor.quantization.brevitas_layers import is_quantized_layer, weight_bits_of
from fxfactor.recovery.blocks import relative_error
from fxfactor.recovery.reconstruct import reconstruct
from fxfactor.recovery.round_weights import can_round, round_weights

Recover = Literal["none", "round", "reconstruct"]

FEW_BITS = 7
"""Weights of at most so many bits are rounded where nothing is said; at 8 it changes nothing that can be measured."""

HELD_OUT = 256
"""Images that are held out at most."""


def recovery_for(graph: GraphModule, wanted: Recover | None) -> Recover:
    """How much time to spend: what the user said, else "round" where layers have few bits.

    Raises PreconditionError where nothing is quantized that could be rounded.
    """
    bits = [bits for module in graph.modules() if can_round(module) and (bits := weight_bits_of(module)) is not None]
    if wanted == "round" and not bits:
        raise PreconditionError(
            'transform(recover="round") rounds weights to few bits, and no layer is quantized; give bits=, or recover="none"'
        )
    if wanted is not None:
        return wanted
    return "round" if bits and min(bits) <= FEW_BITS else "none"


def recover_on(
    original: GraphModule,
    graph: GraphModule,
    batches: Sequence[Tensor],
    how: Recover,
    *,
    steps: int = 1000,
    precision: Precision = "float32",
) -> Iterator[Judged]:
    """Round, then reconstruct, as far as `how` says, in place; yield how near the outputs are before and after each.

    "reconstruct" rounds the weights first where there are quantized layers. `steps` are those of `reconstruct`. A network without
    real outputs is left as it is.
    """
    seen, others = held_out(batches)
    with evaluating(original), torch.no_grad():
        wanted = _outputs(original, others)
    if not wanted:
        return  # whole numbers alone: nothing to come nearer to
    quantized = any(is_quantizer(module) or is_quantized_layer(module) for module in graph.modules())
    best = _judge("calibrated" if quantized else "fitted", graph, others, wanted)
    yield best
    named: dict[str, Callable[[], Any]] = {
        "rounded": partial(round_weights, original, graph, seen),
        "reconstructed": partial(reconstruct, original, graph, seen, steps=steps, precision=precision),
    }
    if how == "none" or not any(can_round(module) for module in graph.modules()):
        del named["rounded"]
    if how != "reconstruct":
        del named["reconstructed"]
    for name, step in named.items():
        before = {key: value.clone() for key, value in graph.state_dict().items()}
        step()
        found = _judge(name, graph, others, wanted)
        if found.output_error < best.output_error:
            best = found
            yield found
            continue
        with torch.no_grad():
            for key, value in graph.state_dict().items():
                value.copy_(before[key])
        yield replace(found, kept=False)


def held_out(batches: Sequence[Tensor]) -> tuple[list[Tensor], list[Tensor]]:
    """The images for a step, and the last quarter of all, at most HELD_OUT, to judge it on; all for both where they are few."""
    left = min(sum(map(len, batches)) // 4, HELD_OUT)
    if left == 0:
        return list(batches), list(batches)
    seen, others = list(batches), list[Tensor]()
    while left:
        last = seen.pop()
        taken = min(left, len(last))
        others.insert(0, last[len(last) - taken :])
        if taken < len(last):
            seen.append(last[: len(last) - taken])
        left -= taken
    return seen, others


def _outputs(graph: GraphModule, batches: Sequence[Tensor]) -> list[list[Tensor]]:
    """The real tensors among a network's outputs, each a list of its batches, which may differ in image size."""
    like = next(graph.parameters(), batches[0])
    runs = [tree_leaves(graph(batch.to(like))) for batch in batches]
    outputs = [list(parts) for parts in zip(*runs, strict=True)]
    return [parts for parts in outputs if isinstance(parts[0], Tensor) and parts[0].is_floating_point()]


@torch.no_grad()
def _judge(step: str, graph: GraphModule, batches: Sequence[Tensor], wanted: list[list[Tensor]]) -> Judged:
    with evaluating(graph):
        found = _outputs(graph, batches)
    missed = [float(relative_error(_flat(a), _flat(b))) for a, b in zip(found, wanted, strict=True)]
    agreement = None
    if len(wanted) == 1 and wanted[0][0].dim() == 2 and wanted[0][0].shape[1] > 1:
        same = [a.argmax(1) == b.argmax(1) for a, b in zip(found[0], wanted[0], strict=True)]
        agreement = float(torch.cat(same).double().mean())
    return Judged(step, math.sqrt(sum(missed) / len(missed)), agreement, sum(map(len, batches)))


def _flat(batches: list[Tensor]) -> Tensor:
    return torch.cat([batch.flatten() for batch in batches])
