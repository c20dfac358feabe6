"""What each choice of a search costs on an FPGA, and what FINN says the whole found network costs.

Costs per site and choice come from `fxfactor.finn.layer_costs`: padding, windows, matrix or depthwise units and thresholds,
folded and priced as `fxfactor.finn.estimate` does it for a whole network. What belongs to no site (additions, copies of
streams, pooling, width converters, deep FIFOs) is what the estimate of a whole network has beyond the sum over its sites.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.errors import InfeasibleError, PreconditionError
from fxfactor.finn.estimation import estimate_network
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.integer.requantizing import WIDEST_SCALE
from fxfactor.finn.layer_costs import (
    EMPHASES,
    SUMMED,
    Chain,
    Geometry,
    Prices,
    chains,
    cheapest,
    datatype,
    forms_of,
    multiplication,
    price_foldings,
    summed,
    thresholds,
)
from fxfactor.finn.target import Target
from fxfactor.finn.ways import MULTIPLICATION, THRESHOLDS
from fxfactor.graph.dataflow import is_average_pooling, is_join, tensor_inputs
from fxfactor.graph.questions import Site, is_quantizer, module_of, shape_of, sites
from fxfactor.passes import Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.plan.budget import UNITS, Budget
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import Plan
from fxfactor.planning.plans import Limits, for_all, require_place
from fxfactor.planning.space import Choice, Shape, Space
from fxfactor.quantization.brevitas_layers import is_signed
from fxfactor.quantization.levels import Bits, weight_levels
from fxfactor.recipe import transform
from fxfactor.workers import ALONE, Crew

_IN_TARGET = {"bram": "bram18"}
"""Names of a budget's resources in the limits of a target, where they differ."""
_MOST_ATTEMPTS = 8
_OVERRATED = 1.5
"""How much more than the whole network its sites may seem to take, at most."""

Forms = Mapping[str, tuple[Chain, ...]]
"""The hardware layers of one layer, in each way that it can be built; "block" where there is but one."""


def board_limits(budget: Budget, whole: Mapping[str, float], target: Target) -> dict[str, float]:
    """The limits of a budget, and those that hold on any board: what it has, and the cycles for one frame.

    whole: what shares in the budget are shares of.
    """
    limits = {**board_has(target), **budget.limits(whole), "cycles": float(target.cycles)}
    return {name: limit for name, limit in limits.items() if limit > 0}  # a board without UltraRAM has no use for it


def board_has(target: Target) -> dict[str, float]:
    """LUTs, 18 kbit block RAMs, DSPs and UltraRAMs that may be used of the board."""
    there = target.available
    return {"lut": there.lut, "bram": there.bram18, "dsp": there.dsp, "uram": there.uram}


def target_of(board: str, clock_ns: float, target_fps: int, budget: Budget, python: Any) -> Target:
    """The target with the budget's limits, for layers are folded to spare what is scarce within them.

    Its cycles per frame are those of the budget, where it has some, else those of `target_fps`.
    """
    fps = target_fps if budget.cycles is None else math.ceil(1e9 / clock_ns / budget.cycles)
    target = Target(board, clock_ns, fps, python)
    there = board_has(target)
    given = {name: limit for name, limit in budget.given().items() if name in there}
    limits = Budget(**given).limits(there) if given else {}
    return replace(target, limits={_IN_TARGET.get(name, name): int(limit) for name, limit in limits.items()} or None)


def price_space(graph: GraphModule, space: Space, target: Target, crew: Crew = ALONE) -> Space:
    """The space with FINN's costs of every choice, in every folding that may be best for a plan.

    The first is the cheapest on a whole board; the others spare one resource (`EMPHASES`): of all foldings of a choice these
    are what a plan takes where that resource is short. Raises PreconditionError on layers that FINN has no unit for.
    """
    parts: dict[Choice, list[Forms]] = {}
    for join_bits in space.join_bits:
        if join_bits is None:
            raise PreconditionError("FINN computes in integers; give join_bits and bits, not None, with a board")
        layers = HardwareLayers(graph, join_bits)
        for name in space.shapes:
            for shape, layer in space.layers(name):
                parts[name, shape, layer, join_bits] = list(layers.parts(name, shape, layer))
    priced = price_foldings([chain for part in parts.values() for chain in chains_in(part)], target, crew=crew)
    hardware = {key: _different(_foldings(part, priced, target)) for key, part in parts.items()}
    return replace(space, hardware=hardware, whole={**space.whole, **board_has(Target(target.board))})


def _foldings(part: Sequence[Forms], priced: Mapping[Chain, Sequence[Prices]], target: Target) -> Iterator[Prices]:
    """Sums over the hardware layers of a choice, for each emphasis, each layer in the form that is cheapest by it.

    What costs least by a weighted sum consists of parts that do, so these need not be combined with each other.
    """
    layers = [{form: [priced[chain] for chain in chains] for form, chains in forms.items()} for forms in part]
    for index, emphasis in enumerate(EMPHASES):
        chosen = []
        for forms in layers:
            sums = {form: summed([prices[index] for prices in chains]) for form, chains in forms.items()}
            chosen.append(sums[cheapest(sums, target, emphasis)])
        yield summed(chosen)


def _different(foldings: Iterable[Prices]) -> tuple[Prices, ...]:
    """Without those that cost no less of anything than one before."""
    kept: list[Prices] = []
    for each in foldings:
        if not any(all(known[name] <= each[name] for name in (*SUMMED, "cycles")) for known in kept):
            kept.append(each)
    return tuple(kept)


def chains_in(part: Iterable[Forms]) -> Iterator[Chain]:
    """Every chain that may be asked for."""
    return (chain for forms in part for chains in forms.values() for chain in chains)


def estimate_plan(model: nn.Module, plan: Plan, example: Tensor, target: Target) -> Prices:
    """What FINN estimates for the network that a plan makes: exported and taken through FINN's steps.

    What does not fit the target's limits is folded for the whole board: how much it takes is to be known too.
    """
    network = transform(model, plan=plan, example_inputs=example)
    try:
        found = estimate_network(network, example, target)
    except InfeasibleError:
        if not target.limits:
            raise
        found = estimate_network(network, example, replace(target, limits=None))
    total = found.total
    return {
        "lut": total.lut,
        "bram": total.bram18,
        "dsp": total.dsp,
        "uram": total.uram,
        "cycles": found.bottleneck.cycles,
    }


Planner = Callable[[Limits], Plan]
"""Gives a plan whose sites are within limits, which may be others for other bits of tensors that enter additions."""


def beside_sites(space: Space, plan: Plan, whole: Mapping[str, float]) -> dict[str, float]:
    """What FINN counts in a whole network beyond the hardware of its sites: additions, copies of streams, deep FIFOs, pooling.

    `whole` of a network that is folded as if no resource was short; so are the sites here.
    """
    first = [
        space.hardware[site, Shape(layer.groups, layer.mid), layer, plan.join_bits][0]
        for site, layer in plan.layers.items()
    ]
    return {name: whole[name] - sum(costs[name] for costs in first) for name in SUMMED}


def limits_of_sites(
    space: Space, limits: Mapping[str, float], quick: Planner, model: nn.Module, example: Tensor, target: Target
) -> Limits:
    """The limits less what FINN counts beside the sites, as a plan of `quick` of about half of them has it.

    For every number of bits that tensors which enter additions may have, but those with which no plan is within the limits.
    Cost: an estimate of a whole network for each.
    """
    found = {}
    for bits in space.join_bits:
        with suppress(PreconditionError):
            plan = _first(limits, (bits,), quick)
            beside = beside_sites(space, plan, estimate_plan(model, plan, example, target))
            found[bits] = {name: max(1.0, limit - beside.get(name, 0.0)) for name, limit in limits.items()}
    return found


def plan_within(
    space: Space,
    limits: Mapping[str, float],
    quick: Planner,
    thorough: Planner,
    model: nn.Module,
    example: Tensor,
    target: Target,
) -> Plan:
    """A plan whose whole network is within the limits as FINN estimates it, explained with these totals.

    What FINN counts beyond the sites is taken off the limits; it depends on the bits of tensors that enter additions
    and differs a little from plan to plan, so each plan of `quick` is estimated, until one is within. `thorough` is asked
    once for a better one, which is taken if it is within too. Raises PreconditionError where no plan is found.
    """
    left = {bits: dict(limits) for bits in space.join_bits}
    attempts = dict.fromkeys(space.join_bits, 0)
    plan = _first(limits, space.join_bits, quick)
    for attempt in range(_MOST_ATTEMPTS * len(space.join_bits)):
        whole = estimate_plan(model, plan, example, target)
        if attempt and _within(whole, limits):
            break
        rest = {name: count for name, count in beside_sites(space, plan, whole).items() if name in limits}
        margin = 0.01 * attempts[plan.join_bits]
        attempts[plan.join_bits] += 1
        left[plan.join_bits].update(
            {name: max(1.0, limits[name] * (1 - margin) - beside) for name, beside in rest.items()}
        )
        try:
            plan = quick(left)
        except PreconditionError as error:
            raise PreconditionError(
                f"no plan was found within the limits on {target}: for the whole network FINN counts "
                f"{', '.join(f'{count:+,.0f} {UNITS[name]}' for name, count in rest.items())} beside the layers "
                f"(additions, copies of streams, thresholds), and for the layers, {error}; or lower join_bits"
            ) from error
    else:
        raise PreconditionError(
            f"{sum(attempts.values()) - 1} plans on {target} had more than the limits as FINN estimates them, the last one by "
            f"{max(whole[name] / limit for name, limit in limits.items() if name in whole) - 1:.1%}; raise the budget by so much"
        )
    better = thorough(left)
    if better != plan:
        found = estimate_plan(model, better, example, target)
        if _within(found, limits):
            plan, whole = better, found
    why = plan.explain()
    told = f"on {target}, as FINN estimates the whole network; each site with its own hardware"
    if target.limits:
        told += (
            f"; fxfactor finn estimate --limit {' '.join(f'{name}={count}' for name, count in target.limits.items())}"
        )
    return replace(plan, explanation=replace(why, budget=dict(limits), totals={**why.totals, **whole}, target=told))


def require_place_for_sites(space: Space, limits: Mapping[str, float]) -> None:
    """Raise PreconditionError where `plan_within` would find no plan to begin with, whatever the choices lose."""
    try:
        require_place(space, for_all(space.join_bits, _more(limits, _OVERRATED)))
    except PreconditionError:
        try:
            require_place(space, for_all(space.join_bits, limits))
        except PreconditionError as error:
            raise PreconditionError(
                f"{error}; or lower join_bits, ask for fewer frames/s or choose a larger board"
            ) from None


def _within(whole: Prices, limits: Mapping[str, float]) -> bool:
    return all(whole[name] <= limit for name, limit in limits.items() if name in whole)


def _first(limits: Mapping[str, float], join_bits: Sequence[Bits], quick: Planner) -> Plan:
    """A plan of about half the limits if there is one; of more than all where the sum over the sites overrates it."""
    for share in (0.5, 0.75, 1.0, _OVERRATED):
        with suppress(PreconditionError):
            return quick(for_all(join_bits, _more(limits, share)))
    return quick(for_all(join_bits, limits))


def _more(limits: Mapping[str, float], share: float) -> dict[str, float]:
    return {name: limit * share if name in SUMMED else limit for name, limit in limits.items()}


class HardwareLayers:
    """The sites of a network as FINN's hardware layers.

    Thresholds are counted at the layer that reads what they give, whose activation bits they depend on most; those that
    only an addition reads at the layer before, on whose sums their width depends.
    """

    def __init__(self, graph: GraphModule, join_bits: int) -> None:
        self.join_bits = join_bits
        self.graph = Pipeline(Quantize(weight_bits=8, activation_bits=8))(graph).graph
        self.originals = sites(graph)
        shared = next((site for site in self.originals.values() if site.further), None)
        if shared is not None:
            raise PreconditionError(
                f"with a board every layer must be called once, for each call is hardware of its own; {shared.name!r} is "
                f"called {len(shared.calls)} times: search without a board, or give each call a layer of its own"
            )
        self.geometries = {name: _geometry(site) for name, site in self.originals.items()}
        self.spreads: dict[tuple[str, int], tuple[float, float]] = {}
        found = sites(self.graph)
        self.by_layer = {site.modules[-1]: name for name, site in found.items()}
        self.inputs = {name: quantizer_node(site.nodes[0]) for name, site in found.items()}
        self.before = {node: name for name, node in reversed(self.inputs.items())}
        self.after: dict[str, list[Node]] = {}
        for node in self.graph.graph.nodes:
            maker = self._maker(node) if is_quantizer(module_of(node)) and node not in self.before else None
            if maker in self.geometries:
                self.after.setdefault(maker, []).append(node)

    def parts(self, name: str, shape: Shape, layer: LayerPlan) -> Iterator[Forms]:
        """The hardware layers of a choice, with the thresholds that are counted there; each in all its forms."""
        whole, weight_bits, bits = self.geometries[name], layer.weight_bits, layer.activation_bits
        if weight_bits is None or bits is None:
            raise PreconditionError(f"{name!r}: FINN computes in integers; give bits, not None, with a board")
        node = self.inputs[name]
        signed = _is_signed(node)
        entering = self._width_before(node, weight_bits, bits)
        if entering is not None and self.before[node] == name:
            yield _quantizer(shape_of(node)[1], shape_of(node)[2:], entering, bits, signed)
        first = whole
        if shape.groups is not None:
            first, whole = _factors(whole, shape)
            middle = self._width(name, first, weight_bits, bits, signed)
            yield _in_all_forms(first, weight_bits, datatype(bits, signed), middle)
            yield _quantizer(first.out_channels, first.out_size, middle, bits, True)
            signed = True
        width = self._width(name, whole, weight_bits, bits, signed)
        yield _in_all_forms(whole, weight_bits, datatype(bits, signed), width)
        for behind in self.after.get(name, ()):
            shape_behind = shape_of(behind)
            yield _quantizer(shape_behind[1], shape_behind[2:], width, self.join_bits, _is_signed(behind))

    def _width(self, name: str, layer: Geometry, weight_bits: int, bits: int, signed: bool) -> int:
        """Bits of the sums, as FINN makes them just wide enough for the weights at hand (factors: for like weights)."""
        one_sign, both_signs = self._spread(name, weight_bits)
        most = 2.0 ** (bits - 1) * both_signs if signed else (2.0**bits - 1) * one_sign
        return max(2, math.ceil(math.log2(max(most * layer.fan_in, 1))) + 1)

    def _spread(self, name: str, bits: int) -> tuple[float, float]:
        """Mean per weight of the integers of one sign, and of both, in the output channel where they are largest."""
        if (name, bits) not in self.spreads:
            layer = self.originals[name].modules[0]
            integers = weight_levels(layer.weight.detach(), bits, layer)[0].flatten(1)
            above, below = integers.clamp_min(0).mean(1), integers.clamp_max(0).abs().mean(1)
            self.spreads[name, bits] = (
                float(torch.maximum(above, below).max()),
                float((above + below).max()),
            )
        return self.spreads[name, bits]

    def _width_before(self, quantizer: Node, weight_bits: int, bits: int) -> int | None:
        """Bits of the integers that enter the thresholds of a quantizer; None for the network's input.

        The layer before is taken to have the same bits, since what it gets is another choice.
        """
        maker = self._maker(quantizer)
        if isinstance(maker, str):
            return self._width(maker, self.geometries[maker], weight_bits, bits, False)
        if maker is None:
            return None
        if not is_average_pooling(maker):
            return self.join_bits
        positions = math.prod(shape_of(tensor_inputs(maker)[0])[2:]) / math.prod(shape_of(maker)[2:])
        return self.join_bits + math.ceil(math.log2(positions))

    def _maker(self, node: Node) -> str | Node | None:
        """What computes the integers that a quantizer gets: a site, or the node of an addition or average pooling."""
        while inputs := tensor_inputs(node):
            node = inputs[0]
            if is_join(node) or is_average_pooling(node):
                return node
            name = self.by_layer.get(cast(nn.Module, module_of(node)))
            if name is not None:
                return name
        return None


def _in_all_forms(layer: Geometry, weight_bits: int, input_type: str, accumulator_bits: int) -> Forms:
    """A layer that is not grouped has one form."""
    forms: tuple[Form, ...] = ("block",) if layer.groups == 1 else forms_of(layer)
    return {form: tuple(chains(layer, weight_bits, input_type, accumulator_bits, form)) for form in forms}


def _quantizer(channels: int, size: tuple[int, ...], width: int, bits: int, signed: bool) -> Forms:
    """Thresholds, or the multiplication that is nearly always exact (`fxfactor.finn.integer.requantizing`).

    FINN reckons with block RAM for thresholds of exactly 9 or 18 bits. How many they have is known to a bit or two only, so
    no plan shall bet on it. A multiplication needs scales that tell two neighbours among 2^width integers apart: five bits
    more than these and biases twice as wide are about what trained networks have.
    """
    wider = width + 1 if width in (9, 18) else width
    scale, shift = min(width + 5, WIDEST_SCALE), width + 10
    return {
        THRESHOLDS: (thresholds(channels, size, wider, bits, signed),),
        MULTIPLICATION: (
            multiplication(channels, size, datatype(width), datatype(bits, signed), scale, 2 * width, shift),
        ),
    }


def quantizer_node(layer: Node) -> Node:
    """The node of the quantizer that a layer reads."""
    node = tensor_inputs(layer)[0]
    while not is_quantizer(module_of(node)):
        node = tensor_inputs(node)[0]
    return node


def _is_signed(quantizer: Node) -> bool:
    return is_signed(cast(nn.Module, module_of(quantizer)))


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
