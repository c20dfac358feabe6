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
from fxfactor.finn.integer.forms import Choose, GroupedConvolution, as_blocks
from fxfactor.finn.integer.interpret import interpret
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

    def __call__(self, images: Array) -> NDArray[np.float64]:
        """What the network computes for `images` (N, C, H, W), as PyTorch would give it, by way of integers."""
        return self.from_integers(execute(self.model, self.to_integers(images)))

    def to_integers(self, images: Array) -> Array:
        """Images (N, C, H, W) as the network's input quantizer sees them, laid out as (N, H, W, C)."""
        note = self.notes["input"]
        rounding: Any = {"ROUND": np.round, "FLOOR": np.floor, "CEIL": np.ceil}[note["rounding"]]
        integers = np.clip(rounding(images / np.float32(note["scale"])), note["lowest"], note["highest"])
        return np.moveaxis(integers, 1, -1).astype(np.float32)

    def from_integers(self, integers: NDArray[Any]) -> NDArray[np.float64]:
        """What the hardware's output (N, ..., channels) stands for, as PyTorch would give it: (N, channels, ...)."""
        note = self.notes["output"]
        real: NDArray[np.float64] = integers * np.asarray(note["scale"]) + np.asarray(note["offset"])
        if note["order"] is not None:
            real = real[..., np.argsort(note["order"])]
        return np.moveaxis(real, -1, 1).reshape(len(integers), *note["shape"][1:])


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


def load_integers(file: str | Path, choose: Choose = as_blocks) -> IntegerNetwork:
    """The network in `file` in integers, grouped convolutions in the form that `choose` gives.

    Raises FinnError that lists every broken rule, its place and the remedy.
    """
    interpretation = interpret(load_model(file), choose)
    blocking = [finding for finding in interpretation.findings if finding.blocks]
    if interpretation.model is None or blocking:
        lines = "\n".join(f"  {finding}" for finding in blocking)
        raise FinnError(f"FINN cannot take {file}; see fxfactor.finn.check. Broken rules:\n{lines}")
    properties = {entry.key: entry.value for entry in interpretation.model.metadata_props}
    notes = json.loads(properties[METADATA])
    return IntegerNetwork(interpretation.model, notes, interpretation.findings, interpretation.grouped)


def load_images(verify: Any) -> tuple[Array, Array]:
    """Inputs and expected outputs as float32 arrays. Raises FinnError where they are not pairs of arrays."""
    if isinstance(verify, str | Path):
        path = Path(verify)
        if not path.is_file():
            raise FinnError(
                f'required: an .npz file with arrays "x" and "y"; found: nothing at {path}; write one with numpy.savez'
            )
        pair: tuple[Any, ...] = read_arrays(path, ("x", "y"), "images and outputs to verify with")
    else:
        pair = tuple(each.detach().cpu().numpy() if hasattr(each, "detach") else np.asarray(each) for each in verify)
    if len(pair) != 2 or len(pair[0]) != len(pair[1]) or not len(pair[0]):
        raise FinnError(
            f"required: as many outputs as inputs, at least one; found: {[len(each) for each in pair]}; "
            "give verify=(images, model(images))"
        )
    return pair[0].astype(np.float32), pair[1].astype(np.float32)


def load_array(file: str | Path) -> Array:
    """The array in an .npy file as float32. Raises FinnError where there is none."""
    path = Path(file)
    if not path.is_file():
        raise FinnError(f"required: an .npy file with images; found: nothing at {path}; write one with numpy.save")
    try:
        array: Array = np.load(path).astype(np.float32)
    except (ValueError, AttributeError) as error:
        raise FinnError(
            f"required: an .npy file with images; found: {path} ({error}); write one with numpy.save"
        ) from error
    return array
