"""LegalizeForFinn: every rewrite that FINN's own flow needs and that changes nothing, in one pass."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from torch.fx import GraphModule

from fxfactor.passes.legalize_channel_multipliers import LegalizeChannelMultipliers
from fxfactor.passes.legalize_grouped_convolutions import LegalizeGroupedConvolutions
from fxfactor.pipeline import Change, Pass, Skip


@dataclass(frozen=True)
class LegalizeForFinn(Pass):
    """Exact: grouped convolutions become branches, channel multipliers become parallel depthwise convolutions.

    For files that go to FINN's own flow. `fxfactor.finn` needs none of this: there a grouped convolution is one block, or
    split where that is cheaper, when the network has become integers.

    What else FINN's own flow refuses needs no rewrite of the network: `fxfactor.finn` absorbs it when it turns the file
    into integers. These are: any activation that never falls (ReLU6, LeakyReLU, Sigmoid …) before a quantizer, global and
    local average pooling, max pooling before a quantizer or with ceil_mode, quantized biases, batch norms with negative
    factors, rounding ties. `fxfactor.capture` has already made padding shortcuts into fixed 1x1 convolutions.
    `fxfactor.finn.check` lists what is left.
    """

    exact: ClassVar[bool] = True

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        yield from LegalizeChannelMultipliers().rewrite(graph)
        yield from LegalizeGroupedConvolutions().rewrite(graph)
