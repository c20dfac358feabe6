"""LearnThresholds: a trained curve before each activation quantizer of few bits."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, cast

from torch import nn
from torch.fx import GraphModule, Node

from fxfactor.errors import PreconditionError
from fxfactor.graph import free_path, insert_after, is_quantizer, module_of, placeholders
from fxfactor.pipeline import Change, Pass, Skip
from fxfactor.quantization.brevitas_layers import get_limit, is_signed, quantizer_bits
from fxfactor.quantization.threshold_curve import ThresholdCurve

LEARNED = "fxfactor.learned_thresholds"
"""Key of `graph.meta` under which the settings of this pass stand, (pieces, at_most_bits) for each run of it."""


@dataclass(frozen=True)
class LearnThresholds(Pass):
    """Exact to begin with: `x → quantizer` becomes `x → curve → quantizer`, a curve that rises, and is the identity at first.

    Before: a quantized and calibrated network. After: before each activation quantizer of at most `at_most_bits` bits a
    `ThresholdCurve` of `pieces` linear pieces, trained with everything else by `fxfactor.reconstruct`, `fxfactor.finetune` or
    your own loop. In hardware it is the thresholds that are there anyway: FINN's estimate does not change. (Liu et al. 2022,
    arXiv 2111.14826.)

    The quantizer of the network's input is left alone: it stands outside the hardware.

    Raises PreconditionError on settings out of range, and where there is no quantizer.
    """

    exact: ClassVar[bool] = True

    pieces: int = 4
    at_most_bits: int = 4

    def __post_init__(self) -> None:
        for name, low, high in (("pieces", 2, 32), ("at_most_bits", 2, 8)):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
                raise PreconditionError(
                    f"LearnThresholds({name}=…) must be an int from {low} to {high}, found {value!r}"
                )

    def check(self, graph: GraphModule) -> None:
        if not any(is_quantizer(module) for module in graph.modules()):
            raise PreconditionError(
                "LearnThresholds needs a quantized network, found no activation quantizer; give bits= to fxfactor.transform first"
            )

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        inputs = set(placeholders(graph))
        graph.meta[LEARNED] = (*graph.meta.get(LEARNED, ()), (self.pieces, self.at_most_bits))
        for node in list(graph.graph.nodes):
            quantizer = module_of(node)
            if not is_quantizer(quantizer):
                continue
            path, source = str(node.target), node.all_input_nodes[0]
            bits = quantizer_bits(cast(nn.Module, quantizer))
            if source in inputs:
                yield Skip(path, "it quantizes the network's input")
            elif bits > self.at_most_bits:
                yield Skip(path, f"{bits} bits are more than {self.at_most_bits}")
            elif isinstance(module_of(source), ThresholdCurve):
                yield Skip(path, "it has a curve already")
            else:
                name = self._insert(graph, node, source, cast(nn.Module, quantizer))
                yield Change(path, (name, f"{self.pieces} linear pieces"))

    def _insert(self, graph: GraphModule, node: Node, source: Node, quantizer: nn.Module) -> str:
        limit = get_limit(quantizer)
        curve = ThresholdCurve(self.pieces, -limit if is_signed(quantizer) else 0.0, limit)
        like = next(quantizer.parameters())
        path = free_path(graph, f"{node.target}_curve")
        insert_after(graph, source, path, curve.to(like).train(quantizer.training), only={node})
        return path
