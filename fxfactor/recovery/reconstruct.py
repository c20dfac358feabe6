"""Make a compressed network compute what the original one does, block by block, on images without labels.

The compressed graph has the original's nodes at the boundaries of its blocks, so what passes there can be compared. The
gradient of the difference trains the factors, the batch norms and, in a quantized network, the rounded weights and the
ranges. No label is seen: the original network is the only teacher. As BRECQ (Li et al. 2021, arXiv 2102.05426), but all
blocks at once, each on what the blocks before it give, with the network's own output as one block more.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import as_graph
from fxfactor.graph.mixed_precision import Precision, computing_in, require_precision
from fxfactor.graph.watching import evaluating, images_of
from fxfactor.pipeline import forget_judged
from fxfactor.progress import track
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.recovery.augment import flip_shift_and_cut
from fxfactor.recovery.blocks import Matching, batch_norms, channels_last, cosine

Augment = Callable[[Tensor, torch.Generator], Tensor]

RATES = (1e-3, 2e-3, 5e-3)
"""Learning rates that are tried where none is given."""


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` did: the learning rate it used, and the loss of every step."""

    learning_rate: float
    losses: tuple[float, ...]


@checked
def reconstruct(
    original: nn.Module,
    graph: GraphModule,
    batches: Iterable[Any],
    *,
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float | None = None,
    augment: Augment | None = flip_shift_and_cut,
    precision: Precision = "float32",
    seed: int = 0,
) -> Reconstruction:
    """Train all parameters of `graph` to give what `original` gives at every block boundary, in place.

    Before: `graph` is `original` (a model, or its graph) after passes, say factorized and fitted, or quantized as well.
    After: the same modules with other values. Minimised by Adam with a cosine schedule: the mean over the boundaries of
    ‖a − b‖²/‖b − b̄‖², a from the compressed and b from the original network, plus the same at the output. Batch norms
    normalise by the batch meanwhile and keep running statistics of it (new ones of the images as they are cost 0.6 points
    on ResNet-20). `augment` is applied to both networks' images (None for none). precision: as in `fxfactor.finetune`.

    learning_rate: the further the fit is off, the more is good. Where none is given, each of `RATES` trains a copy on three
    quarters of the images for a twelfth of the steps, and the one that brings the others nearest is taken.

    Cost: `steps` forward and backward passes of `graph` on `batch_size` images, and a forward pass of `original` each; a
    quarter more where the learning rate is chosen. The same seed gives the same result on the same machine. Raises
    PreconditionError without images.
    """
    if learning_rate is not None and not 0 < learning_rate < math.inf:
        raise PreconditionError(
            f"reconstruct(learning_rate=…) must be a number above 0, found {learning_rate!r}; give none, and it is tried out"
        )
    require_precision(precision)
    images = _all_images(batches, next(graph.parameters()))
    original = as_graph(original, graph)
    forget_judged(graph)
    train = partial(_train, original, batch_size=batch_size, augment=augment, precision=precision, seed=seed)
    if learning_rate is None:
        learning_rate = _best_rate(train, original, graph, images, max(1, steps // 12))
    losses = train(graph, images, "reconstructing", steps=steps, learning_rate=learning_rate)
    return Reconstruction(learning_rate, tuple(losses))


def _best_rate(
    train: Callable[..., list[float]], original: GraphModule, graph: GraphModule, images: Tensor, steps: int
) -> float:
    """The rate that brings the last quarter of the images nearest to the original after `steps` on the others."""
    kept = max(1, len(images) // 4)
    seen, others = (images[:-kept], images[-kept:]) if len(images) > 1 else (images, images)
    distances = {}
    for rate in RATES:
        trial = copy.deepcopy(graph)
        train(trial, seen, f"trying a learning rate of {rate:g}", steps=steps, learning_rate=rate)
        match = Matching(original, trial).eval()
        with torch.no_grad():
            parts = [(len(part), match(part)[0]) for part in others.split(64)]
        distances[rate] = sum(count * float(loss) for count, loss in parts)
    return min(RATES, key=distances.__getitem__)


def _train(
    original: GraphModule,
    graph: GraphModule,
    images: Tensor,
    what: str,
    *,
    steps: int,
    learning_rate: float,
    batch_size: int,
    augment: Augment | None,
    precision: Precision,
    seed: int,
) -> list[float]:
    """Adam steps on `graph`, in place; gives the loss of each."""
    generator = torch.Generator().manual_seed(seed)
    losses = []
    modes = _batch_norms_training(graph)
    with channels_last(original), channels_last(graph), fused_quantizers(graph), modes, torch.enable_grad():
        match = Matching(original, graph)
        optimizer = torch.optim.Adam([p for p in graph.parameters() if p.requires_grad], learning_rate)
        for step, chosen in enumerate(track(_draws(len(images), batch_size, steps, generator), what, steps)):
            for group in optimizer.param_groups:
                group["lr"] = learning_rate * cosine(step / steps, (step + 1) / 20)
            batch = images[chosen] if augment is None else augment(images[chosen], generator)
            with computing_in(precision, batch.device):
                loss, _ = match(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


@contextmanager
def _batch_norms_training(graph: nn.Module) -> Iterator[None]:
    """Batch norms take the statistics of the batch, everything else evaluates; afterwards all modes are as before."""
    with evaluating(graph):
        batch_norms(graph).train()
        yield


def _all_images(batches: Iterable[Any], like: Tensor) -> Tensor:
    together = torch.cat(images_of(batches, "reconstruction")).to(like)
    return together.contiguous(memory_format=torch.channels_last) if together.dim() == 4 else together


def _draws(images: int, batch_size: int, steps: int, generator: torch.Generator) -> Iterator[Tensor]:
    """`steps` batches of indices, every image once before any comes again."""
    size = min(batch_size, images)
    waiting = torch.empty(0, dtype=torch.long)
    for _ in range(steps):
        if len(waiting) < size:
            waiting = torch.cat([waiting, torch.randperm(images, generator=generator)])
        yield waiting[:size]
        waiting = waiting[size:]
