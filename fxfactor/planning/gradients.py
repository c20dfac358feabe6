"""What a change inside a network does to its output, to second order: gradients of the output's log-likelihood."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves

DRAWS = 8
TEMPERATURE = 4.0


def gradients_of(result: Any, at: list[Tensor], generator: torch.Generator) -> list[Tensor]:
    """g for every tensor in `at`: (N, DRAWS, elements), the gradients of what may be seen in the network's output.

    For logits (N, K): log p(c) with p = softmax(logits / TEMPERATURE) and c drawn from p, times TEMPERATURE squared (as
    in distillation). For any other output: a random direction, with the output in units of its standard deviation.
    """
    leaves = [leaf for leaf in tree_leaves(result) if isinstance(leaf, Tensor) and leaf.requires_grad]
    found: list[list[Tensor]] = [[] for _ in at]
    for draw in range(DRAWS):
        seeds = [_seed(leaf.detach(), generator) for leaf in leaves]
        last = draw == DRAWS - 1
        gradients = torch.autograd.grad(leaves, at, seeds, retain_graph=not last, allow_unused=True)
        for index, (gradient, y) in enumerate(zip(gradients, at, strict=True)):
            found[index].append((torch.zeros_like(y) if gradient is None else gradient).flatten(1))
    return [torch.stack(each, 1) for each in found]


def _seed(leaf: Tensor, generator: torch.Generator) -> Tensor:
    """The direction in the output that one draw looks at."""
    if leaf.dim() == 2 and leaf.shape[1] > 1:
        p = (leaf / TEMPERATURE).softmax(1)
        chosen = torch.multinomial(p.cpu(), 1, generator=generator).to(leaf.device)
        return torch.zeros_like(p).scatter_(1, chosen, 1.0) - p
    direction = torch.randn(leaf.shape, generator=generator).to(leaf)
    return direction / leaf.std().clamp_min(1e-12) / leaf[0].numel() ** 0.5


def both_measures(delta: Tensor, gradients: Tensor) -> Tensor:
    """Σ over images of the mean over draws of (g·δ)², and Σδ²: (2,) float64."""
    flat = delta.flatten(1)
    seen = torch.einsum("nke,ne->nk", gradients, flat).double().square().mean(1).sum()
    return torch.stack([seen, flat.square().sum(dtype=torch.float64)])
