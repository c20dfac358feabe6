"""The plan: for every site what to do with it, and its JSON."""

from __future__ import annotations

import difflib
import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from torch.fx import GraphModule

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.files import write_text
from fxfactor.graph.dataflow import consumers, input_quantizer, is_layer
from fxfactor.graph.questions import CONVOLUTIONS, is_quantizer, module_of, sites
from fxfactor.plan.ladder import (
    MOST_BITS,
    Level,
    check_bits,
    check_join_bits,
    check_level,
    check_weight_bits,
    check_width,
    choose_shape,
)
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.quantization.brevitas_layers import bits_of, is_quantized_layer, weight_bits_of

if TYPE_CHECKING:
    from fxfactor.plan.explanation import Explanation


SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """For every site what to do with it. A site that is not in `layers` is left as it is.

    join_bits: bits of the tensors that enter an addition, a concatenation or an average pooling but no layer; None
    leaves them in floating point. residual_bits: bits of the tensors that enter an addition and a layer as well; layers that
    want fewer read a copy in their own bits. None: as many as the layers want. explanation: why, where `fxfactor.search` has
    found the plan; see `explain`.
    """

    layers: Mapping[str, LayerPlan] = field(default_factory=dict)
    join_bits: int | None = None
    residual_bits: int | None = None
    explanation: Explanation | None = field(default=None, compare=False, repr=False)

    def __post_init__(self) -> None:
        check_bits(self.join_bits, "join_bits")
        check_bits(self.residual_bits, "residual_bits")

    @classmethod
    @partial(checked, but=("keep",))
    def uniform(
        cls,
        graph: GraphModule,
        level: Level = 0,
        weight_bits: int | None = None,
        activation_bits: int | None = None,
        boundary_bits: int | None = 8,
        keep: Iterable[str] = (),
        width: float = 1,
        join_bits: int | None = None,
    ) -> Plan:
        """The plan that one level, one bit width and one width (mid / C_in) stand for.

        The first layer and the last one (the classifier) take `boundary_bits` where the others are quantized. join_bits:
        of everything that enters an addition, also where a layer reads it; None: 8 where activations are quantized. Sites in
        `keep`, or below a path in `keep`, are not factorized. Raises PreconditionError on a level, bits or width out of
        range and on a path in `keep` that names nothing.
        """
        check_level(level)
        check_width(width)
        check_weight_bits(weight_bits, "weight_bits")
        check_bits(activation_bits, "activation_bits")
        check_join_bits(join_bits, activation_bits)
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
        if activation_bits is not None and join_bits is None:
            join_bits = MOST_BITS
        return cls(layers, join_bits, join_bits)

    @classmethod
    @checked
    def of(cls, graph: GraphModule) -> Plan:
        """The plan that a graph has been made by, read from its modules."""
        layers = {}
        for name, site in sites(graph).items():
            conv = site.modules[0]
            groups, mid = (conv.groups, conv.out_channels) if site.factorized else (None, None)
            read = [bits_of(input_quantizer(node)) for call in site.calls for node in call]
            # of several quantizers, also between factors, the least: more bits come from what else reads one
            bits = min((each for each in read if each is not None), default=None)
            layers[name] = LayerPlan(groups, mid, weight_bits_of(conv), bits)
        return cls(layers, _join_bits(graph), graph.meta.get(RESIDUAL_BITS))

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
        head = {"schema_version": SCHEMA_VERSION, "join_bits": self.join_bits}
        head |= {} if self.residual_bits is None else {"residual_bits": self.residual_bits}
        lines = "".join(f'  "{name}": {json.dumps(value)},\n' for name, value in head.items())
        why = "" if self.explanation is None else f',\n  "explanation": {json.dumps(self.explanation.to_dict())}'
        return f'{{\n{lines}  "layers": {layers}{why}\n}}\n'

    @classmethod
    @checked
    def from_json(cls, text: str) -> Plan:
        """Read what `to_json` wrote, or a person edited. Raises PreconditionError that says what is wrong and where."""
        try:
            data = json.loads(text)
        except json.JSONDecodeError as error:
            raise PreconditionError(
                f"a plan must be JSON, found an error at line {error.lineno}: {error.msg}"
            ) from error
        except (
            ValueError,
            RecursionError,
        ) as error:  # a number of thousands of digits, brackets in thousands of brackets
            raise PreconditionError(f"a plan must be JSON as Plan.to_json writes it, found: {error}") from error
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
        require_fields(data, {"schema_version", "join_bits", "residual_bits", "layers", "explanation"}, "the plan")
        names = {each.name for each in fields(LayerPlan)}
        layers = {}
        for site, entry in data["layers"].items():
            if not isinstance(entry, dict):
                raise PreconditionError(f"layer {site!r} of the plan must be a JSON object, found {entry!r}")
            require_fields(entry, names, f"layer {site!r} of the plan")
            try:
                layers[site] = LayerPlan(**entry)
            except PreconditionError as error:
                raise PreconditionError(f"layer {site!r} of the plan: {error}") from error
        from fxfactor.plan.explanation import Explanation

        why = data.get("explanation")
        why = None if why is None else Explanation.from_dict(why)
        return cls(layers, data.get("join_bits"), data.get("residual_bits"), why)

    def save(self, path: str | Path) -> None:
        """Write the plan to a file, whole or not at all."""
        write_text(path, self.to_json(), "saving the plan")

    @classmethod
    @checked
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
    if not isinstance(keep, Iterable) or isinstance(keep, bytes):
        raise PreconditionError(f"keep must be a collection of module paths, found {keep!r}; write () for none")
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
            close = difflib.get_close_matches(str(name), there, n=3, cutoff=0.4) or there[:3]
            meant = f"did you mean {' or '.join(map(repr, close))}?" if close else "there is none at all"
            raise PreconditionError(f"no convolution or linear layer {name!r} in {where}; {meant}")


def require_fields(entry: dict[str, Any], names: set[str], where: str) -> None:
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
    most = max(conv.in_channels, conv.out_channels) * math.prod(conv.kernel_size)
    if mid > most:
        wrong.append(f"a mid of at most {most:,}, with which the factors are larger than what they stand for")
    if wrong:
        raise PreconditionError(
            f"the plan wants groups={groups}, mid={mid} at {name!r} ({conv}); required: {'; '.join(wrong)}"
        )


JOIN_BITS = "fxfactor.join_bits"
"""Key of `graph.meta` under which `passes.Quantize` notes the join_bits that it was given."""
RESIDUAL_BITS = "fxfactor.residual_bits"
"""The same for residual_bits."""


def _join_bits(graph: GraphModule) -> int | None:
    """What was noted, else the most bits of quantizers before additions, concatenations and poolings alone; None without any.

    The bits themselves tell less: what a layer reads behind such a join is as wide as the layer wants.
    """
    found = []
    for node in graph.graph.nodes:
        module = module_of(node)
        if is_quantizer(module) and not any(is_layer(user) for user in consumers(node)):
            found.append(bits_of(module) or 0)
    return graph.meta.get(JOIN_BITS, max(found)) if found else None
