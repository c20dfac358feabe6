"""Where a transformed network is measured while it runs: at its quantizers, at the inputs and outputs of its sites."""

from __future__ import annotations

from typing import Any, cast

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from fxfactor.analysis.measures import Difference, RoundingLoss, Spread, plain
from fxfactor.errors import PreconditionError
from fxfactor.graph.dataflow import input_quantizer, sources
from fxfactor.graph.questions import Site, is_quantizer, module_of, shape_of, sites
from fxfactor.graph.watching import watch
from fxfactor.quantization.brevitas_layers import get_limit, is_quantized_layer, is_signed, quantizer_bits
from fxfactor.quantization.levels import integer_range, scale_at

BatchNorm = nn.modules.batchnorm._BatchNorm


def output_node(site: Site) -> Node:
    """Where the values of a site leave it: its batch norm, if that is all that uses it, or else the layer itself.

    A factorized layer may be off by what its batch norm sets right again, so networks are compared behind it.
    """
    users = list(site.nodes[-1].users)
    behind = users[0] if len(users) == 1 else None
    return behind if behind is not None and isinstance(module_of(behind), BatchNorm) else site.nodes[-1]


def each_call(found: dict[str, Site]) -> dict[str, Site]:
    """One entry for every call of every site: `site`, and `site (call 2)` … where it is called again."""
    return {
        name if index == 1 else f"{name} (call {index})": Site(site.name, call, site.modules)
        for name, site in found.items()
        for index, call in enumerate(site.calls, 1)
    }


def channel_axis(node: Node, linear: bool = False) -> int:
    """The axis of the channels: 1, as images have it, and the last for what a linear layer takes and gives."""
    return -1 if linear or len(shape_of(node)) < 2 else 1


def count(spread: Spread, values: Tensor, variant: str, where: str) -> None:
    """Add `values` to `spread`. Raises PreconditionError, naming the layer, where one is not finite."""
    try:
        spread.add(values)
    except ValueError as error:
        bad = int((~values.isfinite()).sum())
        raise PreconditionError(
            f"distributions: {variant!r} computes {bad:,} NaN or infinite values of {values.numel():,} at {where!r}, all "
            "must be finite; check the images, then the weights from there back"
        ) from error


class QuantizerTap:
    """One call of an activation quantizer: what enters it and what becomes of that."""

    def __init__(self, node: Node, quantizer: nn.Module) -> None:
        self.path, self.quantizer = str(node.target), quantizer
        self.bits, self.signed = quantizer_bits(quantizer), is_signed(quantizer)
        self.low, self.high = integer_range(self.bits, self.signed)
        self.scale = scale_at(get_limit(quantizer), self.bits, self.signed)
        axis = channel_axis(node)
        self.spread, self.rounding = Spread(axis), RoundingLoss(self.low, self.high, axis)

    def add(self, before: Tensor, after: Tensor, variant: str) -> None:
        # an unsigned quantizer is the ReLU as well: cutting off what is negative is not its error
        before = plain(before)
        if not self.signed:
            before = before.clamp(0, cast("float | None", getattr(self.quantizer, "at_most", None)))
        count(self.spread, before, variant, self.path)
        self.rounding.add(before, after, self.scale)


class SiteOutput:
    """What leaves a site, against the original: with the errors of all layers before it, and with its own alone."""

    def __init__(self, name: str, site: Site) -> None:
        self.name, self.site, self.node = name, site, output_node(site)
        self.spread = Spread(channel_axis(self.node, isinstance(site.modules[0], nn.Linear)))
        self.accumulated, self.alone, self.unrounded = Difference(), Difference(), Difference()
        self.chain = _chain(site, self.node)
        self.quantizer = input_quantizer(site.nodes[0])
        found = sources(site.nodes[0].all_input_nodes[0])
        several = self.quantizer is None and any(is_quantizer(module_of(x)) for x in found)
        self.note = "alone without the rounding of its inputs: they go through several quantizers" if several else ""
        if self.chain is None:
            self.note = "no error of this layer alone: more than layers and quantizers stands between its factors"

    def add_output(self, found: Tensor, wanted: Tensor, variant: str) -> None:
        count(self.spread, found, variant, str(self.node.target))
        self.accumulated.add(wanted, found)

    def add_alone(self, inputs: Tensor, wanted: Tensor) -> None:
        """Run this site on the original's inputs, as it is and without any rounding."""
        if self.chain is None:
            return
        rounded = inputs if self.quantizer is None else self.quantizer(inputs)
        exact = inputs
        for module in self.chain:
            rounded, exact = module(rounded), _unrounded(module, exact)
        self.alone.add(wanted, rounded)
        self.unrounded.add(wanted, exact)


def _chain(site: Site, end: Node) -> list[nn.Module] | None:
    """The modules from the site's first layer to `end`, or None where it is not one after the other."""
    node, modules = end, list[nn.Module]()
    while True:
        module = module_of(node)
        if module is None or len(node.all_input_nodes) != 1:
            return None
        modules.append(module)
        if node is site.nodes[0]:
            return modules[::-1]
        node = node.all_input_nodes[0]


def _unrounded(module: nn.Module, x: Tensor) -> Tensor:
    """What a module computes with weights and activations as they are."""
    if is_quantizer(module):
        return x
    if is_quantized_layer(module):
        layer = cast(Any, module)
        return layer.inner_forward_impl(x, layer.weight, layer.bias)
    return module(x)


class VariantTaps:
    """Runs a transformed network and measures it on the way."""

    def __init__(self, name: str, graph: GraphModule) -> None:
        self.variant, self.graph = name, graph
        self.sites = each_call(sites(graph))
        calls = [node for node in graph.graph.nodes if is_quantizer(module_of(node))]
        self.quantizers = {node: QuantizerTap(node, cast(nn.Module, module_of(node))) for node in calls}
        self.outputs = {name: SiteOutput(name, site) for name, site in self.sites.items()}
        self._output_at = {output.node: output for output in self.outputs.values()}
        self.plain: dict[Node, Spread] = {}
        for site in self.sites.values():
            for layer in site.nodes:
                source = layer.all_input_nodes[0]
                if self.unquantized(layer):
                    self.plain[source] = Spread(channel_axis(source, isinstance(module_of(layer), nn.Linear)))

    def quantizers_before(self, layer: Node) -> list[Node]:
        """The quantizer calls that the input of a layer comes from."""
        return [node for node in sources(layer.all_input_nodes[0]) if node in self.quantizers]

    def unquantized(self, layer: Node) -> bool:
        """Whether the input of a layer, or a part of it, goes through no quantizer."""
        return len(self.quantizers_before(layer)) < len(sources(layer.all_input_nodes[0]))

    def add(self, images: Tensor, wanted: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Measure on a batch; `wanted` has what enters and what leaves each site in the original network."""

        def see(node: Node, arguments: tuple[Any, ...], value: Any) -> None:
            if node in self.quantizers:
                self.quantizers[node].add(arguments[0], value, self.variant)
            if node in self.plain:
                count(self.plain[node], value, self.variant, str(node.target))
            if node in self._output_at:
                output = self._output_at[node]
                output.add_output(value, wanted[output.name][1], self.variant)

        watch(self.graph, (images,), see)
        for name, output in self.outputs.items():
            output.add_alone(*wanted[name])
