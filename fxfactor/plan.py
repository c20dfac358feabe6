"""What to do at every site: the ladder of levels, the plan, and its JSON.

The ladder is our reading of "algorithmically increasing the granularity of depth factorization in a progressive
manner" (FactorizeNet, Yun and Wong 2020, arXiv 2011.14586): at level ℓ the spatial factor has the largest number of
groups that divides the input channels and is at most 2^ℓ, until every channel is a group of its own (depthwise).
"""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from torch import nn
from torch.fx import GraphModule

from fxfactor.dataflow import consumers, input_quantizer, is_layer
from fxfactor.errors import PreconditionError
from fxfactor.files import write_text
from fxfactor.graph import CONVOLUTIONS, Convolution, Site, is_quantizer, module_of, sites
from fxfactor.quantizers import bits_of, is_quantized_layer, weight_bits_of

if TYPE_CHECKING:
    from fxfactor.explanation import Explanation

Level = int | Literal["depthwise"]

SCHEMA_VERSION = 1
BITS = range(2, 9)
SMALLEST_INPUT = 8
"""Convolutions with fewer input channels are left as they are: there is next to nothing to save."""


def check_level(level: object) -> None:
    """Raise PreconditionError unless `level` is an int ≥ 0 or "depthwise"."""
    if level != "depthwise" and (not isinstance(level, int) or isinstance(level, bool) or level < 0):
        raise PreconditionError(
            f'level must be an int of at least 0 or "depthwise", found {level!r}; 3 is a good start'
        )


def check_bits(bits: object, what: str) -> None:
    """Raise PreconditionError unless `bits` is None (stay in floating point) or an int from 2 to 8."""
    if bits is not None and (not isinstance(bits, int) or isinstance(bits, bool) or bits not in BITS):
        raise PreconditionError(
            f"{what} must be an int from {BITS[0]} to {BITS[-1]}, or None for floating point, found {bits!r}"
        )


def groups_at(level: Level, channels: int, original_groups: int = 1) -> int:
    """Groups of the spatial factor: the largest divisor of `channels` that is at most 2^level.

    A convolution that has `original_groups` groups already gets a multiple of them, and never fewer.

    >>> [groups_at(level, 64) for level in (0, 1, 3, 6, 9, "depthwise")], groups_at(3, 36)
    ([1, 2, 8, 64, 64, 64], 6)
    """
    check_level(level)
    most = channels if level == "depthwise" else min(channels, 2 ** min(int(level), channels.bit_length()))
    wanted = (g for g in range(most, original_groups, -1) if channels % g == 0 and g % original_groups == 0)
    return next(wanted, original_groups)


def check_width(width: object) -> None:
    """Raise PreconditionError unless `width` is a finite number above 0."""
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
        raise PreconditionError(
            f"width must be a number above 0, channels between the factors for each input channel, found {width!r}; "
            "1 is the default, 2 keeps far more accuracy"
        )


def mid_at(width: float, channels: int, groups: int) -> int:
    """Channels between the factors: the multiple of `groups` that is closest to width · channels, at least `groups`.

    >>> [mid_at(width, 64, 8) for width in (1, 1.5, 2, 0.01)]
    [64, 96, 128, 8]
    """
    return max(1, round(width * channels / groups)) * groups


def macs_per_output_pixel(conv: Convolution, groups: int | None = None, mid: int | None = None) -> int:
    """Multiply-accumulates of a convolution at one output pixel, as it is or factorized with `groups` and `mid`."""
    kernel, inputs, outputs = math.prod(conv.kernel_size), conv.in_channels, conv.out_channels
    if groups is None:
        return inputs * outputs * kernel // conv.groups
    mid = inputs if mid is None else mid
    return mid * inputs * kernel // groups + mid * outputs // conv.groups


def reason_to_keep(conv: nn.Module, first: bool = False) -> str | None:
    """Why a convolution is left as it is whatever the level, or None if it can be factorized."""
    if not isinstance(conv, CONVOLUTIONS):
        return f"{type(conv).__name__} is not a convolution"
    if is_quantized_layer(conv):
        return "already quantized: factorize before quantizing"
    if first:
        return "the first convolution"
    if math.prod(conv.kernel_size) == 1:
        return "already pointwise"
    if conv.groups == conv.in_channels:
        return "already depthwise"
    if conv.in_channels < SMALLEST_INPUT:
        return f"only {conv.in_channels} input channels, fewer than {SMALLEST_INPUT}"
    return None


def choose_shape(site: Site, level: Level, first: bool, width: float = 1) -> tuple[int, int] | str:
    """Groups and mid that a level and a width stand for at a site, or the reason to leave the site as it is."""
    conv = site.modules[0]
    if site.factorized:
        return "already factorized"
    reason = reason_to_keep(conv, first)
    if reason is not None:
        return reason
    if level == 0:
        return "level 0 keeps every convolution"
    groups = groups_at(level, conv.in_channels, conv.groups)
    if groups == conv.groups:
        return f"level {level} asks for no more groups than the {conv.groups} it has"
    mid = mid_at(width, conv.in_channels, groups)
    before, after = macs_per_output_pixel(conv), macs_per_output_pixel(conv, groups, mid)
    if after >= before:
        wide = "" if width == 1 else f" and {mid} channels between the factors"
        return f"{groups} groups{wide} would not lower the MACs: {after:,} instead of {before:,} at each pixel"
    return groups, mid


@dataclass(frozen=True)
class LayerPlan:
    """What becomes of one convolution or linear layer.

    groups: groups of the spatial factor; None leaves the layer in one piece. mid: channels between the factors, a
    multiple of groups; None means as many as go in. weight_bits, activation_bits: 2 to 8, or None for floating point;
    activation_bits holds for the tensors that enter the layer (both factors of a factorized one).
    """

    groups: int | None = None
    mid: int | None = None
    weight_bits: int | None = None
    activation_bits: int | None = None

    def __post_init__(self) -> None:
        for name in ("groups", "mid"):
            value = getattr(self, name)
            if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
                raise PreconditionError(f"{name} must be a positive int or None, found {value!r}")
        if self.mid is not None and self.groups is None:
            raise PreconditionError(f"mid={self.mid} needs groups: a layer left in one piece has no middle")
        check_bits(self.weight_bits, "weight_bits")
        check_bits(self.activation_bits, "activation_bits")


@dataclass(frozen=True)
class Plan:
    """For every site what to do with it. A site that is not in `layers` is left as it is.

    join_bits: bits of the tensors that enter an addition, a concatenation or an average pooling but no layer; None
    leaves them in floating point. explanation: why, where `fxfactor.search` has found the plan; see `explain`.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    join_bits: int | None = None
    explanation: Explanation | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_bits(self.join_bits, "join_bits")

    @classmethod
    def uniform(
        cls,
        graph: GraphModule,
        level: Level = 0,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        boundary_bits: int | None = 8,
        keep: Iterable[str] = (),
        width: float = 1,
    ) -> Plan:
        """The plan that one level, one bit width and one width (mid / C_in) stand for.

        The first layer and the last one (the classifier) take `boundary_bits` where the others are quantized. Sites in
        `keep`, or below a path in `keep`, are not factorized. Raises PreconditionError on a level, bits or width out of
        range and on a path in `keep` that names nothing.
        """
        check_level(level)
        check_width(width)
        for bits, what in ((weight_bits, "weight_bits"), (activation_bits, "activation_bits")):
            check_bits(bits, what)
        known = sites(graph)
        kept = kept_sites(graph, keep)
        ends = {next(iter(known), ""), next(reversed(known), "")}
        layers: dict[str, LayerPlan] = {}
        for name, site in known.items():
            at_end = name in ends
            wanted = choose_shape(site, level, not layers, width)
            groups, mid = (None, None) if name in kept or isinstance(wanted, str) else wanted
            layers[name] = LayerPlan(
                groups=groups,
                mid=None if width == 1 else mid,
                weight_bits=boundary_bits if at_end and weight_bits is not None else weight_bits,
                activation_bits=boundary_bits if at_end and activation_bits is not None else activation_bits,
            )
        return cls(layers, join_bits=activation_bits)

    @classmethod
    def of(cls, graph: GraphModule) -> Plan:
        """The plan that a graph has been made by, read from its modules."""
        layers = {}
        for name, site in sites(graph).items():
            conv = site.modules[0]
            groups, mid = (conv.groups, conv.out_channels) if site.factorized else (None, None)
            bits = bits_of(input_quantizer(site.nodes[0]))
            layers[name] = LayerPlan(groups, mid, weight_bits_of(conv), bits)
        return cls(layers, _join_bits(graph))

    def with_layer(self, site: str, **changes: Any) -> Plan:
        """The same plan with one layer changed: `plan.with_layer("layer1.0.conv1", weight_bits=8)`."""
        require_known([site], self.layers, "the plan")
        layers = {**self.layers, site: replace(self.layers[site], **changes)}
        return replace(self, layers=layers, explanation=None)

    def explain(self) -> Explanation:
        """What each layer costs and why it was chosen: `print(plan.explain())`, or `rich.print` on a terminal.

        Raises PreconditionError for a plan that no search has found, or that was changed since.
        """
        if self.explanation is None:
            raise PreconditionError(
                "only a plan that fxfactor.search has found, unchanged, explains itself; this one was made otherwise: "
                "fxfactor.summary(fxfactor.transform(model, plan=plan)) shows what it costs"
            )
        return self.explanation

    def require_fits(self, graph: GraphModule) -> None:
        """Raise PreconditionError where the plan names a site that the graph does not have, or wants the impossible."""
        known = sites(graph)
        require_known(self.layers, known, "the network")
        for name, layer in self.layers.items():
            site = known[name]
            if layer.groups is not None and not site.factorized:
                _require_possible(name, layer, site.modules[0])

    def to_json(self) -> str:
        """The plan as JSON text: schema version, join_bits, and one line for each layer."""
        rows = [f"    {json.dumps(name)}: {json.dumps(asdict(layer))}" for name, layer in self.layers.items()]
        layers = "{\n" + ",\n".join(rows) + "\n  }" if rows else "{}"
        join_bits = json.dumps(self.join_bits)
        why = "" if self.explanation is None else f',\n  "explanation": {json.dumps(self.explanation.to_dict())}'
        return (
            f'{{\n  "schema_version": {SCHEMA_VERSION},\n  "join_bits": {join_bits},\n  "layers": {layers}{why}\n}}\n'
        )

    @classmethod
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote, or a person edited. Raises PreconditionError that says what is wrong and where."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PreconditionError(
                f"a plan must be JSON, found an error at line {error.lineno}: {error.msg}"
            ) from error
        return cls.from_dict(data)

    @classmethod
    def from_dict(cls, data: object) -> Plan:
        """The plan in a parsed JSON object."""
        if not isinstance(data, dict) or not isinstance(data.get("layers"), dict):
            raise PreconditionError('a plan must be a JSON object with "schema_version" and "layers"; see Plan.to_json')
        if data.get("schema_version") != SCHEMA_VERSION:
            found = data.get("schema_version")
            raise PreconditionError(
                f"this fxfactor reads plans of schema_version {SCHEMA_VERSION}, found {found!r}; write the plan anew"
            )
        _require_fields(data, {"schema_version", "join_bits", "layers", "explanation"}, "the plan")
        names = {each.name for each in fields(LayerPlan)}
        layers = {}
        for site, entry in data["layers"].items():
            if not isinstance(entry, dict):
                raise PreconditionError(f"layer {site!r} of the plan must be a JSON object, found {entry!r}")
            _require_fields(entry, names, f"layer {site!r} of the plan")
            try:
                layers[site] = LayerPlan(**entry)
            except PreconditionError as error:
                raise PreconditionError(f"layer {site!r} of the plan: {error}") from error
        from fxfactor.explanation import Explanation

        why = data.get("explanation")
        return cls(layers, data.get("join_bits"), None if why is None else Explanation.from_dict(why))

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all."""
        write_text(path, self.to_json(), "saving the plan")

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """Read a plan from a file. Raises PreconditionError where there is none or it is not a plan."""
        try:
            text = Path(path).read_text(encoding="utf-8")
        except OSError as error:
            raise PreconditionError(f"cannot read the plan {str(path)!r}: {error.strerror}; check the path") from error
        except UnicodeDecodeError as error:
            raise PreconditionError(f"a plan must be JSON, found a file that is no text: {str(path)!r}") from error
        return cls.from_json(text)


def kept_sites(graph: GraphModule, keep: Iterable[str]) -> set[str]:
    """The sites at or below the paths in `keep`. Raises PreconditionError for a path that names no site."""
    if isinstance(keep, str):
        raise PreconditionError(
            f"keep must be a collection of module paths, found the string {keep!r}; write ({keep!r},)"
        )
    known = sites(graph)
    kept = set()
    for path in keep:
        below = {name for name in known if name == path or name.startswith(f"{path}.")}
        if not below:
            require_known([path], known, "the network")
        kept |= below
    return kept


def require_known(names: Iterable[str], known: Iterable[str], where: str) -> None:
    """Raise PreconditionError for the first name that is not known, with the closest ones that are."""
    there = list(known)
    for name in names:
        if name not in there:
            close = difflib.get_close_matches(name, there, n=3, cutoff=0.4) or there[:3]
            raise PreconditionError(
                f"no convolution or linear layer {name!r} in {where}; did you mean {' or '.join(map(repr, close))}?"
            )


def _require_fields(entry: dict[str, Any], names: set[str], where: str) -> None:
    unknown = sorted(set(entry) - names)
    if unknown:
        raise PreconditionError(f"{where} has the unknown field {unknown[0]!r}; known are {', '.join(sorted(names))}")


def _require_possible(name: str, layer: LayerPlan, conv: nn.Module) -> None:
    if not isinstance(conv, CONVOLUTIONS):
        raise PreconditionError(f"the plan wants groups={layer.groups} at {name!r}, which is a {type(conv).__name__}; "
                                "only convolutions are factorized: set groups to null")  # fmt: skip
    groups, mid = layer.groups or 1, layer.mid or conv.in_channels
    wrong = []
    if is_quantized_layer(conv):
        wrong.append("an unquantized convolution")
    if conv.in_channels % groups:
        wrong.append(f"groups that divide the {conv.in_channels} input channels")
    if groups % conv.groups:
        wrong.append(f"a multiple of the {conv.groups} groups it has")
    if mid % groups:
        wrong.append("a mid that is a multiple of the groups")
    if wrong:
        raise PreconditionError(
            f"the plan wants groups={groups}, mid={mid} at {name!r} ({conv}); required: {'; '.join(wrong)}"
        )


def _join_bits(graph: GraphModule) -> int | None:
    """Bits of the quantizers that feed no layer directly: those before additions, concatenations and poolings."""
    found = []
    for node in graph.graph.nodes:
        module = module_of(node)
        if is_quantizer(module) and not any(is_layer(user) for user in consumers(node)):
            found.append(bits_of(module) or 0)
    return max(found, default=None)
