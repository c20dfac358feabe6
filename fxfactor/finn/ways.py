"""How what can be built in several ways is built on a board: grouped convolutions and quantizers, all priced at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import cast

from fxfactor.finn import grouped
from fxfactor.finn.boards import Resources
from fxfactor.finn.integer.forms import Choices, Form, GroupedConvolution, Staircase
from fxfactor.finn.layer_costs import (
    PLAIN,
    SUMMED,
    Chain,
    Emphasis,
    Prices,
    cheapest,
    multiplication,
    price,
    price_foldings,
    share,
    thresholds,
    total,
)
from fxfactor.finn.result import GroupedForm
from fxfactor.finn.target import Target

THRESHOLDS, MULTIPLICATION = "thresholds", "multiplication"

RESOURCES = tuple(each.name for each in fields(Resources))
"""What SUMMED is called in results and limits."""

_SPARED = 64.0
"""How much what is short counts where what layers take of it at least is compared."""


@dataclass(frozen=True)
class Ways:
    """`forms` of the grouped convolutions, and the quantizers that are `multiplied`, by the names of their tensors."""

    forms: Mapping[str, GroupedForm]
    multiplied: frozenset[str] = frozenset()

    @property
    def choices(self) -> Choices:
        """What tells the interpretation of a file."""
        return Choices(lambda layer: self.forms[layer.tensor].form, self.multiplied)

    @property
    def key(self) -> tuple[object, ...]:
        """Equal where the same hardware is built."""
        return tuple(each.form for each in self.forms.values()), self.multiplied


def choose_ways(
    layers: Sequence[GroupedConvolution],
    staircases: Sequence[Staircase],
    target: Target,
    form: Form | None = None,
    requant: bool | None = None,
) -> Ways:
    """The cheapest ways on the target, by `cheapest`; `form` and `requant` say what is asked for instead.

    Cost: where there is a choice, one process that imports FINN. Raises FinnError as `grouped.choose_forms` does.
    """
    target = grouped.at_speed(target)
    open_ones = staircases if requant is None else ()
    wanted: list[Chain] = [chain for each in open_ones for chain in _options(each).values()]
    if form is None:
        wanted += grouped.chains_to_price(layers, target)
    return _cheapest(layers, staircases, target, form, requant, price(wanted, target) if wanted else {})


def _cheapest(
    layers: Sequence[GroupedConvolution],
    staircases: Sequence[Staircase],
    target: Target,
    form: Form | None,
    requant: bool | None,
    prices: Mapping[Chain, Prices],
) -> Ways:
    forms = grouped.choose_forms(layers, target, form, prices)
    if requant is not None:
        return Ways(forms, frozenset(each.tensor for each in staircases) if requant else frozenset())
    chosen = {
        each.tensor: cheapest({way: total([chain], prices) for way, chain in _options(each).items()}, target)
        for each in staircases
    }
    return Ways(forms, frozenset(tensor for tensor, way in chosen.items() if way == MULTIPLICATION))


def spare(
    layers: Sequence[GroupedConvolution],
    staircases: Sequence[Staircase],
    target: Target,
    form: Form | None,
    requant: bool | None,
    resource: str,
    amount: float,
) -> Ways | None:
    """The cheapest ways, but that so many layers and quantizers are built in another one as spare `amount` of a resource.

    `resource`: lut, bram18, dsp or uram. Those come first that need the smallest share of the others for it. None where all
    together do not spare so much, or where `form` and `requant` leave no choice. Cost: one process that imports FINN.
    """
    options: dict[str, Mapping[str, Sequence[Chain]]] = {}
    if requant is None:
        options |= {each.tensor: {way: [chain] for way, chain in _options(each).items()} for each in staircases}
    if form is None:
        by_form = grouped.chains_by_form(layers, target)
        options |= {tensor: {str(name): found for name, found in forms.items()} for tensor, forms in by_form.items()}
    wanted = [chain for ways in options.values() for chains in ways.values() for chain in chains]
    if not wanted:
        return None
    index = RESOURCES.index(resource)
    emphasis = cast(Emphasis, tuple(_SPARED if place == index else 1 for place in range(len(SUMMED))))
    priced = price_foldings(wanted, target, (PLAIN, emphasis))
    plain = _cheapest(layers, staircases, target, form, requant, {chain: each for chain, (each, _) in priced.items()})
    prices = {chain: each for chain, (_, each) in priced.items()}
    found = []
    for tensor, ways in options.items():
        quantizer = MULTIPLICATION if tensor in plain.multiplied else THRESHOLDS
        present = total(ways[plain.forms[tensor].form if tensor in plain.forms else quantizer], prices)
        for way, chains in ways.items():
            other = total(chains, prices)
            spared = present[SUMMED[index]] - other[SUMMED[index]]
            if spared > 0 and other["cycles"] <= max(present["cycles"], target.cycles):
                dearer = share(other, target) - share(present, target)
                found.append((dearer / spared, tensor, way, spared))
    chosen: dict[str, str] = {}
    for _, tensor, way, spared in sorted(found):
        if amount > 0 and tensor not in chosen:
            chosen[tensor] = way
            amount -= spared
    if amount > 0 or not chosen:
        return None
    built = {
        tensor: GroupedForm(each.site, cast(Form, chosen[tensor]), f"it spares {resource}, which is short; {each.why}")
        if tensor in chosen
        else each
        for tensor, each in plain.forms.items()
    }
    spared_ones = {tensor for tensor in chosen if tensor not in plain.forms}
    return Ways(built, plain.multiplied ^ frozenset(spared_ones))


def in_order(layers: Sequence[GroupedConvolution], ways: Ways) -> Ways:
    """The ways with the forms that `grouped.in_order` gives."""
    return replace(ways, forms=grouped.in_order(layers, ways.forms))


def _options(quantizer: Staircase) -> dict[str, Chain]:
    bits, signed = int(quantizer.datatype.lstrip("UINT")), not quantizer.datatype.startswith("U")
    width = int(quantizer.input_datatype.lstrip("UINT"))
    return {
        THRESHOLDS: thresholds(quantizer.channels, quantizer.size, width, bits, signed),
        MULTIPLICATION: multiplication(
            quantizer.channels,
            quantizer.size,
            quantizer.input_datatype,
            quantizer.datatype,
            quantizer.scale_bits,
            quantizer.bias_bits,
            quantizer.shift,
        ),
    }
