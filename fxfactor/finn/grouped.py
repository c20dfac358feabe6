"""Which form each grouped convolution of a network takes on a board, and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from fxfactor.errors import FinnError
from fxfactor.finn.integer.forms import FORMS, Form, GroupedConvolution
from fxfactor.finn.layer_costs import Chain, Geometry, Prices, chains, cheapest, total
from fxfactor.finn.result import GroupedForm
from fxfactor.finn.target import Target

NARROW_ONLY = ("Pynq-Z1", "Pynq-Z2")
"""Boards whose DSPs (DSP48E1) multiply only weights above the least value of their datatype; FINN uses HLS for others."""


_FAST_CYCLES = 10_000
"""Cycles for one frame at which forms are compared where the network shall be as fast as the board allows."""


def check_form(grouped: str | None) -> None:
    """Raise FinnError where `grouped` is no form and not None."""
    if grouped is not None and grouped not in FORMS:
        raise FinnError(
            f"required: grouped={', '.join(map(repr, FORMS))} or None, the cheapest for each layer; found: {grouped!r}"
        )


def forms_on(board: str, layer: GroupedConvolution) -> tuple[Form, ...]:
    """The forms that a layer can take on a board."""
    if layer.narrow or board not in NARROW_ONLY:
        return layer.forms
    return tuple(form for form in layer.forms if form != "block")


def at_speed(target: Target) -> Target:
    """The target; where that is as fast as the board allows, one of a speed at which forms can be compared."""
    if target.target_fps == "max":
        return replace(target, target_fps=round(1e9 / target.clock_ns / _FAST_CYCLES))
    return target


def chains_to_price(layers: Sequence[GroupedConvolution], target: Target) -> list[Chain]:
    """All hardware layers whose prices decide: those of layers that have a choice."""
    return [
        chain
        for options in chains_by_form(layers, target).values()
        if len(options) > 1
        for chosen in options.values()
        for chain in chosen
    ]


def choose_forms(
    layers: Sequence[GroupedConvolution], target: Target, wanted: Form | None, prices: Mapping[Chain, Prices]
) -> dict[str, GroupedForm]:
    """A form for each layer, by the name of its output in the file: the `wanted` one, or the cheapest on the target.

    A depthwise convolution has no form "split": its branches are FINN's depthwise units. `prices`: of `chains_to_price`.
    Raises FinnError where a layer has no form on this board.
    """
    options = chains_by_form(layers, target)
    for layer in layers:
        if not options[layer.tensor]:
            raise FinnError(
                f"{layer.site}: required on {target.board}: a grouped convolution behind another layer, or weights in narrow "
                "range; found: one on the network's input; choose a larger board, or a narrow weight quantizer"
            )
    return {layer.tensor: _form(layer, options[layer.tensor], target, wanted, prices) for layer in layers}


def chains_by_form(layers: Sequence[GroupedConvolution], target: Target) -> dict[str, dict[Form, list[Chain]]]:
    """The hardware layers of every form that each layer can take, by the name of its output in the file."""
    return {
        layer.tensor: {form: list(_chains(layer, form)) for form in forms_on(target.board, layer)} for layer in layers
    }


def _form(
    layer: GroupedConvolution,
    options: Mapping[Form, Sequence[Chain]],
    target: Target,
    wanted: Form | None,
    prices: Mapping[Chain, Prices],
) -> GroupedForm:
    if wanted is not None:
        return _as_wanted(layer, tuple(options), wanted, target)
    if len(options) == 1:
        return GroupedForm(layer.site, next(iter(options)), "the only form that it can take here")
    sums = {form: total(chosen, prices) for form, chosen in options.items()}
    return GroupedForm(layer.site, cheapest(sums, target), _why(sums))


def in_order(layers: Sequence[GroupedConvolution], forms: Mapping[str, GroupedForm]) -> dict[str, GroupedForm]:
    """The forms with blocks for depthwise convolutions of several outputs a channel, which then leave in their order."""
    found = dict(forms)
    for layer in layers:
        if layer.is_depthwise and layer.outputs > layer.groups and "block" in layer.forms:
            why = f"layers behind it need its channels in their order; by cost: {forms[layer.tensor].why}"
            found[layer.tensor] = GroupedForm(layer.site, "block", why)
    return found


def _as_wanted(layer: GroupedConvolution, possible: tuple[Form, ...], wanted: Form, target: Target) -> GroupedForm:
    if wanted in possible:
        return GroupedForm(layer.site, wanted, "as asked for")
    if wanted == "block":
        raise FinnError(
            f"{layer.site}: required for a block on {target.board}: weights above the least value of their datatype (narrow "
            'range); found: one at it; use a narrow weight quantizer, grouped="split", or a board with newer DSPs'
        )
    reason = (
        "depthwise: FINN's unit for it" if layer.is_depthwise and "branches" in possible else "on the network's input"
    )
    return GroupedForm(layer.site, "branches" if "branches" in possible else "block", reason)


def _chains(layer: GroupedConvolution, form: Form) -> Sequence[Chain]:
    window = layer.window
    geometry = Geometry(
        layer.channels,
        layer.outputs,
        layer.groups,
        layer.size,
        window.kernel,
        window.strides,
        window.pads,
        window.dilations,
    )
    return list(chains(geometry, layer.weight_bits, layer.input_datatype, layer.accumulator_bits, form))


def _why(sums: dict[Form, Prices]) -> str:
    return "; ".join(
        f"{form} {found['lut']:,.0f} LUT, {found['bram']:,.0f} BRAM18, {found['dsp']:,.0f} DSP, {found['cycles']:,.0f} cycles"
        for form, found in sums.items()
    )
