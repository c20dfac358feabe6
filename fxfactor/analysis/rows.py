"""From what was measured to the rows of the table."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import Node

from fxfactor.analysis.measures import PERCENTILES, Difference, RoundingLoss, Spread, compose, kl_between
from fxfactor.analysis.table import ORIGINAL, Bins, Distribution
from fxfactor.analysis.taps import BatchNorm, QuantizerTap, SiteOutput, VariantTaps
from fxfactor.graph.questions import TRANSPOSED, Site, module_of
from fxfactor.quantization.brevitas_layers import is_quantized_layer, weight_bits_of
from fxfactor.quantization.levels import weight_range

BINS = 96
"""Bins of the histograms that are kept for the pictures; half as many for a few values."""

FEW = 20_000
ITSELF = "itself before rounding"
FLOATING = "in floating point"


def spread_row(
    variant: str, site: str, tensor: str, path: str, spread: Spread, weight: bool = False, note: str = ""
) -> Distribution:
    """A row that says how a tensor is distributed and nothing more."""
    values: dict[str, Any] = {f"p{percent:g}".replace(".", "_"): spread.percentile(percent) for percent in PERCENTILES}
    low, high = _ends(spread)
    return Distribution(
        variant, site, tensor, path, None, spread.count, len(spread.channel_min), spread.min, spread.max, spread.mean,
        spread.std, **values, dynamic_range=spread.dynamic_range, peak_to_std=spread.peak_to_std,
        channel_range_ratio=spread.channel_range_ratio, zeros=spread.zeros,
        dead_channels=spread.zero_channels if weight else spread.constant_channels,
        note=note, channel_min=tuple(spread.channel_min.tolist()), channel_max=tuple(spread.channel_max.tolist()),
        bins=Bins(low, high, _counts(spread, low, high)),
    )  # fmt: skip


def _ends(*spreads: Spread) -> tuple[float, float]:
    low, high = min(each.min for each in spreads), max(each.max for each in spreads)
    return (low, high) if low < high else (low - 0.5, high + 0.5)


def _counts(spread: Spread, low: float, high: float) -> tuple[float, ...]:
    bins = BINS if spread.count > FEW else BINS // 2
    return tuple(spread.binned(torch.linspace(low, high, bins + 1, dtype=torch.float64)).tolist())


def _with_rounding(row: Distribution, rounding: RoundingLoss, bits: int) -> Distribution:
    return replace(
        row, bits=bits, compared_with=ITSELF, **_loss(rounding.error), kl=rounding.kl, clipped=rounding.clipped,
        levels_used=rounding.levels_used, dead_after=rounding.constant_channels,
    )  # fmt: skip


def _loss(difference: Difference) -> dict[str, Any]:
    return {"qmse": difference.mean_square, "sqnr_db": difference.sqnr_db}


def quantizer_row(variant: str, site: str, tensor: str, tap: QuantizerTap) -> Distribution:
    """A row for what enters a quantizer and what becomes of it."""
    row = _with_rounding(spread_row(variant, site, tensor, tap.path, tap.spread), tap.rounding, tap.bits)
    grid = tuple(tap.scale * level for level in range(tap.low, tap.high + 1))
    bins = replace(cast(Bins, row.bins), after=tuple(tap.rounding.level_counts.tolist()), grid=grid)
    return replace(row, bins=bins)


def weight_rows(variant: str, site: Site, original: Site | None = None, folded: bool = False) -> Iterator[Distribution]:
    """The weights of a site: each factor, and what the two stand for together against the original's weight."""
    rounded = []
    names = ("spatial", "pointwise") if site.factorized else ("",)
    for name, module in zip(names, site.modules, strict=True):
        tensor, path = (f"{name}.weight", f"{site.name}.{name}") if name else ("weight", site.name)
        row, values = _weight_row(variant, site.name, tensor, path, module)
        rounded.append(values)
        yield row
    if site.factorized and original is not None:
        yield _composed_row(variant, site, rounded, original, folded)


def _weight_row(variant: str, site: str, tensor: str, path: str, layer: nn.Module) -> tuple[Distribution, Tensor]:
    weight = cast(Tensor, layer.weight).detach()
    axis = 1 if isinstance(layer, TRANSPOSED) else 0
    spread = _spread_of(weight, axis)
    note = FLOATING if variant != ORIGINAL and not is_quantized_layer(layer) else ""
    row = spread_row(variant, site, tensor, path, spread, weight=True, note=note)
    if not is_quantized_layer(layer):
        return row, weight
    with torch.no_grad():
        quantized = cast(Any, layer).quant_weight()
    bits, values = cast(int, weight_bits_of(layer)), quantized.value.detach()
    rounding = RoundingLoss(*weight_range(bits), axis, step=2 if bits == 1 else 1)
    rounding.add(weight, values, quantized.scale)
    after = _spread_of(values, axis)
    row = replace(_with_rounding(row, rounding, bits), dead_after=after.zero_channels)
    bins = cast(Bins, row.bins)
    return replace(row, bins=replace(bins, after=_counts(after, bins.low, bins.high))), values


def _spread_of(values: Tensor, axis: int) -> Spread:
    spread = Spread(axis)
    spread.add(values)
    return spread


def _composed_row(variant: str, site: Site, rounded: list[Tensor], original: Site, folded: bool) -> Distribution:
    spatial, pointwise = site.modules
    found = compose(rounded[0], rounded[1], spatial.groups, pointwise.groups)
    row = spread_row(variant, site.name, "composed weight", site.name, _spread_of(found, 0), weight=True)
    if folded:
        return replace(row, note="not compared with the original: a batch norm is folded into it")
    first, last = original.modules[0].weight.detach(), original.modules[-1]
    wanted = (
        compose(first, last.weight.detach(), original.modules[0].groups, last.groups) if original.factorized else first
    )
    return _compared(row, _spread_of(wanted, 0), _spread_of(found, 0), _difference(wanted, found))


def _difference(wanted: Tensor, found: Tensor) -> Difference:
    difference = Difference()
    difference.add(wanted, found)
    return difference


def _compared(row: Distribution, wanted: Spread, found: Spread, difference: Difference) -> Distribution:
    low, high = _ends(wanted, found)
    return replace(
        row, compared_with=ORIGINAL, **_loss(difference), kl=kl_between(wanted, found),
        bins=Bins(low, high, _counts(wanted, low, high), _counts(found, low, high)),
    )  # fmt: skip


def output_row(variant: str, name: str, output: SiteOutput, original: Spread) -> Distribution:
    """A row for what leaves a site, compared with the original."""
    row = spread_row(variant, name, "output", str(output.node.target), output.spread, note=output.note)
    row = _compared(row, original, output.spread, output.accumulated)
    row = replace(row, accumulated_error=output.accumulated.relative)
    if output.chain is None:
        return row
    return replace(row, layer_error=output.alone.relative, unrounded_error=output.unrounded.relative)


def variant_rows(
    taps: VariantTaps, originals: dict[str, Site], original_outputs: dict[str, tuple[Node, Spread]]
) -> Iterator[Distribution]:
    """All rows of a transformed network, site by site, and then those of the quantizers that feed no layer."""
    served = set[Node]()
    for name, site in taps.sites.items():
        output, (original_node, spread) = taps.outputs[name], original_outputs[name]
        folded = isinstance(module_of(original_node), BatchNorm) and not isinstance(module_of(output.node), BatchNorm)
        if name == site.name:  # the weights of a site are the same in every call
            yield from weight_rows(taps.variant, site, originals[name], folded)
        for tensor, layer in zip(("input", "between"), site.nodes, strict=False):
            calls = taps.quantizers_before(layer)
            served.update(calls)
            for index, call in enumerate(calls, 1):
                yield quantizer_row(taps.variant, name, _numbered(tensor, index, len(calls)), taps.quantizers[call])
            if taps.unquantized(layer):
                source = layer.all_input_nodes[0]
                yield spread_row(taps.variant, name, tensor, str(source.target), taps.plain[source], note=FLOATING)
        yield output_row(taps.variant, name, output, spread)
    yield from _join_rows(taps, served)


def _join_rows(taps: VariantTaps, served: set[Node]) -> Iterator[Distribution]:
    by_path: dict[str, list[QuantizerTap]] = {}
    for node, tap in taps.quantizers.items():
        if node not in served:
            by_path.setdefault(tap.path, []).append(tap)
    for path, calls in by_path.items():
        for index, tap in enumerate(calls, 1):
            yield quantizer_row(taps.variant, path, _numbered("join", index, len(calls)), tap)


def _numbered(name: str, index: int, of: int) -> str:
    return name if of == 1 else f"{name} {index}"
