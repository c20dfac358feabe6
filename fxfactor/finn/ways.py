"""How what can be built in several ways is built on a board: grouped convolutions and quantizers, all priced at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from fxfactor.finn import grouped
from fxfactor.finn.integer.forms import Choices, Form, GroupedConvolution, Staircase
from fxfactor.finn.layer_costs import Chain, cheapest, multiplication, price, thresholds, total
from fxfactor.finn.result import GroupedForm
from fxfactor.finn.target import Target

THRESHOLDS, MULTIPLICATION = "thresholds", "multiplication"


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
    quantizers = {each.tensor: _options(each) for each in staircases} if requant is None else {}
    wanted: list[Chain] = [chain for options in quantizers.values() for chain in options.values()]
    if form is None:
        wanted += grouped.chains_to_price(layers, target)
    prices = price(wanted, target) if wanted else {}
    forms = grouped.choose_forms(layers, target, form, prices)
    if requant is not None:
        return Ways(forms, frozenset(each.tensor for each in staircases) if requant else frozenset())
    chosen = {
        tensor: cheapest({way: total([chain], prices) for way, chain in options.items()}, target)
        for tensor, options in quantizers.items()
    }
    return Ways(forms, frozenset(tensor for tensor, way in chosen.items() if way == MULTIPLICATION))


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
