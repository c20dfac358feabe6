"""How much the network's output suffers from each thing that can become of a site, measured on images.

At a site the layer is replaced, alone, by what it may become, and δ, the change of its outputs, is looked at. Three
things add up: the factors with their rounded weights on exact inputs, measured together, and the rounded activations.

`loss`: what δ does to the network's output, to second order. With g the gradient of the output's log-likelihood at the
site, ½·E[(g·δ)²] is the Kullback-Leibler divergence that δ causes (Gauss-Newton; the Fisher information of Amari 1998),
per image; the expectation is over images and over classes drawn from the softened output. Positive and negative
parts of δ may cancel in it, as they do in the network.

`output`: E‖δ‖² / E‖y − ȳ‖², the share of the site's own output that is lost; it knows nothing of what follows.

`both`: √(loss · output). The second order holds for small errors only, where it is the better guide; large ones it
underrates, and there the output is (docs/exploration.md).

`weighted`: output, times how much one share of this site's output weighs in the loss: the median of loss/output over
all choices at the site. For budgets so small that every error is large.

`recovered`: what is left after training. The three parts of `both`, with the weights of RECOVERED: training makes up for
rounded weights far better than for factors, and hardly for rounded activations.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, Literal, cast, get_args

import torch
from torch import Tensor
from torch.func import functional_call
from torch.fx import GraphModule, Node
from torch.fx.node import map_arg

from fxfactor.errors import PreconditionError
from fxfactor.factors.fit import fitted_factors
from fxfactor.factors.fit_to_outputs import importance_of, receiver_of_shift
from fxfactor.factors.least_squares import PatchMoments
from fxfactor.factors.lockstep import moments_of
from fxfactor.factors.weights import Factors, svd_factors
from fxfactor.graph.capture import capture
from fxfactor.graph.dataflow import is_addition, tensor_inputs
from fxfactor.graph.questions import Site, shape_of, sites
from fxfactor.graph.watching import record
from fxfactor.passes.factorize_depth import convolution_like, pointwise_like
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.planning.gradients import both_measures, gradients_of
from fxfactor.planning.space import Shape, Space
from fxfactor.progress import track
from fxfactor.quantization.histogram import Histogram, best_limit
from fxfactor.quantization.levels import Bits, integer_range, round_to_levels, rounded_weight, scale_at
from fxfactor.workers import ALONE, Crew

Measure = Literal["both", "loss", "output", "weighted", "recovered"]
MEASURES: tuple[Measure, ...] = get_args(Measure)

RECOVERED = (1.0, 0.2, 3.0)
"""How much factors, rounded weights and rounded activations count after training (benchmarks/prediction.py)."""

_CHUNK_BYTES = 3 << 28
_ROUNDS = 4
_HISTOGRAM_IMAGES = 32


@dataclass
class SiteErrors:
    """Squared errors at one site, by shape and bits: `weights` with exact inputs, `activations` with exact weights.

    `factors` are those of the shapes alone, nothing rounded. Each value has two entries: what it does to the loss, and the lost
    share of the site's output.
    """

    factors: dict[Shape, Tensor] = field(default_factory=dict)
    weights: dict[tuple[Shape, Bits], Tensor] = field(default_factory=dict)
    activations: dict[tuple[Shape, Bits], Tensor] = field(default_factory=dict)

    def of(self, shape: Shape, layer: LayerPlan, measure: Measure) -> float:
        """The error of a layer plan, the sum of its parts."""
        parts = self.weights[shape, layer.weight_bits], self.activations[shape, layer.activation_bits]
        if measure == "both":
            return float(sum(part.prod().sqrt() for part in parts))
        if measure == "recovered":
            return sum(weight * part for weight, part in zip(RECOVERED, self.parts(shape, layer), strict=True))
        loss, output = (parts[0] + parts[1]).tolist()
        if measure == "weighted":
            return float(output * self.weight)
        return float(loss if measure == "loss" else output)

    def parts(self, shape: Shape, layer: LayerPlan) -> tuple[float, float, float]:
        """The error by "both" of the factors alone, what rounded weights add to it, and that of rounded activations."""
        errors = (
            self.factors[shape],
            self.weights[shape, layer.weight_bits],
            self.activations[shape, layer.activation_bits],
        )
        factors, weights, activations = (float(each.prod().sqrt()) for each in errors)
        return factors, max(weights - factors, 0.0), activations

    @cached_property
    def weight(self) -> float:
        """Median of loss / output over all choices; 1 where no choice loses anything."""
        values = [each for table in (self.weights, self.activations) for each in table.values() if float(each[1]) > 0]
        return float(torch.stack([each[0] / each[1] for each in values]).median()) if values else 1.0


def measure_errors(
    graph: GraphModule, images: Sequence[Tensor], space: Space, crew: Crew = ALONE
) -> dict[str, SiteErrors]:
    """The errors of all that `space` allows at every site of a captured graph, on batches of images.

    Where `space` lets bits of tensors that enter additions be chosen, also what rounding them loses at each addition, under
    a name that is no site's, as the activations of a layer in one piece.

    Factors are fitted on the first half of the images and judged on the second.

    Cost: about as many runs of every layer as it has shapes × (weight bits + activation bits), and DRAWS backward passes.
    The sites are shared out among the workers of a crew, each of which runs the whole network for its own.
    """
    together = torch.cat(list(images)).to(next(graph.parameters()))
    if len(together) < 2:
        raise PreconditionError(
            f"a search needs at least 2 images, found {len(together)}: factors are fitted to one half, judged on the "
            "other; 512 are a good number"
        )
    measuring = _Measuring(graph, together, space)
    found = {}
    for errors in crew.steps(measuring, list(_shared_out(space, crew.workers)), "search or compress"):
        found.update(errors)
    names = [*space.shapes, *(name for name in found if name not in space.shapes)]
    return {name: found[name] for name in names}


def _shared_out(space: Space, parts: int) -> Iterator[frozenset[str]]:
    """The sites in so many parts of about the same work."""
    work = {name: space.macs[name][Shape()] * len(list(space.layers(name))) for name in space.shapes}
    shares: list[list[str]] = [[] for _ in range(parts)]
    for name in sorted(work, key=lambda each: -work[each]):
        min(shares, key=lambda share: sum(work[each] for each in share)).append(name)
    yield from (frozenset(share) for share in shares if share)


@dataclass(frozen=True)
class _Measuring:
    """What all measurements have in common."""

    graph: GraphModule
    images: Tensor
    space: Space

    def worker(self) -> _Measuring:
        """What measures here; a graph that was pickled has lost its shapes, and is captured anew (`fxfactor.workers`)."""
        if all("tensor_meta" in node.meta for node in self.graph.graph.nodes if node.op == "call_module"):
            return self
        return replace(self, graph=capture(self.graph, self.images[:1], compare=False).eval())

    def steps(self, task: frozenset[str]) -> Iterator[dict[str, SiteErrors]]:
        """The errors at some of the sites; and at the additions, with the part that has the first site."""
        frozen = {name: parameter.requires_grad for name, parameter in self.graph.named_parameters()}
        self.graph.requires_grad_(False)
        try:
            half = (len(self.images) + 1) // 2
            sensitivity = _Sensitivity(self.graph, self.space, task, _chunk_size(self.graph))
            sensitivity.fit(self.images[:half])
            yield sensitivity.judge(self.images[half:])
        finally:
            for name, parameter in self.graph.named_parameters():
                parameter.requires_grad_(frozen[name])


def _chunk_size(graph: GraphModule) -> int:
    """Images at a time, so that what the backward passes need stays below _CHUNK_BYTES."""
    elements = sum(torch.Size(shape_of(node)[1:]).numel() for node in graph.graph.nodes if "tensor_meta" in node.meta)
    return max(1, _CHUNK_BYTES // (8 * max(elements, 1)))


@dataclass(frozen=True)
class _Taps:
    """What enters and leaves the sites and additions on some images, and the network's output."""

    inputs: dict[Node, Tensor]
    outputs: dict[Node, Tensor]
    joined: dict[Node, Tensor]
    result: Any


class _Sensitivity:
    """The state of one measurement: factors and histograms from the first half, errors from the second."""

    def __init__(self, graph: GraphModule, space: Space, names: Collection[str], size: int) -> None:
        self.graph, self.space, self.size = graph, space, size
        self.sites = {name: site for name, site in sites(graph).items() if name in names}
        self.calls = [(name, node) for name, site in self.sites.items() for (node,) in site.calls]
        asked = len(space.join_bits) > 1 and next(iter(space.shapes)) in names  # with one there is nothing to choose
        self.joins = {f"into {node.name}": node for node in graph.graph.nodes if asked and is_addition(node)}
        self.factors: dict[str, dict[Shape, Factors]] = {name: {} for name in self.sites}
        self.histograms: dict[tuple[str, Shape], Histogram] = {}
        self.limits: dict[tuple[str, Shape, Bits], tuple[float, bool]] = {}

    @torch.no_grad()
    def fit(self, images: Tensor) -> None:
        """Fit factors of every shape at every site to the original's inputs and outputs."""
        splits = {name: site for name, site in self.sites.items() if len(self.space.shapes[name]) > 1}
        moments = self._moments(images, splits)
        for name, site in track(splits.items(), "fitting factors", len(splits)):
            for shape in self.space.shapes[name]:
                if shape.groups is not None:
                    self.factors[name][shape] = _fit(site, shape, moments[name])
            del moments[name]
        for part in images[:_HISTOGRAM_IMAGES].split(self.size):
            taps = self._run(part)
            for name, node in self.joins.items():
                for source in tensor_inputs(node):
                    self.histograms.setdefault((name, Shape()), Histogram()).add(taps.joined[source])
            for name, site in self.sites.items():
                for shape in self.space.shapes[name]:
                    for (node,) in site.calls:
                        x = taps.inputs[node]
                        seen = x if shape.groups is None else self._spatial(name, shape, x)
                        self.histograms.setdefault((name, shape), Histogram()).add(seen)

    def _moments(self, images: Tensor, splits: Mapping[str, Site]) -> dict[str, PatchMoments]:
        moments: dict[str, PatchMoments] = {}
        for part in track(images.split(self.size), "collecting statistics"):
            taps = self._run(part)
            for name, site in splits.items():
                for (node,) in site.calls:
                    for new in moments_of(taps.inputs[node], taps.outputs[node], site.modules[0]):
                        moments[name] = moments[name] + new if name in moments else new
        return moments

    def _run(self, images: Tensor) -> _Taps:
        source = {node: node.all_input_nodes[0] for _, node in self.calls}
        joined = {x for node in self.joins.values() for x in tensor_inputs(node)}
        result, values = record(self.graph, (images,), {*source, *source.values(), *self.joins.values(), *joined})
        return _Taps(
            {node: values[x].detach() for node, x in source.items()},
            {node: values[node] for node in (*source, *self.joins.values())},
            {x: values[x].detach() for x in joined},
            result,
        )

    # ---- judging ----

    def judge(self, images: Tensor) -> dict[str, SiteErrors]:
        """The errors of every choice at every site."""
        generator = torch.Generator().manual_seed(0)
        places = [*self.calls, *self.joins.items()]
        sums = {name: SiteErrors() for name in (*self.sites, *self.joins)}
        spread = {name: torch.zeros((), dtype=torch.float64) for name in sums}
        for part in track(images.split(self.size), "measuring sensitivity"):
            part = part.clone().requires_grad_(True)
            with torch.enable_grad():
                taps = self._run(part)
                outputs = [taps.outputs[node] for _, node in places]
                gradients = gradients_of(taps.result, outputs, generator)
            for (name, node), y, g in zip(places, outputs, gradients, strict=True):
                y = y.detach()
                spread[name] += (y - y.mean(0, keepdim=True)).square().sum(dtype=torch.float64).cpu()
                with torch.no_grad():
                    changes = (
                        self._changes(name, self.sites[name], taps.inputs[node], y)
                        if name in self.sites
                        else self._changes_of_join(name, taps.joined, y)
                    )
                    for table, key, delta in changes:
                        values: dict[Any, Tensor] = getattr(sums[name], table)
                        values[key] = values.get(key, 0) + both_measures(delta, g).cpu()
        for name, errors in sums.items():
            scale = torch.tensor([0.5 / len(images), 1 / max(float(spread[name]), 1e-30)], dtype=torch.float64)
            tables: tuple[dict[Any, Tensor], ...] = (errors.factors, errors.weights, errors.activations)
            for measured in tables:
                for choice in measured:
                    measured[choice] = measured[choice] * scale
        return sums

    def _changes(self, name: str, site: Site, x: Tensor, y: Tensor) -> Iterator[tuple[str, Any, Tensor]]:
        """Which table and key a change of the outputs belongs to, and the change."""
        for shape in self.space.shapes[name]:
            exact = y if shape.groups is None else self._apply(name, site, shape, x, None)
            yield "factors", shape, exact - y
            for bits in self.space.weight_bits[name]:
                yield "weights", (shape, bits), (exact if bits is None else self._apply(name, site, shape, x, bits)) - y
            for bits in self.space.activation_bits[name]:
                if bits is None:
                    yield "activations", (shape, bits), torch.zeros_like(y)
                    continue
                rounded_weight = self._rounded(name, Shape(), x, bits)
                yield "activations", (shape, bits), self._apply(name, site, shape, rounded_weight, None, bits) - exact

    def _changes_of_join(
        self, name: str, joined: Mapping[Node, Tensor], y: Tensor
    ) -> Iterator[tuple[str, Any, Tensor]]:
        """The same for an addition whose inputs are rounded, to the levels of one quantizer."""
        node, nothing = self.joins[name], torch.zeros_like(y)
        yield "factors", Shape(), nothing
        yield "weights", (Shape(), None), nothing
        for bits in self.space.join_bits:
            if bits is None:
                yield "activations", (Shape(), bits), nothing
                continue
            rounded = {x: self._rounded(name, Shape(), joined[x], bits) for x in tensor_inputs(node)}
            given = map_arg((node.args, node.kwargs), rounded.__getitem__)
            yield "activations", (Shape(), bits), _called(node, *given) - y

    def _apply(
        self, name: str, site: Site, shape: Shape, x: Tensor, weight_bits: Bits, middle_bits: Bits = None
    ) -> Tensor:
        """The outputs of the site in a shape, with rounded weights and a rounded tensor between the factors."""
        layer = site.modules[0]
        if shape.groups is None:
            return cast(
                Tensor, functional_call(layer, {"weight": rounded_weight(layer.weight, weight_bits, layer)}, (x,))
            )
        middle = self._spatial(name, shape, x, weight_bits)
        if middle_bits is not None:
            middle = self._rounded(name, shape, middle, middle_bits)
        factors = self.factors[name][shape]
        pointwise = pointwise_like(layer, rounded_weight(factors.pointwise, weight_bits))
        result = cast(Tensor, pointwise(middle))
        if factors.shift is None:
            return result
        return result + factors.shift.to(result).view(-1, *[1] * (result.dim() - 2))

    def _spatial(self, name: str, shape: Shape, x: Tensor, weight_bits: Bits = None) -> Tensor:
        layer, weight = self.sites[name].modules[0], self.factors[name][shape].spatial
        spatial = convolution_like(layer, rounded_weight(weight, weight_bits), cast(int, shape.groups), bias=None)
        return cast(Tensor, spatial(x))

    def _rounded(self, name: str, shape: Shape, x: Tensor, bits: int) -> Tensor:
        """The tensor that enters the site (or its pointwise factor, for a shape with groups) in `bits` bits."""
        key = name, shape, bits
        if key not in self.limits:
            histogram = self.histograms[name, shape]
            signed = bool((histogram.counts[histogram.centers < 0] > 0).any())
            self.limits[key] = best_limit(histogram, bits, signed), signed
        limit, signed = self.limits[key]
        return round_to_levels(x, scale_at(limit, bits, signed), *integer_range(bits, signed))


def _called(node: Node, arguments: Sequence[Any], options: Mapping[str, Any]) -> Tensor:
    """What a node that adds gives for other inputs."""
    if node.op == "call_method":
        return cast(Tensor, getattr(arguments[0], str(node.target))(*arguments[1:], **options))
    return cast(Tensor, cast(Any, node.target)(*arguments, **options))


def _fit(site: Site, shape: Shape, moments: PatchMoments) -> Factors:
    conv = cast(Any, site.modules[0])
    assert shape.groups is not None
    start = svd_factors(conv.weight, shape.groups, shape.mid, conv.groups)
    if receiver_of_shift(site) is None:
        moments = moments.about_zero()
    d = moments.input_mean.shape[-1]
    weight = conv.weight.double().reshape(conv.groups, conv.out_channels // conv.groups, -1)
    moments = moments.pulled_to(weight, min(0.1, 0.1 * d / moments.count))
    factors = fitted_factors(conv.weight, start, moments, None, importance_of(site), conv.groups, _ROUNDS)
    if receiver_of_shift(site) is None:
        return Factors(factors.spatial, factors.pointwise, factors.relative_error)
    return factors
