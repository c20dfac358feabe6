"""Where do the numbers part? A network layer by layer: in PyTorch, in its QONNX file, in integers, in FINN's graph."""

from __future__ import annotations

import copy
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fxfactor.arguments import checked
from fxfactor.errors import FinnError
from fxfactor.finn.comparison_result import SAME, ComparedLayer, Comparison
from fxfactor.finn.integer.execute import execute_all
from fxfactor.finn.integer.interpret import QUANTIZERS, Interpretation, interpret
from fxfactor.finn.integer.streams import Stream
from fxfactor.finn.process.load import IntegerNetwork, as_array, integer_network, load_model
from fxfactor.graph.questions import is_quantizer
from fxfactor.progress import track
from fxfactor.storage.onnx_names import record_sites, site_of
from fxfactor.storage.qonnx import is_tie

if TYPE_CHECKING:
    import onnx

Array = NDArray[Any]
Settings = Mapping[str, Any]


@partial(checked, error=FinnError, but=("images",))
def compare(
    model: nn.Module | None, file: str | Path, images: Any, *, finn: bool = False, settings: Settings | None = None
) -> Comparison:
    """Compare a network layer by layer: PyTorch against the file, the file against integers, and these against FINN's graph.

    Before: `model`, the network that the file was exported from (of Brevitas layers, by fxfactor or not), or the original in
    floating point, or None; a QONNX `file`; `images` (N, C, H, W), a tensor or an array. After: how far apart they are at every
    layer whose module path the file tells, and the first place where they part, with the reason. With the original in floating
    point the errors show what quantization and factorization cost, layer by layer.

    finn: also take the file through FINN's steps, which must all give the same integers (needs finn-plus, half a minute).
    settings: for that, arguments of `fxfactor.finn.estimate` (board, target_fps, ...).

    Raises FinnError where file or images cannot be read, do not fit each other, or the model does not run on them.
    """
    exported = _named(file)
    batch = _fitting(images, exported)
    interpretation = interpret(exported)
    places = _places(exported, model)
    layers: dict[str, Sums] = {}
    for image in track(list(batch[:, None]), "comparing"):
        found = _values(exported, image)
        theirs = {} if model is None else _recorded(model, image, {place.module for place in places})
        integers = _integers(interpretation, found, image)
        for place in places:
            sums = layers.setdefault(place.tensor, Sums(place.site, place.kind))
            sums.add(found, place, theirs.get(place.module, []), integers.get(place.tensor))
    rows = tuple(sums.row() for sums in layers.values() if sums.values)
    findings = [*parting(rows, model), *_blocking(interpretation)]
    if finn:
        findings.append(_by_finn(file, batch, interpretation, settings or {}))
    return Comparison(str(file), len(batch), rows, tuple(findings))


# ---- the file ----


def _named(file: str | Path) -> onnx.ModelProto:
    """The model cleaned up, each node with the module path that it belongs to."""
    from fxfactor.storage.clean_up import clean_up

    model = load_model(file)
    record_sites(model)
    clean_up(model)
    return model


def _fitting(images: Any, model: onnx.ModelProto) -> Array:
    array = as_array(images, "images").astype(np.float32)
    shape = [size.dim_value for size in model.graph.input[0].type.tensor_type.shape.dim]
    if list(array.shape[1:]) != shape[1:] or not len(array):
        raise FinnError(
            f"required: images of shape (N, {', '.join(map(str, shape[1:]))}), as the file takes them; found: {array.shape}"
        )
    return array


def _values(model: onnx.ModelProto, image: Array) -> dict[str, Array]:
    """All tensors of the file for one image (1, C, H, W)."""
    from fxfactor.storage.clean_up import execute

    values: dict[str, Array] = {model.graph.input[0].name: image}
    try:
        for _ in execute(model, values):
            pass
    except Exception as error:  # whatever qonnx and onnxruntime raise on an operation that they do not know
        raise FinnError(
            f"required: a file that qonnx executes; found: {type(error).__name__}: {error} after {len(values)} tensors; "
            "compare the file that export wrote, before any step of FINN's"
        ) from error
    return values


@dataclass(frozen=True)
class Place:
    """A tensor of the file, and the module of the PyTorch network that gives it too."""

    site: str
    module: str
    kind: str
    tensor: str
    before: str | None
    scale: str | None


def _places(model: onnx.ModelProto, network: nn.Module | None) -> list[Place]:
    """The last tensor of every module path, and every quantizer of activations."""
    constants = {tensor.name for tensor in model.graph.initializer}
    for node in model.graph.node:  # quantized weights
        if all(name in constants for name in node.input):
            constants.update(node.output)
    paths = set() if network is None else {path for path, _ in network.named_modules() if path}
    last: dict[tuple[str, str], Place] = {}
    for node in model.graph.node:
        if node.output[0] in constants:
            continue
        site, quantizes = site_of(node, {}, ()), node.op_type in QUANTIZERS
        module = next((path for path in (site, site.removesuffix(".pointwise")) if path in paths), "")
        if quantizes or module:
            ends = (node.input[0], node.input[1]) if quantizes else (None, None)
            last[(site, node.output[0] if quantizes else "")] = Place(site, module, node.op_type, node.output[0], *ends)
    quantizing = {place.site for place in last.values() if place.scale is not None}  # such as a QuantReLU
    return [place for place in last.values() if place.scale is not None or place.site not in quantizing]


# ---- the others ----


def _recorded(model: nn.Module, image: Array, modules: set[str]) -> dict[str, list[Array]]:
    """What each of the modules gives for an image, call by call."""
    network = copy.deepcopy(model).cpu().float().eval()
    found: dict[str, list[Array]] = defaultdict(list)

    def keep(path: str, output: Any) -> None:
        value = getattr(output, "value", output)  # a QuantTensor holds it
        if isinstance(value, Tensor):
            found[path].append(value.detach().numpy())

    for path, module in network.named_modules():
        if path in modules:
            module.register_forward_hook(lambda _, __, output, path=path: keep(path, output))
    try:
        with torch.no_grad():
            network(torch.from_numpy(image))
    except Exception as error:
        raise FinnError(
            f"required: a network that takes what the file takes; found: {type(model).__name__} raises "
            f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}; give the network of the file"
        ) from error
    return found


def _integers(interpretation: Interpretation, values: Mapping[str, Array], image: Array) -> dict[str, Array]:
    """What the integers at each quantizer stand for, laid out as in the file."""
    network = _network(interpretation)
    if network is None:
        return {}
    wanted: dict[str, list[tuple[str, Stream]]] = defaultdict(list)
    for name, stream in interpretation.quantized.items():
        if not stream.functions and not stream.pools and stream.order is None:
            wanted[stream.tensor].append((name, stream))
    found: dict[str, Array] = {}

    def watch(tensor: str, integers: Array) -> None:
        for name, stream in wanted.get(tensor, ()):
            real = np.moveaxis(integers * stream.scale + stream.offset, -1, 1)
            if real.size == values[name].size:
                found[name] = real.reshape(values[name].shape)

    execute_all(network.model, network.to_integers(image), watch)
    return found


def _network(interpretation: Interpretation) -> IntegerNetwork | None:
    return None if interpretation.model is None else integer_network(interpretation, interpretation.model)


# ---- differences ----


@dataclass
class Sums:
    """Differences at one place, summed over images."""

    site: str
    kind: str
    values: int = 0
    square: float = 0.0
    reference: float | None = None
    torch_levels: int | None = None
    integer_levels: int | None = None
    torch_ties: int = 0
    integer_ties: int = 0

    def add(self, found: Mapping[str, Array], place: Place, theirs: list[Array], integers: Array | None) -> None:
        """Count the differences for one image."""
        mine = found[place.tensor]
        alike = [each.reshape(mine.shape) for each in theirs if each.size == mine.size]
        if alike:
            other = min(alike, key=lambda each: float(np.abs(each - mine).sum()))
            self.square += float(np.square(other.astype(np.float64) - mine).sum())
            self.reference = (self.reference or 0.0) + float(np.square(other.astype(np.float64)).sum())
            if place.scale is not None:
                levels, ties = _other_levels(found, place, other)
                self.torch_levels, self.torch_ties = (self.torch_levels or 0) + levels, self.torch_ties + ties
        if integers is not None:
            levels, ties = _other_levels(found, place, integers)
            self.integer_levels, self.integer_ties = (self.integer_levels or 0) + levels, self.integer_ties + ties
        if alike or integers is not None:
            self.values += mine.size

    def row(self) -> ComparedLayer:
        """The shares."""
        error = None if self.reference is None else (self.square / max(self.reference, 1e-30)) ** 0.5
        return ComparedLayer(
            self.site,
            self.kind,
            self.values,
            error,
            None if self.torch_levels is None else self.torch_levels / self.values,
            None if self.integer_levels is None else self.integer_levels / self.values,
            self.torch_ties / self.values,
            self.integer_ties / self.values,
        )


def _other_levels(found: Mapping[str, Array], place: Place, other: Array) -> tuple[int, int]:
    """How many values of a quantizer have another level, and how many of these because they lie between two."""
    assert place.scale is not None
    assert place.before is not None
    scale = found[place.scale]
    differs = np.abs(found[place.tensor] - other) > scale / 2
    steps = (found[place.before] / scale)[differs]
    return int(differs.sum()), int(is_tie(steps).sum())


def parting(rows: tuple[ComparedLayer, ...], model: nn.Module | None) -> Iterator[str]:
    """Where PyTorch and the file part first, and where integers and file do."""
    if model is not None and not any(is_quantizer(module) for module in model.modules()):
        yield from _losses(rows)
    elif model is not None:
        yield _first(rows, "PyTorch and the file", "torch", _TORCH_REASON)
    yield _first(rows, "the file and the integers", "integer", "please report it with the file")


_TORCH_REASON = (
    "the file was exported from other weights or scales than this network's (before training, or with other images for "
    "calibration), or the network's forward does more than was exported: export it again"
)


def _first(rows: tuple[ComparedLayer, ...], who: str, whose: str, reason: str) -> str:
    """The first place where two part, `whose` levels they are ("torch" or "integer")."""
    compared = 0
    for row in rows:
        differs, error = getattr(row, f"{whose}_levels"), row.torch_error if whose == "torch" else None
        if differs is None and error is None:
            continue
        compared += 1
        if differs and getattr(row, f"{whose}_ties") >= differs:
            return (
                f"{who} part first at {row.site}: {differs:.3%} of the activations lie in the middle between two levels, where "
                "float32 sums of another order round to the other one; harmless, and what follows differs by it "
                "(integers are exact: fxfactor.finn.reference gives the same in PyTorch)"
            )
        if differs or (error or 0.0) > SAME:
            return f"{who} part first at {row.site} ({row.kind}): {reason}"
    return f"{who} give the same at all {compared} places" if compared else f"{who}: nothing to compare"


def _losses(rows: tuple[ComparedLayer, ...]) -> Iterator[str]:
    """Where the error against the original in floating point grows most."""
    errors = [(row.site, row.torch_error) for row in rows if row.torch_error is not None]
    if not errors:
        yield "the original network and the file have no layer of one name: nothing to compare"
        return
    before = [0.0, *(error for _, error in errors)]
    grown = sorted(
        ((error - less, site, error) for (site, error), less in zip(errors, before, strict=False)), reverse=True
    )
    told = ", ".join(f"{site} (+{more:.1%}, to {error:.1%})" for more, site, error in grown[:3] if more > 0)
    last, error = errors[-1]
    yield f"the error against the original in floating point grows most at {told or 'no layer'}; at the end, {last}: {error:.1%}"


def _blocking(interpretation: Interpretation) -> Iterator[str]:
    if blocking := [finding for finding in interpretation.findings if finding.blocks]:
        yield f"no integers to compare with: FINN cannot take the file, {blocking[0]} (fxfactor.finn.check lists all)"


def _by_finn(file: str | Path, batch: Array, interpretation: Interpretation, settings: Settings) -> str:
    from fxfactor.finn.estimation import estimate

    network = _network(interpretation)
    if network is None:
        return "FINN's graph: there is none"
    outputs = execute_all(network.model, network.to_integers(batch))
    wanted = tuple(torch.from_numpy(network.from_integers(each, index)) for index, each in enumerate(outputs))
    verify = (torch.from_numpy(batch), wanted[0] if len(wanted) == 1 else wanted)
    try:
        found = estimate(file, verify=verify, **settings)
    except FinnError as error:
        return f"FINN's graph: {error}"
    executed = sum(step.images > 0 for step in found.steps)
    return f"FINN's graph gives the same integers after each of {executed} steps executed"
