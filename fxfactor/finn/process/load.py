"""Reading a QONNX file and its sample images, with errors that say what to do; nothing here needs FINN."""

from __future__ import annotations

import json
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from fxfactor.arrays import read_arrays
from fxfactor.errors import FinnError
from fxfactor.finn.integer.builder import METADATA
from fxfactor.finn.integer.execute import execute
from fxfactor.finn.integer.forms import DEFAULT, Choices, GroupedConvolution, Staircase
from fxfactor.finn.integer.interpret import Interpretation, interpret
from fxfactor.finn.rules import Finding

if TYPE_CHECKING:
    import onnx


Array = NDArray[np.float32]
Images = "tuple[torch.Tensor | NDArray[Any], torch.Tensor | NDArray[Any]] | str | Path"
"""Inputs (N, C, H, W) and the network's outputs on them, or the path of an .npz file with arrays "x" and "y"."""


@dataclass(frozen=True)
class IntegerNetwork:
    """A network in integers, what its integers stand for, and what was found on the way (nothing that blocks)."""

    model: onnx.ModelProto
    notes: dict[str, Any]
    findings: tuple[Finding, ...]
    grouped: tuple[GroupedConvolution, ...] = ()
    staircases: tuple[Staircase, ...] = ()

    def __call__(self, images: Array) -> NDArray[np.float64]:
        """What the network computes for `images` (N, C, H, W), as PyTorch would give it, by way of integers.

        Of several outputs it is the first; `from_integers` takes the others.
        """
        return self.from_integers(execute(self.model, self.to_integers(images)))

    def to_integers(self, images: Array) -> Array:
        """Images (N, C, H, W) as the network's input quantizer sees them, laid out as (N, H, W, C); (N, C, L) as (N, L, 1, C).

        In float64, as `fxfactor.finn.reference` does it.
        """
        note = self.notes["input"]
        rounding: Any = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil}[note["rounding"]]
        integers = np.clip(rounding(images.astype(np.float64) / note["scale"]), note["lowest"], note["highest"])
        return channels_last(integers)

    def from_integers(self, integers: NDArray[Any], output: int = 0) -> NDArray[np.float64]:
        """What an output of the hardware (N, ..., channels) stands for, as PyTorch would give it: (N, channels, ...)."""
        note = self.notes["outputs"][output]
        real: NDArray[np.float64] = integers * np.asarray(note["scale"]) + np.asarray(note["offset"])
        if note["order"] is not None:
            real = real[..., np.argsort(note["order"])]
        return np.moveaxis(real, -1, 1).reshape(len(integers), *note["shape"][1:])


def channels_last(images: NDArray[Any]) -> Array:
    """Images (N, C, H, W) as (N, H, W, C), (N, C, L) as (N, L, 1, C), (N, C) as they are."""
    moved = np.moveaxis(images, 1, -1).astype(np.float32)
    return moved[:, :, None] if moved.ndim == 3 else moved


def load_model(file: str | Path) -> onnx.ModelProto:
    """The ONNX model in `file`. Raises FinnError where there is none or it cannot be read."""
    import onnx
    from google.protobuf.message import DecodeError

    path = Path(file)
    if not path.is_file():
        raise FinnError(
            f"required: a QONNX file; found: nothing at {path}; write one with fxfactor.export(qmodel, path)"
        )
    try:
        model = onnx.load(str(path))
        onnx.checker.check_model(_without_custom(model))
    except (DecodeError, onnx.checker.ValidationError) as error:
        found = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise FinnError(
            f"required: a QONNX file; found: {path} ({path.stat().st_size} bytes) is not readable as ONNX ({found}); "
            "write it again with fxfactor.export(qmodel, path)"
        ) from error
    if not model.graph.node:
        raise FinnError(f"required: a network; found: {path} has no nodes; write it again with fxfactor.export")
    _sort(model.graph, path)
    return model


def _sort(graph: onnx.GraphProto, path: Path) -> None:
    """Put the nodes in an order of execution, in place. Raise FinnError where they need each other in a circle."""
    makers = {name: index for index, node in enumerate(graph.node) for name in node.output if name}
    needs = {index: {makers[name] for name in node.input if name in makers} for index, node in enumerate(graph.node)}
    if all(need < index for index, before in needs.items() for need in before):
        return
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError as error:
        names = ", ".join(graph.node[index].name or graph.node[index].op_type for index in error.args[1][1:])
        raise FinnError(
            f"required: a graph without circles; found: {path}, where these nodes need each other: {names}; "
            "write it again with fxfactor.export(qmodel, path)"
        ) from error
    nodes = [graph.node[index] for index in order]
    del graph.node[:]
    graph.node.extend(nodes)


def _without_custom(model: onnx.ModelProto) -> onnx.ModelProto:
    """A small model with the same inputs and outputs, for the checks that custom operations would fail."""
    import onnx

    graph = onnx.helper.make_graph([], model.graph.name or "graph", [], [])
    return onnx.helper.make_model(graph, opset_imports=list(model.opset_import), ir_version=model.ir_version)


def load_integers(file: str | Path, choices: Choices = DEFAULT) -> IntegerNetwork:
    """The network in `file` in integers, grouped convolutions and quantizers as the choices say.

    Raises FinnError that lists every broken rule, its place and the remedy.
    """
    interpretation = interpret(load_model(file), choices)
    blocking = [finding for finding in interpretation.findings if finding.blocks]
    if interpretation.model is None or blocking:
        lines = "\n".join(f"  {finding}" for finding in blocking)
        raise FinnError(f"FINN cannot take {file}; see fxfactor.finn.check. Broken rules:\n{lines}")
    return integer_network(interpretation, interpretation.model)


def integer_network(interpretation: Interpretation, model: onnx.ModelProto) -> IntegerNetwork:
    """The network in integers of an interpretation; `model`: its model, where no finding blocks."""
    properties = {entry.key: entry.value for entry in model.metadata_props}
    found = interpretation
    return IntegerNetwork(model, json.loads(properties[METADATA]), found.findings, found.grouped, found.staircases)


def load_images(verify: Any, count: int = 1) -> tuple[Array, list[Array]]:
    """Inputs and `count` expected outputs as float32 arrays. Raises FinnError where they are not pairs of arrays.

    Of several outputs a pair holds a tuple, a file "y", "y1" and so on.
    """
    if isinstance(verify, str | Path):
        path = Path(verify)
        if not path.is_file():
            raise FinnError(
                f'required: an .npz file with arrays "x" and "y"; found: nothing at {path}; write one with numpy.savez'
            )
        names = ("x", "y", *(f"y{index}" for index in range(1, count)))
        given: tuple[Any, ...] = read_arrays(path, names, "images and outputs to verify with")
    else:
        if not isinstance(verify, tuple | list) or len(verify) < 2:
            raise FinnError(
                f'required: verify=(images, outputs) or an .npz file with arrays "x" and "y"; found: {type(verify).__name__}; '
                "give verify=(images, model(images))"
            )
        several = len(verify) == 2 and isinstance(verify[1], tuple | list)
        given = (verify[0], *verify[1]) if several else tuple(verify)
    arrays = [as_array(each, "verify=(images, outputs)") for each in given]
    lengths = [len(each) for each in arrays]
    if len(arrays) != 1 + count or len(set(lengths)) > 1 or not lengths[0]:
        wanted = "outputs" if count == 1 else f"{count} outputs, each of them"
        raise FinnError(
            f"required: as many {wanted} as inputs, at least one; found: {lengths}; give verify=(images, model(images))"
        )
    images, *outputs = (each.astype(np.float32) for each in arrays)
    return images, outputs


def as_array(values: Any, what: str) -> NDArray[Any]:
    """Numbers in a tensor or an array of one dimension or more. Raises FinnError on anything else."""
    try:
        array = values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)
    except ValueError:  # of rows that differ in length
        array = np.asarray(None)
    if array.ndim == 0 or array.dtype.kind not in "biuf":
        raise FinnError(
            f"required: {what}, tensors or arrays of numbers, the batch first; found: {type(values).__name__}; see its help()"
        )
    return array
