"""QONNX on disk, proven: the file is executed again in qonnx and compared with the torch model before it appears."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils._pytree import tree_leaves

from fxfactor.arguments import checked
from fxfactor.errors import ExportError, PreconditionError
from fxfactor.files import new_file
from fxfactor.graph import put_module
from fxfactor.graph.compare import random_inputs, relative_difference
from fxfactor.graph.example_inputs import as_tuple
from fxfactor.graph.normal_form import finish
from fxfactor.graph.questions import is_quantizer, module_of, placeholders
from fxfactor.graph.tracing import is_random_drop, silent
from fxfactor.graph.watching import record
from fxfactor.passes.legalize_for_finn import LegalizeForFinn
from fxfactor.pipeline import Pipeline
from fxfactor.quantization.threshold_curve import ThresholdCurve
from fxfactor.storage.onnx_names import MARK, record_sites

if TYPE_CHECKING:
    import onnx

    from fxfactor.storage.clean_up import Values

TOLERANCE = 1e-5
"""Largest relative difference between the file, executed in qonnx, and the torch model."""

_SPARED = ("_jit_pass_lint", "_jit_onnx_log")

_TIE = 1e-3
"""How near to the middle between two levels, in steps, a value must be for float32 rounding to tip it over."""


@dataclass(frozen=True)
class Exported:
    """What `fxfactor.export` wrote and how it was checked.

    relative_difference: largest |qonnx − torch| / largest |torch| on the example inputs. rounding_ties: activations that
    lay in the middle between two levels, where float32 sums of another order round to the other one; the check took
    torch's side there and went on.
    """

    path: Path
    relative_difference: float
    rounding_ties: int


@partial(checked, but=("qmodel", "example_inputs"))
def export(
    qmodel: GraphModule,
    path: str | Path,
    target: Literal["qonnx", "finn"] = "qonnx",
    example_inputs: Tensor | tuple[Any, ...] | None = None,
) -> Exported:
    """Write the network as QONNX, with the shapes of its capture (or of `example_inputs`), as it is in eval mode.

    The file is cleaned up as qonnx does it, executed by qonnx and compared with `qmodel` on `example_inputs` (normally
    distributed ones where none are given): a file that differs by more than 1e-5 of the largest output is not left behind.
    Nothing is rewritten for either target: `fxfactor.finn` takes grouped convolutions as they are and builds each in the
    form that is cheapest on the board. For FINN's own flow, without `fxfactor.finn`, export
    `fxfactor.passes.LegalizeForFinn()(qmodel).graph`, which splits them.

    Raises PreconditionError where `qmodel` is no captured graph or the place cannot be written to, ExportError where a
    layer has no ONNX form or the file computes something else.
    """
    if not isinstance(qmodel, GraphModule):
        raise PreconditionError(
            f"export needs what fxfactor.transform gives, found {type(qmodel).__name__}; transform the model first"
        )
    if target not in ("qonnx", "finn"):
        raise PreconditionError(f'target must be "qonnx" or "finn", found {target!r}')
    graph = _frozen(qmodel)
    inputs = random_inputs(graph) if example_inputs is None else _floats(as_tuple(example_inputs))
    with new_file(path, "exporting") as temporary:
        _write(graph, inputs, temporary)
        difference, ties = _compare(graph, inputs, temporary)
    return Exported(Path(path), difference, ties)


def _floats(inputs: tuple[Any, ...]) -> tuple[Tensor, ...]:
    """In float32 on the CPU. Raises PreconditionError where one is no tensor, which no file has as an input."""
    if strange := [value for value in inputs if not isinstance(value, Tensor)]:
        raise PreconditionError(
            f"export(example_inputs=…): tensors are required, found {type(strange[0]).__name__}; give those of forward"
        )
    return tuple(x.cpu().float() for x in inputs)


def _frozen(qmodel: GraphModule) -> GraphModule:
    """A float32 copy on the CPU in eval mode, without what only works in training, and in operations that ONNX has."""
    graph = copy.deepcopy(qmodel).eval().cpu().float()
    for node in list(graph.graph.nodes):
        module = module_of(node)
        if module is not None and is_random_drop(module):
            node.replace_all_uses_with(node.args[0])
            graph.graph.erase_node(node)
        elif isinstance(module, ThresholdCurve):
            put_module(graph, str(node.target), module.as_chain())
    return finish(graph)


def write_qonnx(model: nn.Module, inputs: tuple[Any, ...], path: Path, **options: Any) -> None:
    """Brevitas' export as it is, nothing cleaned up and nothing compared. Raises what torch and Brevitas raise."""
    with warnings.catch_warnings(), _without_lint_and_log():
        warnings.simplefilter("ignore")
        from brevitas.export import export_qonnx

        # the dynamo exporter breaks residual additions (Xilinx/brevitas issue 1608)
        export_qonnx(model, inputs if len(inputs) > 1 else inputs[0], str(path), dynamo=False, **options)


@contextmanager
def _without_lint_and_log() -> Iterator[None]:
    """What TorchScript's exporter does besides its work.

    It checks its own graph ten times, in a time that grows with the square of the layers: for hundreds of branches nine tenths of
    the export. What it writes is executed and compared in any case. And where it fails it prints its graph, thousands
    of lines that no redirection catches.
    """
    functions = {name: getattr(torch._C, name) for name in _SPARED if hasattr(torch._C, name)}  # not in a torch to come
    vars(torch._C).update(dict.fromkeys(functions, lambda *arguments: None))
    try:
        yield
    finally:
        vars(torch._C).update(functions)


def _write(graph: GraphModule, inputs: tuple[Tensor, ...], path: Path) -> None:
    names = [node.name for node in placeholders(graph)][: len(inputs)]
    try:
        with silent():
            write_qonnx(graph, inputs, path, input_names=names)
    except (torch.onnx.errors.OnnxExporterError, RuntimeError) as error:
        raise ExportError(
            f"the network has no ONNX form: {str(error).strip().splitlines()[0]}; "
            "replace that operation in the model, or export a part without it"
        ) from error


def _compare(graph: GraphModule, inputs: tuple[Tensor, ...], path: Path) -> tuple[float, int]:
    """Clean up the file, execute it and compare; return the relative difference and the number of rounding ties."""
    import onnx

    from fxfactor.storage.clean_up import clean_up

    model = onnx.load(str(path))
    record_sites(model, [str(node.target) for node in graph.graph.nodes if node.op == "call_module"])
    clean_up(model)
    found, ties = _execute(model, inputs), 0
    difference = relative_difference(found, _outputs(graph, inputs))
    if not difference <= TOLERANCE:
        found, ties = execute_with_ties(model, graph, inputs)
        difference = relative_difference(found, _outputs(graph, inputs))
    if not difference <= TOLERANCE:
        raise ExportError(
            f"the exported file computes something else: relative difference {difference:.2g} on the example input, at "
            f"most {TOLERANCE:g} was required; nothing was written. Please report it with the model"
        )
    onnx.save(model, str(path))
    return difference, ties


def _outputs(graph: GraphModule, inputs: tuple[Tensor, ...]) -> list[Any]:
    with torch.no_grad():
        return tree_leaves(graph(*inputs))


def _feeds(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> Values:
    """The inputs by name; Brevitas lists initializers as inputs too."""
    initializers = {tensor.name for tensor in model.graph.initializer}
    infos = [info for info in model.graph.input if info.name not in initializers]
    return {info.name: x.numpy() for info, x in zip(infos, inputs, strict=True)}


def _results(model: onnx.ModelProto, values: Values) -> list[Tensor]:
    return [torch.from_numpy(np.asarray(values[info.name])) for info in model.graph.output]


def _execute(model: onnx.ModelProto, inputs: tuple[Tensor, ...]) -> list[Tensor]:
    from fxfactor.storage.clean_up import execute

    values = _feeds(model, inputs)
    for _ in execute(model, values):
        pass
    return _results(model, values)


def execute_with_ties(
    model: onnx.ModelProto, graph: GraphModule, inputs: tuple[Tensor, ...]
) -> tuple[list[Tensor], int]:
    """Execute node by node, quantizer by quantizer beside torch; where the two differ by a rounding tie, go torch's way.

    `model`: cleaned up (`fxfactor.storage.clean_up`).
    """
    from fxfactor.storage.clean_up import execute

    quantizers = [node for node in graph.graph.nodes if is_quantizer(module_of(node))]
    with torch.no_grad():
        _, recorded = record(graph, inputs, quantizers)
    quantized = [value.numpy() for value in recorded.values()]
    constants = {tensor.name for tensor in model.graph.initializer}
    ties = 0
    values = _feeds(model, inputs)
    for node in execute(model, values):
        if all(name in constants for name in node.input):
            constants.update(node.output)
        if node.op_type == "Quant" and node.input[0] not in constants:
            wanted = _take_closest(quantized, values[node.output[0]])
            ties += settle_ties(node, values, wanted)
    return _results(model, values), ties


def _take_closest(candidates: list[np.ndarray], found: np.ndarray) -> np.ndarray:
    """Remove from `candidates` the tensor that `found` is the counterpart of: branches may be in another order."""
    fitting = [index for index, x in enumerate(candidates) if x.shape == found.shape]
    return candidates.pop(min(fitting, key=lambda index: float(np.abs(candidates[index] - found).sum())))


def settle_ties(node: Any, context: dict[str, np.ndarray], wanted: np.ndarray) -> int:
    """Take torch's values where they differ by a tie only; raise ExportError where they differ otherwise."""
    found, scale = context[node.output[0]], context[node.input[1]]
    differs = np.abs(found - wanted) > scale / 2
    steps = (context[node.input[0]] / scale)[differs]
    if not is_tie(steps).all():
        raise ExportError(
            f"the exported file computes something else from {node.doc_string.removeprefix(MARK) or node.name} on: "
            f"{len(steps)} activations of {found.size} get another level than in torch; nothing was written. "
            "Please report it with the model"
        )
    context[node.output[0]] = wanted.astype(np.float32)
    return len(steps)


def is_tie(steps: np.ndarray) -> np.ndarray:
    """Where values, in steps of a quantizer, lie so near to the middle between two levels that float32 rounding decides."""
    nearness: np.ndarray = np.abs(np.abs(steps - np.floor(steps)) - 0.5) <= _TIE
    return nearness


def legalize(graph: GraphModule) -> GraphModule:
    """The same function in forms that FINN's own flow accepts (`fxfactor.passes.LegalizeForFinn`); `graph` is kept.

    Raises GraphError where the rewritten network computes something else, tried in float64.
    """
    return Pipeline(LegalizeForFinn(), verify=True)(graph).graph
