"""What each choice of a search costs on an FPGA, and what FINN says the whole found network costs.

Costs per site and choice come from FINN's own cost functions (`fxfactor.finn.costs`): its padding, windows, matrix or
depthwise units and thresholds, folded to the target's frames per second. What belongs to no site (additions, copies of
streams, pooling) is what FINN's estimate of a whole network has beyond the sum over its sites.
"""

from __future__ import annotations

import math
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.budget import UNITS, Budget
from fxfactor.dataflow import is_average_pooling, is_concatenation, is_join, quantizer_of, tensor_inputs
from fxfactor.errors import PreconditionError
from fxfactor.export import export
from fxfactor.finn.costs import Chain, Geometry, Prices, Target, chains, datatype, price, thresholds
from fxfactor.finn.runner import estimate
from fxfactor.graph import Site, module_of, shape_of, sites
from fxfactor.options import Shape, Space
from fxfactor.passes import Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.plan import LayerPlan, Plan
from fxfactor.quantizers import is_signed
from fxfactor.sensitivity import rounded
from fxfactor.transform import transform

SUMMED = ("lut", "bram", "dsp")
_MOST_ATTEMPTS = 8
_TYPICAL_BITS = 4
"""Weight and activation bits of the layer before, where what it gives enters thresholds; they change the width a little."""


def board_limits(budget: Budget, whole: Mapping[str, float], target: Target) -> dict[str, float]:
    """The limits of a budget, and those that hold on any board: what it has, and the cycles for one frame."""
    return {**board_has(target), **budget.limits(whole), "cycles": float(target.cycles)}


def board_has(target: Target) -> dict[str, float]:
    """LUTs, 18 kbit block RAMs and DSPs of the board."""
    return {"lut": target.available.lut, "bram": target.available.bram18, "dsp": target.available.dsp}


def target_of(board: str, clock_ns: float, target_fps: int, cycles: float | None, python: Any) -> Target:
    """The target whose cycles per frame are those of the budget, where it has some, else those of `target_fps`."""
    return Target(board, clock_ns, target_fps if cycles is None else math.ceil(1e9 / clock_ns / cycles), python)


def price_space(graph: GraphModule, space: Space, target: Target, join_bits: int) -> Space:
    """The space with FINN's costs of every choice. Raises PreconditionError on layers that FINN has no unit for."""
    layers = _Layers(graph, join_bits)
    parts: dict[tuple[str, Shape, LayerPlan], Counter[Chain]] = {}
    for name in space.shapes:
        for shape, layer in space.layers(name):
            parts[name, shape, layer] = Counter(layers.chains(name, shape, layer))
    prices = price([chain for counts in parts.values() for chain in counts], target)
    hardware: dict[tuple[str, Shape, LayerPlan], Prices] = {}
    for key, counts in parts.items():
        sums = {each: sum(count * prices[chain][each] for chain, count in counts.items()) for each in SUMMED}
        hardware[key] = {**sums, "cycles": max(prices[chain]["cycles"] for chain in counts)}
    return replace(space, hardware=hardware, whole={**space.whole, **board_has(target)})


def estimate_plan(model: nn.Module, plan: Plan, example: Tensor, target: Target) -> Prices:
    """What FINN estimates for the network that a plan makes: exported and taken through FINN's steps."""
    made = transform(model, plan=plan, example_inputs=example)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "plan.onnx"
        export(made, file, target="finn", example_inputs=example)
        found = estimate(file, target.board, target.target_fps, target.clock_ns, python=target.python, cache=folder)
    total = found.total
    return {"lut": total.lut, "bram": total.bram18, "dsp": total.dsp, "cycles": found.bottleneck.cycles}


def plan_within(
    limits: Mapping[str, float],
    quick: Callable[[Mapping[str, float]], Plan],
    thorough: Callable[[Mapping[str, float]], Plan],
    model: nn.Module,
    example: Tensor,
    target: Target,
) -> Plan:
    """A plan whose whole network is within the limits as FINN estimates it, explained with these totals.

    `quick` and `thorough` give plans whose sites are within the limits that they are given. `quick`'s is only made to see
    what FINN counts beyond the sites, which is taken off the limits. It differs a little from plan to plan, so each one
    of `thorough` is estimated too, until one is within.
    Raises PreconditionError where no plan is found.
    """
    plan, margin = _first(limits, quick), 0.0
    for attempt in range(_MOST_ATTEMPTS):
        whole = estimate_plan(model, plan, example, target)
        why = plan.explain()
        if attempt and all(whole[name] <= limits[name] for name in whole):
            told = f"on {target}, as FINN estimates the whole network; each site with its own hardware"
            return replace(
                plan, explanation=replace(why, budget=dict(limits), totals={**why.totals, **whole}, target=told)
            )
        rest = {name: whole[name] - why.totals[name] for name in SUMMED}
        left = dict(limits)
        left.update({name: max(1.0, limits[name] * (1 - margin) - rest[name]) for name in SUMMED})
        try:
            plan = thorough(left)
        except PreconditionError as error:
            raise PreconditionError(
                f"no plan was found within the limits on {target}: "
                f"{', '.join(f'{count:,.0f} {UNITS[name]}' for name, count in rest.items())} are needed beside the layers, "
                f"for additions, copies of streams and thresholds, and of what is left, {error}; or lower join_bits"
            ) from error
        margin += 0.01
    raise PreconditionError(
        f"{_MOST_ATTEMPTS - 1} plans on {target} had more than the limits as FINN estimates them, the last one by "
        f"{max(whole[name] / limits[name] for name in whole) - 1:.1%}; raise the budget by so much"
    )


def _first(limits: Mapping[str, float], quick: Callable[[Mapping[str, float]], Plan]) -> Plan:
    """A plan well within the limits if there is one, since the layers will not get all of them."""
    for share in (0.5, 0.75):
        with suppress(PreconditionError):
            return quick({name: limit * share if name in SUMMED else limit for name, limit in limits.items()})
    return quick(limits)


class _Layers:
    """The sites of a network as FINN's hardware layers."""

    def __init__(self, graph: GraphModule, join_bits: int) -> None:
        self.join_bits = join_bits
        self.graph = Pipeline(Quantize(weight_bits=8, activation_bits=8))(graph).graph
        self.originals = sites(graph)
        self.sites = sites(self.graph)
        self.geometries = {name: _geometry(site) for name, site in self.originals.items()}
        self.spreads: dict[tuple[str, int], tuple[float, float]] = {}
        self.quantizers = {name: tensor_inputs(site.nodes[0])[0] for name, site in self.sites.items()}
        self.first_readers = set(
            {quantizer_of(node): name for name, node in reversed(self.quantizers.items())}.values()
        )

    def chains(self, name: str, shape: Shape, layer: LayerPlan) -> Iterator[Chain]:
        """The hardware layers of a choice, with the thresholds before it."""
        whole, weight_bits, bits = self.geometries[name], layer.weight_bits, layer.activation_bits
        if weight_bits is None or bits is None:
            raise PreconditionError(f"{name!r}: FINN computes in integers; give bits, not None, with a board")
        quantizer = self.quantizers[name]
        signed = is_signed(cast(nn.Module, quantizer_of(quantizer)))
        width = self._width_before(quantizer)
        if width is not None and name in self.first_readers:
            yield thresholds(_channels(quantizer), shape_of(quantizer)[2:], width, bits, signed)
        if shape.groups is None:
            yield from chains(
                whole, weight_bits, datatype(bits, signed), self._width(name, whole, weight_bits, bits, signed)
            )
            return
        spatial, pointwise = _factors(whole, shape)
        middle = self._width(name, spatial, weight_bits, bits, signed)
        yield from chains(spatial, weight_bits, datatype(bits, signed), middle)
        yield thresholds(spatial.out_channels, spatial.out_size, middle, bits, True)
        yield from chains(pointwise, weight_bits, datatype(bits), self._width(name, pointwise, weight_bits, bits, True))

    def _width(self, name: str, layer: Geometry, weight_bits: int, bits: int, signed: bool) -> int:
        """Bits of the sums, as FINN makes them just wide enough for the weights at hand (factors: for like weights)."""
        one_sign, both_signs = self._spread(name, weight_bits)
        most = 2.0 ** (bits - 1) * both_signs if signed else (2.0**bits - 1) * one_sign
        return max(2, math.ceil(math.log2(max(most * layer.fan_in, 1))) + 1)

    def _spread(self, name: str, bits: int) -> tuple[float, float]:
        """Mean per weight of the integers of one sign, and of both, in the output channel where they are largest."""
        if (name, bits) not in self.spreads:
            layer = self.originals[name].modules[0]
            weight = rounded(layer.weight.detach(), bits, layer).flatten(1)
            scale = layer.weight.detach().flatten(1).abs().amax(1, keepdim=True).clamp_min(1e-30)
            integers = weight / (scale / (2 ** (bits - 1) - 1))
            above, below = integers.clamp_min(0).mean(1), integers.clamp_max(0).abs().mean(1)
            self.spreads[name, bits] = (
                float(torch.maximum(above, below).max()),
                float((above + below).max()),
            )
        return self.spreads[name, bits]

    def _width_before(self, quantizer: Node) -> int | None:
        """Bits of the integers that enter the thresholds of a quantizer; None for the network's input."""
        node = quantizer
        by_module = {site.modules[-1]: name for name, site in self.sites.items()}
        while (inputs := tensor_inputs(node)) and not is_concatenation(node):
            node = inputs[0]
            if is_join(node):
                return self.join_bits + 1
            if is_average_pooling(node):
                positions = math.prod(shape_of(tensor_inputs(node)[0])[2:]) / math.prod(shape_of(node)[2:] or (1,))
                return _TYPICAL_BITS + math.ceil(math.log2(max(positions, 1)))
            name = by_module.get(module_of(node))
            if name is not None:
                return self._width(name, self.geometries[name], _TYPICAL_BITS, _TYPICAL_BITS, False)
        return None


def _channels(node: Node) -> int:
    return shape_of(node)[1]


def _geometry(site: Site) -> Geometry:
    layer, node = site.modules[0], site.nodes[0]
    if isinstance(layer, nn.Linear):
        return Geometry(layer.in_features, layer.out_features)
    if not isinstance(layer, nn.Conv2d):
        raise PreconditionError(
            f"{site.name!r} is a {type(layer).__name__}, which FINN has no hardware for; required with a board: "
            "Conv2d and Linear"
        )
    left, right, top, bottom = layer._reversed_padding_repeated_twice
    return Geometry(
        layer.in_channels,
        layer.out_channels,
        layer.groups,
        tuple(shape_of(tensor_inputs(node)[0])[2:]),
        cast("tuple[int, int]", tuple(layer.kernel_size)),
        cast("tuple[int, int]", tuple(layer.stride)),
        (top, left, bottom, right),
        cast("tuple[int, int]", tuple(layer.dilation)),
    )


def _factors(whole: Geometry, shape: Shape) -> tuple[Geometry, Geometry]:
    """Spatial and pointwise factor of a convolution."""
    assert shape.groups is not None
    mid = shape.mid or whole.in_channels
    spatial = replace(whole, out_channels=mid, groups=shape.groups)
    return spatial, Geometry(mid, whole.out_channels, whole.groups, spatial.out_size)
