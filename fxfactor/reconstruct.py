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
from itertools import pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Graph, GraphModule, Node
from torch.nn import functional as F
from torch.utils._pytree import tree_leaves

from fxfactor.augment import flip_shift_and_cut
from fxfactor.calibrate import inputs_of
from fxfactor.capture import capture
from fxfactor.errors import PreconditionError
from fxfactor.fused import fused_quantizers
from fxfactor.graph import layers, placeholders, shape_of
from fxfactor.progress import track

BatchNorm = nn.modules.batchnorm._BatchNorm
Augment = Callable[[Tensor, torch.Generator], Tensor]


RATES = (1e-3, 2e-3, 5e-3)
"""Learning rates that are tried where none is given."""


@dataclass(frozen=True)
class Reconstruction:
    """What `reconstruct` did: the learning rate it used, and the loss of every step."""

    learning_rate: float
    losses: tuple[float, ...]


def reconstruct(
    original: nn.Module,
    graph: GraphModule,
    batches: Iterable[Any],
    *,
    steps: int = 1000,
    batch_size: int = 32,
    learning_rate: float | None = None,
    augment: Augment | None = flip_shift_and_cut,
    seed: int = 0,
) -> Reconstruction:
    """Train all parameters of `graph` to give what `original` gives at every block boundary, in place.

    Before: `graph` is `original` (a model, or its graph) after passes, say factorized and fitted, or quantized as well.
    After: the same modules with other values. Minimised by Adam with a cosine schedule: the mean over the boundaries of
    ‖a − b‖²/‖b − b̄‖², a from the compressed and b from the original network, plus the same at the output. Batch norms
    normalise by the batch meanwhile and keep running statistics of it (new ones of the images as they are cost 0.6 points
    on ResNet-20). `augment` is applied to both networks' images (None for none).

    learning_rate: the further the fit is off, the more is good. Where none is given, each of `RATES` trains a copy on three
    quarters of the images for a twelfth of the steps, and the one that brings the others nearest is taken.

    Cost: `steps` forward and backward passes of `graph` on `batch_size` images, and a forward pass of `original` each; a
    quarter more where the learning rate is chosen. The same seed gives the same result on the same machine. Raises
    PreconditionError without images.
    """
    images = _all_images(batches, next(graph.parameters()))
    original = as_graph(original, graph)
    train = partial(_train, original, batch_size=batch_size, augment=augment, seed=seed)
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
            loss, _ = match(batch)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(float(loss.detach()))
    return losses


def cosine(progress: float, warm_up: float = 1.0) -> float:
    """Share of the learning rate: half a cosine from 1 at progress 0 to 0 at 1, times warm_up while that is below 1."""
    return 0.5 * (1 + math.cos(math.pi * progress)) * min(1.0, warm_up)


def boundaries(graph: GraphModule) -> list[Node]:
    """Where blocks end: nodes that everything later depends on through them alone, in the order of execution.

    No edge of the graph jumps over such a node; at least one convolution or linear layer stands between two of them,
    and a layer or a pooling comes next. The residual blocks of a ResNet, the layers of a VGG.
    """
    nodes = [node for node in graph.graph.nodes if node.op != "get_attr"]
    index = {node: position for position, node in enumerate(nodes)}
    layer_at = [index[node] for node, _ in layers(graph)]
    cuts, reach = [], 0
    for node in nodes:
        if node.op.startswith("call") and reach <= index[node] and "tensor_meta" in node.meta:
            cuts.append(node)
        reach = max(reach, *(index[user] for user in node.users), 0)
    found, begin = [], -1
    for cut, after in pairwise(cuts):
        here, next_one = index[cut], index[after]
        shrinks = math.prod(shape_of(after)) < math.prod(shape_of(cut))
        if any(begin < at <= here for at in layer_at) and (shrinks or any(here < at <= next_one for at in layer_at)):
            found.append(cut)
            begin = here
    return found


class Matching(nn.Module):
    """Runs both networks on the same images and gives how far apart they are, and the compressed network's output."""

    def __init__(self, original: GraphModule, graph: GraphModule) -> None:
        super().__init__()
        common = {node.name: node for node in graph.graph.nodes}
        names = [n.name for n in boundaries(original) if n.name in common and shape_of(n) == shape_of(common[n.name])]
        self.student = with_taps(graph, names)
        self.teacher = [with_taps(original, names)]  # in a list: not a submodule, so its parameters are not ours

    def forward(self, images: Tensor) -> tuple[Tensor, Any]:
        with torch.no_grad():
            wanted_output, wanted = self.teacher[0](images)
        output, found = self.student(images)
        outputs = zip(tree_leaves(output), tree_leaves(wanted_output), strict=True)
        loss = torch.stack([relative_error(a, b) for a, b in outputs]).mean()
        if found:
            loss = loss + torch.stack([relative_error(a, b) for a, b in zip(found, wanted, strict=True)]).mean()
        return loss, output


def relative_error(found: Tensor, wanted: Tensor) -> Tensor:
    """‖found − wanted‖² / ‖wanted − its mean‖², a scalar."""
    spread = wanted.var(correction=0)
    return F.mse_loss(found, wanted) / spread.clamp_min(1e-12)


def with_taps(graph: GraphModule, names: list[str]) -> GraphModule:
    """The same network, sharing all modules, that returns (its output, [the tensors at the nodes `names`])."""
    copied = Graph()
    kept: dict[Node, Node] = {}
    output = copied.graph_copy(graph.graph, kept)
    taps = {node.name: new for node, new in kept.items()}
    copied.output((output, [taps[name] for name in names]))
    return GraphModule(graph, copied)


@contextmanager
def _batch_norms_training(graph: nn.Module) -> Iterator[None]:
    """Batch norms take the statistics of the batch, everything else evaluates; afterwards all modes are as before."""
    before = {module: module.training for module in graph.modules()}
    graph.eval()
    for module in before:
        if isinstance(module, BatchNorm):
            module.train()
    try:
        yield
    finally:
        for module, mode in before.items():
            module.training = mode


@contextmanager
def channels_last(graph: nn.Module) -> Iterator[None]:
    """Keep the weights of 2d layers in channels_last meanwhile: grouped convolutions train twice as fast on a CPU."""
    cast(Any, graph).to(memory_format=torch.channels_last)
    try:
        yield
    finally:
        cast(Any, graph).to(memory_format=torch.contiguous_format)


def as_graph(model: nn.Module, like: GraphModule) -> GraphModule:
    """A copy of `model` in normal form and eval mode, captured on inputs of the shapes that `like` takes."""
    parameter = next(like.parameters())
    inputs = tuple(torch.zeros(shape_of(node)).to(next(model.parameters())) for node in placeholders(like))
    # a graph is copied and not traced anew: that would rename nodes, and boundaries are found by name
    return capture(model, None if isinstance(model, GraphModule) else inputs).eval().to(parameter)


def _all_images(batches: Iterable[Any], like: Tensor) -> Tensor:
    images = [inputs_of(batch) for batch in batches]
    if not images:
        raise PreconditionError("reconstruction needs at least one batch of calibration images, found an empty loader")
    together = torch.cat(images).to(like)
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
