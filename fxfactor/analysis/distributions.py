"""How the values in every layer are distributed, before and after, and where in the network the errors arise.

The analysis of FactorizeNet (Yun and Wong 2020, arXiv 2011.14586) and of "Do All MobileNets Quantize Poorly?" (the same
authors 2021, arXiv 2104.11849): dynamic ranges, channels against their layer, quantization errors layer by layer and as
they gather. The formulas are in `fxfactor.analysis.measures`, what the rows mean in `fxfactor.analysis.table`.

Original and transformed network walk over the images side by side. Only what enters and leaves the sites of the original
is kept, and only until the transformed networks have seen the same images (`_KEPT_BYTES`).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.analysis.measures import Spread
from fxfactor.analysis.rows import spread_row, variant_rows, weight_rows
from fxfactor.analysis.table import ORIGINAL, Distribution, Distributions
from fxfactor.analysis.taps import VariantTaps, channel_axis, count, each_call, output_node
from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.capture import as_graph
from fxfactor.graph.questions import LAYERS, Site, placeholders, shape_of, sites
from fxfactor.graph.watching import evaluating, finite_inputs_of, not_empty, record
from fxfactor.progress import track

_KEPT_BYTES = 256 * 2**20
"""Memory for the original's activations at all sites; larger batches are walked in parts."""


@partial(checked, but=("qmodel",))
def distributions(
    model: nn.Module, qmodel: GraphModule | Mapping[str, GraphModule], loader: Iterable[Any]
) -> Distributions:
    """Measure every weight and activation of `qmodel` beside those of `model`, layer by layer, in one walk over `loader`.

    `model` is the original network (or the captured graph that `qmodel` was made from). `qmodel` is what
    `fxfactor.transform` gave, or several of them by name, `{"level 1": …, "level 2": …}`, which are then measured on the
    same images, side by side. `loader` yields batches (N, C, H, W), or tuples that start with one.

    Returns one row for each variant, site and tensor (`fxfactor.analysis.table.Distribution`), the original's rows
    under the variant "original". A layer that the network has and never calls gets a row that says so.

    Costs: one forward pass of `model` and two of each `qmodel`, plus about 50 ns for each value of each activation;
    memory: a histogram per tensor, and the activations of `model` on at most as many images as fit into 256 MiB.

    Raises PreconditionError where the sites of the two do not match, the loader is empty, a batch holds no tensor or does
    not fit, and where an activation is not finite, with the layer.
    """
    variants = {"transformed": qmodel} if isinstance(qmodel, GraphModule) else qmodel
    _require_graphs(variants)
    original = as_graph(model, next(iter(variants.values())))
    _require_matching(original, variants)
    walk = _Measurement(original, variants)
    with evaluating(*variants.values()):
        for batch in not_empty(track(loader, "measuring"), "the measurement of distributions"):
            walk.add(finite_inputs_of(batch, "the measurement of distributions"))
    return Distributions(tuple(chain(walk.rows(), _unreached(model, original))), walk.images)


def _require_graphs(variants: Any) -> None:
    if not isinstance(variants, Mapping) or not variants:
        raise PreconditionError(
            f"distributions need what fxfactor.transform gives, or a dict of such, found {type(variants).__name__}"
            f"{' without entries' if isinstance(variants, Mapping) else ''}; transform the model first"
        )
    for name, graph in variants.items():
        if not isinstance(graph, GraphModule):
            raise PreconditionError(
                f"distributions need what fxfactor.transform gives, found {type(graph).__name__} under {name!r}; "
                "transform the model first"
            )
    if ORIGINAL in variants:
        raise PreconditionError(f"no variant can be called {ORIGINAL!r}: that is the name of the network as it was")


def _require_matching(original: GraphModule, variants: Mapping[str, GraphModule]) -> None:
    known = sites(original)
    for name, graph in variants.items():
        found = sites(graph)
        missing, surplus = [s for s in known if s not in found], [s for s in found if s not in known]
        if missing or surplus:
            raise PreconditionError(
                f"{name!r} must have the sites of the original network; "
                + (f"it lacks {', '.join(map(repr, missing[:3]))}" if missing else "")
                + (" and " if missing and surplus else "")
                + (f"it has {', '.join(map(repr, surplus[:3]))}, which the original lacks" if surplus else "")
                + "; pass the model that it was made from"
            )
        for site in known:
            wanted, there = (shape_of(output_node(each[site]))[1:] for each in (known, found))
            if wanted != there:
                raise PreconditionError(
                    f"{name!r} gives {there} at {site!r} for one image, the original gives {wanted}; "
                    "pass the model that it was made from"
                )


class _Measurement:
    """The original and all variants on the same images, part by part."""

    def __init__(self, original: GraphModule, variants: Mapping[str, GraphModule]) -> None:
        self.sites = each_call(sites(original))
        self.images = 0
        self.inputs = {name: site.nodes[0].all_input_nodes[0] for name, site in self.sites.items()}
        self.outputs = {name: output_node(site) for name, site in self.sites.items()}
        self.original = original.eval()
        self.parameter = next(original.parameters())
        self.variants = [VariantTaps(name, graph) for name, graph in variants.items()]
        self.spreads: dict[Node, Spread] = {}
        for nodes in (self.inputs, self.outputs):
            for name, node in nodes.items():
                linear = isinstance(self.sites[name].modules[0], nn.Linear)
                self.spreads[node] = Spread(channel_axis(node, linear))
        per_image = sum(4 * math.prod(shape_of(node)[1:]) for node in self.spreads)
        self.part = max(1, _KEPT_BYTES // max(per_image, 1))

    def add(self, batch: Tensor) -> None:
        """Measure on a batch of images."""
        _require_shape(batch, self.original)
        with torch.no_grad():
            for images in batch.to(self.parameter).split(self.part):
                self._add(images)
        self.images += len(batch)

    def _add(self, images: Tensor) -> None:
        _, values = record(self.original, (images,), self.spreads)
        for node, spread in self.spreads.items():
            count(spread, values[node], ORIGINAL, str(node.target))
        wanted = {name: (values[self.inputs[name]], values[self.outputs[name]]) for name in self.sites}
        for variant in self.variants:
            variant.add(images, wanted)

    def rows(self) -> Iterator[Distribution]:
        """The rows of the original, then those of every variant."""
        outputs = {name: (node, self.spreads[node]) for name, node in self.outputs.items()}
        for name, site in self.sites.items():
            if name == site.name:
                yield from weight_rows(ORIGINAL, site)
            source, (node, spread) = self.inputs[name], outputs[name]
            yield spread_row(ORIGINAL, name, "input", str(source.target), self.spreads[source])
            yield spread_row(ORIGINAL, name, "output", str(node.target), spread)
        for variant in self.variants:
            yield from variant_rows(variant, self.sites, outputs)


def _require_shape(batch: Tensor, graph: nn.Module) -> None:
    inputs = placeholders(cast(GraphModule, graph))
    wanted = shape_of(inputs[0])
    if len(inputs) != 1:
        raise PreconditionError(
            f"distributions need a network with one input, found {len(inputs)} ({', '.join(map(str, inputs))}); "
            "wrap it in a module that takes the images and makes the others"
        )
    if batch.dim() != len(wanted) or batch.shape[1] != wanted[1]:
        raise PreconditionError(
            f"distributions: a batch must have the shape (N, {', '.join(map(str, wanted[1:]))}), found {tuple(batch.shape)}"
        )


def _unreached(model: nn.Module, original: GraphModule) -> Iterator[Distribution]:
    """Layers that the network has and no node of its graph calls: their weights, and a note."""
    reached = {str(node.target) for site in sites(original).values() for node in site.nodes}
    for path, module in model.named_modules():
        if isinstance(module, LAYERS) and path not in reached:
            for row in weight_rows(ORIGINAL, Site(path, (), (module,))):
                yield replace(row, note="never reached: no node of the captured graph calls this layer")
