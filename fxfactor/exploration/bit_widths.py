"""A quantized network at other bit widths, for evaluation: Brevitas layers are built once for all of them.

Building Brevitas' layers takes longer than running a small network on a thousand images. What they compute is known
(`fxfactor.quantization.plain_copy`), so networks of other bit widths are made of plain layers with weights rounded to
the wanted bits, and of quantizers with the range that is best at these bits.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import nn
from torch.fx import GraphModule

from fxfactor.analysis.cost import FLOAT_BITS, Cost, cost
from fxfactor.graph.dataflow import consumers, input_quantizer, is_join
from fxfactor.graph.questions import LAYERS, is_quantizer, layers, module_of, sites
from fxfactor.plan.plan import Plan
from fxfactor.quantization.brevitas_layers import is_signed, quantizer_bits
from fxfactor.quantization.histogram import Histogram, best_limit
from fxfactor.quantization.levels import integer_range, rounded_weight, scale_at
from fxfactor.quantization.plain_copy import FixedQuantizer, plain_layer

LEAST_BITS, MOST_BITS = 2, 7
"""Of activations. One less than additions have, so that the copies which layers read of them stand in both networks."""


class BitWidths:
    """One network, quantized to the fewest bits and to the most; gives what lies between, for plans of the same groups.

    A quantizer has the most bits that any layer behind it asks for: those that are varied, or fixed ones (8 for the
    first layer). Two networks are enough to tell: where both have the same bits these are fixed, elsewhere the varied
    bits hold unless fixed ones are more. A copy of a tensor that has no more bits than it is none.
    """

    def __init__(self, fewest: GraphModule, most: GraphModule) -> None:
        self.network = most
        self.least = {name: quantizer_bits(module) for name, module in fewest.named_modules() if is_quantizer(module)}
        self.quantizers = {name: module for name, module in most.named_modules() if is_quantizer(module)}
        self.site_of = {str(node.target): name for name, site in sites(most).items() for node in site.nodes}
        names = {module: name for name, module in self.quantizers.items()}
        self.reads: dict[str, set[str | None]] = {}
        for node, _ in layers(most):
            self.reads.setdefault(str(node.target), set()).add(names.get(cast(nn.Module, input_quantizer(node))))
        self.cost_at_most = cost(most)
        self.copied_from = {
            str(node.target): given
            for node in most.graph.nodes
            if is_quantizer(module_of(node))
            and (given := input_quantizer(node)) is not None and not any(map(is_join, consumers(node)))
        }  # fmt: skip

    @property
    def alike(self) -> bool:
        """Whether both networks have the same quantizers, so that what lies between is known."""
        return self.least.keys() == self.quantizers.keys()

    def bits(self, quantizer: str, activation_bits: int) -> int:
        """Bits of a quantizer in the network whose activations have `activation_bits`."""
        least, most = self.least[quantizer], quantizer_bits(self.quantizers[quantizer])
        return least if least == most else max(least, activation_bits)

    @torch.no_grad()
    def frozen(self, plan: Plan, activation_bits: int, histograms: Mapping[str, Histogram]) -> GraphModule:
        """The network for evaluation, as `freeze` makes it of the network quantized by `plan` with ranges by `histograms`.

        plan: same groups as this network, any weight bits, the same `activation_bits` everywhere but at its ends.
        """
        replaced: dict[int, Any] = {}
        for name, module in self.network.named_modules():
            if is_quantizer(module):
                here, given = self.bits(name, activation_bits), self.copied_from.get(name)
                needed = given is None or here < quantizer_bits(given)
                replaced[id(module)] = _rounding(module, here, histograms[name]) if needed else nn.Identity()
            elif isinstance(module, LAYERS) and name in self.site_of:
                bits = plan.layers[self.site_of[name]].weight_bits
                replaced[id(module)] = plain_layer(
                    module, rounded_weight(cast(Any, module).weight.detach(), bits, module)
                )
        place = next(self.network.parameters()).device
        return copy.deepcopy(self.network, replaced).eval().requires_grad_(False).to(place)

    def cost(self, plan: Plan, activation_bits: int) -> Cost:
        """What the network of `frozen` costs when it is quantized, as `fxfactor.cost` counts it."""
        found, total = [], 0
        for layer in self.cost_at_most.layers:
            bits = plan.layers[self.site_of[layer.path]].weight_bits or FLOAT_BITS
            activation = max(
                layer.activation_bits if each is None else self.bits(each, activation_bits)
                for each in self.reads[layer.path]
            )
            found.append(replace(layer, weight_bits=bits, activation_bits=activation))
            total += cast(Any, self.network.get_submodule(layer.path)).weight.numel() * bits
        return Cost(tuple(found), self.cost_at_most.parameters, total)


def _rounding(quantizer: nn.Module, bits: int, histogram: Histogram) -> FixedQuantizer:
    signed = is_signed(quantizer)
    limit, at_most = best_limit(histogram, bits, signed), getattr(quantizer, "at_most", None)
    reach = torch.tensor(limit if at_most is None else min(limit, at_most), dtype=torch.float32)
    return FixedQuantizer(scale_at(reach, bits, signed), *integer_range(bits, signed))
