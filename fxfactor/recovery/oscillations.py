"""Weights that jump to and fro between two levels while a network is trained, frozen where they do so often.

A weight near the middle between two levels is pushed over it by every other step; the rounded network changes each time,
most of all in depthwise convolutions, where a channel has nine weights (Nagel et al. 2022, arXiv 2203.11086). As there: an
exponential mean says how often a weight turns round, and one that does so more often than a threshold, which falls by a
cosine, stays from then on at the level where it was most.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import Tensor, nn

from fxfactor.quantization.weight_limits import rounded_rows
from fxfactor.recovery.blocks import cosine

MOMENTUM = 0.01
FIRST, LAST = 0.04, 0.01
"""How often a weight may turn round before it is frozen, as a part of the steps: at the start and at the end."""


class Freezing:
    """Follows the levels of all weights whose limits are learned; `step` comes after each of the optimizer's.

    Its memory, four tensors of the size of each weight, is in `tensors`, to be kept with the optimizer's.
    """

    def __init__(self, graph: nn.Module) -> None:
        self.layers: dict[str, nn.Module] = {}
        self.tensors: dict[str, dict[str, Tensor]] = {}
        for path, layer in graph.named_modules():
            found = rounded_rows(layer)
            if found is not None:
                levels, _ = found
                self.layers[path] = layer
                zeros = torch.zeros_like(levels)
                self.tensors[path] = {"levels": levels, "mean": levels.clone(), "turned": zeros, "last": zeros.clone()}

    @torch.no_grad()
    def step(self, progress: float) -> None:
        """Note which weights turned round, and put those that are frozen back where they were; progress: 0 to 1."""
        most = LAST + (FIRST - LAST) * cosine(progress)
        for path, layer in self.layers.items():
            levels, scale = cast("tuple[Tensor, Tensor]", rounded_rows(layer))
            memory = self.tensors[path]
            frozen = torch.isinf(memory["turned"])
            levels = torch.where(frozen, memory["levels"], levels)
            change = levels - memory["levels"]
            turned = (change * memory["last"] < 0).to(levels)
            memory["turned"].lerp_(turned, MOMENTUM).masked_fill_(frozen, torch.inf)
            memory["mean"].lerp_(levels, MOMENTUM)
            new = (memory["turned"] > most) & ~frozen
            levels = torch.where(new, memory["mean"].round(), levels)
            memory["turned"].masked_fill_(new, torch.inf)
            memory["last"] = torch.where(change != 0, change.sign(), memory["last"])
            memory["levels"] = levels
            held = frozen | new
            weight = cast(Tensor, layer.weight)
            weight.copy_(torch.where(held, levels * scale, weight.flatten(1)).view_as(weight))

    @property
    def frozen(self) -> int:
        """Weights that are frozen."""
        return sum(int(torch.isinf(each["turned"]).sum()) for each in self.tensors.values())

    def named_tensors(self) -> Iterator[tuple[str, Tensor]]:
        """What is remembered, by name."""
        for path, memory in self.tensors.items():
            for what, value in memory.items():
                yield f"{what}.{path}", value

    def load(self, saved: dict[str, Any]) -> None:
        """Go on from what `named_tensors` gave."""
        for name, _ in list(self.named_tensors()):
            what, _, path = name.partition(".")
            self.tensors[path][what] = saved[name]
