"""What FINN would refuse, before anything is exported or built."""

from __future__ import annotations

import copy
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import ExportError, FinnError
from fxfactor.finn import rules
from fxfactor.finn.integer.interpret import interpret
from fxfactor.finn.process.load import load_model
from fxfactor.finn.rules import Finding
from fxfactor.graph.tracing import silent
from fxfactor.rich_table import new_table
from fxfactor.storage.clean_up import clean_up
from fxfactor.storage.onnx_names import record_sites
from fxfactor.storage.qonnx import write_qonnx

if TYPE_CHECKING:
    import onnx
    from rich.table import Table
    from torch import nn
    from torch.fx import GraphModule


def check(model: str | Path | nn.Module, example_inputs: Any = None) -> list[Finding]:
    """List what FINN would refuse in a QONNX file or a quantized network: rule, module path, what was found, remedy.

    Before: a file, what `fxfactor.transform` gives, or any network of Brevitas layers (with `example_inputs`, a tensor of
    batch size 1). After: findings, none if FINN takes it. Those that `block` make `fxfactor.finn.estimate` stop; the others
    say what costs more than it needs to. A network is checked as `fxfactor.export(..., target="finn")` would write it.

    FINN is not needed and not run: the network is interpreted in integers, which takes about a second.

    Raises FinnError where the file cannot be read, or the shape of the input is not known.
    """
    if isinstance(model, str | Path):
        return list(interpret(load_model(model)).findings)
    exported = _export(model, example_inputs)
    return [exported] if isinstance(exported, Finding) else list(interpret(exported).findings)


def table(findings: list[Finding]) -> Table:
    """The findings as a rich table, the blocking ones in red."""
    result = new_table(title="What FINN would refuse" if findings else None)
    for name in ("where", "required", "found", "what to do"):
        result.add_column(name, overflow="fold")
    for finding in findings:
        style = "red" if finding.blocks else "yellow"
        result.add_row(finding.site, finding.rule, finding.found, finding.remedy, style=style)
    return result


def _export(model: nn.Module, example_inputs: Any) -> onnx.ModelProto | Finding:
    """The network as ONNX, its nodes named after its modules; a finding where it has no ONNX form."""
    import onnx
    import torch
    from torch.fx import GraphModule

    if not isinstance(model, torch.nn.Module):
        raise FinnError(
            f"required: check(model=…), text or a Path of a QONNX file, or a torch.nn.Module; found: {model!r} "
            f"({type(model).__name__})"
        )
    graph = copy.deepcopy(model).eval()
    if isinstance(graph, GraphModule) and example_inputs is None:
        example_inputs = _inputs_as_captured(graph)
    if example_inputs is None:
        raise FinnError(
            f"required: example_inputs, a tensor of shape (1, C, H, W); found: none for a {type(model).__name__}; "
            "give them, or the graph that fxfactor.transform gives"
        )
    inputs = example_inputs if isinstance(example_inputs, tuple) else (example_inputs,)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "checked.onnx"
        try:
            with silent():
                write_qonnx(graph, inputs, path)
        except (torch.onnx.errors.OnnxExporterError, RuntimeError, ValueError, TypeError, AttributeError) as error:
            found = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            return Finding(rules.EXPORT, "network", found, "replace the operation that it names")
        exported = onnx.load(str(path))
    record_sites(exported)
    try:
        clean_up(exported)  # shapes and constants as in the file that fxfactor.export writes
    except ExportError as error:
        found, _, remedy = str(error).partition("; ")
        return Finding(rules.EXPORT, "network", found, remedy or "replace the operation that it names")
    return exported


def _inputs_as_captured(graph: GraphModule) -> Any:
    """Random inputs of the shapes that a graph in normal form was captured with; None for any other graph."""
    from fxfactor.errors import GraphError
    from fxfactor.graph.compare import random_inputs
    from fxfactor.graph.normal_form import check_graph

    try:
        check_graph(graph)
    except GraphError:
        return None
    return random_inputs(graph)
