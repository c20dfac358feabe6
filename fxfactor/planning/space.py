"""What can become of every site, what each possibility costs, and which sites must agree on activation bits."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch.fx import GraphModule

from fxfactor.analysis.cost import FLOAT_BITS, cost
from fxfactor.errors import PreconditionError
from fxfactor.graph.dataflow import input_quantizer
from fxfactor.graph.questions import CONVOLUTIONS, Site, sites
from fxfactor.passes import Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.plan.ladder import BITS, WEIGHT_BITS, Level, check_bits, check_width, choose_shape, macs_per_output_pixel
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import kept_sites
from fxfactor.quantization.levels import Bits


@dataclass(frozen=True)
class Option:
    """One thing that can become of a site: the layer's plan, what it loses and what it costs."""

    layer: LayerPlan
    loss: float
    costs: Mapping[str, float]


@dataclass(frozen=True)
class SiteOptions:
    """All that can become of a site. Sites of the same `shares` read one quantizer and need the same activation bits."""

    site: str
    shares: str
    options: tuple[Option, ...]


@dataclass(frozen=True)
class Shape:
    """Groups and mid of a site, (None, None) in one piece."""

    groups: int | None = None
    mid: int | None = None


Choice = tuple[str, Shape, LayerPlan, Bits]
"""A site, what becomes of it, and the bits of tensors that enter additions."""


@dataclass(frozen=True)
class Space:
    """What a search may choose: the shapes and bits of every site, MACs and weights of each, and who shares bits.

    whole: costs of the network in one piece at 32 bits, and what the board has. join_bits: what tensors that enter additions
    may have, all the same. hardware: FINN's costs of every choice with these, for each folding that may be best.
    """

    shapes: Mapping[str, tuple[Shape, ...]]
    weight_bits: Mapping[str, tuple[Bits, ...]]
    activation_bits: Mapping[str, tuple[Bits, ...]]
    sharing: Mapping[str, str]
    macs: Mapping[str, Mapping[Shape, int]]
    weights: Mapping[str, Mapping[Shape, int]]
    whole: Mapping[str, float] = field(default_factory=dict)
    join_bits: tuple[Bits, ...] = (8,)
    hardware: Mapping[Choice, tuple[Mapping[str, float], ...]] = field(default_factory=dict)

    def layers(self, site: str) -> Iterator[tuple[Shape, LayerPlan]]:
        """Every layer plan that the site can have, with its shape."""
        for shape in self.shapes[site]:
            for weight in self.weight_bits[site]:
                for activation in self.activation_bits[site]:
                    yield shape, LayerPlan(shape.groups, shape.mid, weight, activation)

    def options(self, site: str, join_bits: Bits) -> Iterator[tuple[Shape, LayerPlan, dict[str, float]]]:
        """Every layer plan that the site can have, with its shape and costs; several times where there are several foldings."""
        for shape, layer in self.layers(site):
            costs = self.costs(site, shape, layer)
            for hardware in self.hardware.get((site, shape, layer, join_bits), ({},)):
                yield shape, layer, {**costs, **hardware}

    def costs(self, site: str, shape: Shape, layer: LayerPlan) -> dict[str, float]:
        """MACs, BOPs and bits of weights, as `fxfactor.cost` counts them."""
        macs, weights = self.macs[site][shape], self.weights[site][shape]
        weight_bits, activation_bits = layer.weight_bits or FLOAT_BITS, layer.activation_bits or FLOAT_BITS
        return {
            "macs": macs,
            "bops": macs * weight_bits * activation_bits,
            "weight_bits": weights * weight_bits,
        }


def space_of(
    graph: GraphModule,
    levels: Iterable[Level],
    bits: Sequence[Bits],
    weight_bits: Sequence[Bits] | None = None,
    activation_bits: Sequence[Bits] | None = None,
    widths: Sequence[float] = (1,),
    boundary_bits: Bits = 8,
    keep: Iterable[str] = (),
    join_bits: Bits | Sequence[Bits] = 8,
) -> Space:
    """Lay out the space of a search on a captured graph.

    levels: their groups are the shapes to choose from, one piece is always among them. widths: mid / C_in of the
    factors. boundary_bits: bits of the first and the last layer, None to let the search choose. join_bits: of tensors that enter
    additions, the same everywhere; several to choose from.
    """
    known = sites(graph)
    kept = kept_sites(graph, keep)
    weights_at, activations_at = (
        _bits(weight_bits, bits, "weight_bits"),
        _bits(activation_bits, bits, "activation_bits"),
    )
    ends = {next(iter(known), ""), next(reversed(known), "")}
    fixed = None if boundary_bits is None or weights_at == activations_at == (None,) else (boundary_bits,)
    levels = tuple(levels)
    for width in widths:
        check_width(width)
    shapes, macs, weights = {}, {}, {}
    costs = {layer.path: layer for layer in cost(graph).layers}
    for index, (name, site) in enumerate(known.items()):
        found = [Shape()] if name in kept else [Shape(), *_shapes(site, levels, widths, index == 0)]
        shapes[name] = tuple(dict.fromkeys(found))
        macs[name] = {shape: _macs(costs[name].macs, site, shape) for shape in shapes[name]}
        weights[name] = {shape: _weights(site, shape) for shape in shapes[name]}
    total = sum(each[Shape()] for each in macs.values()), sum(each[Shape()] for each in weights.values())
    return Space(
        shapes,
        {name: fixed if fixed and name in ends else weights_at for name in known},
        {name: fixed if fixed and name in ends else activations_at for name in known},
        sharing(graph),
        macs,
        weights,
        {"macs": total[0], "bops": total[0] * FLOAT_BITS**2, "weight_bits": total[1] * FLOAT_BITS},
        _bits(join_bits if isinstance(join_bits, Sequence) else (join_bits,), bits, "join_bits"),
    )


def sharing(graph: GraphModule) -> dict[str, str]:
    """For every site a name for the quantizer it would read from, as `passes.Quantize` places them.

    A site with several calls reads from several: all that read from any of them have one name.
    """
    import networkx

    quantized = Pipeline(Quantize(weight_bits=8, activation_bits=8))(graph).graph
    names = {module: name for name, module in quantized.named_modules()}
    found: dict[str, str] = {}
    together = networkx.Graph()
    for name, site in sites(quantized).items():
        read = [quantizer for call in site.calls if (quantizer := input_quantizer(call[0])) is not None]
        found[name] = names[read[0]] if read else name
        networkx.add_path(together, (names[quantizer] for quantizer in read))
    one = {name: min(component) for component in networkx.connected_components(together) for name in component}
    return {site: one.get(name, name) for site, name in found.items()}


def _bits(given: Sequence[Bits] | None, both: Sequence[Bits], what: str) -> tuple[Bits, ...]:
    chosen = both if given is None else given
    if not chosen:
        raise PreconditionError(f"a search needs at least one of {what}, found none; (2, 3, 4, 6, 8) is a good start")
    for each in chosen:
        check_bits(each, what, BITS if what != "weight_bits" else WEIGHT_BITS)
    return tuple(sorted(set(chosen), key=lambda each: each or FLOAT_BITS))


def _shapes(site: Site, levels: Iterable[Level], widths: Sequence[float], first: bool) -> Iterator[Shape]:
    conv: Any = site.modules[0]
    for level in levels:
        for width in widths:
            shape = choose_shape(site, level, first, width)
            if isinstance(shape, str):
                continue
            groups, mid = shape
            yield Shape(groups, None if mid == conv.in_channels else mid)


def _macs(in_one_piece: int, site: Site, shape: Shape) -> int:
    conv = site.modules[0]
    if not isinstance(conv, CONVOLUTIONS):
        return in_one_piece
    positions = in_one_piece // macs_per_output_pixel(conv)
    return positions * macs_per_output_pixel(conv, shape.groups, shape.mid)


def _weights(site: Site, shape: Shape) -> int:
    conv = site.modules[0]
    if shape.groups is None:
        return math.prod(conv.weight.shape)
    return macs_per_output_pixel(conv, shape.groups, shape.mid)
