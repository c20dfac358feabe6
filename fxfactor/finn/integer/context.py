"""What the interpretation of one node can see and write besides its inputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import onnx

from fxfactor.finn.integer.builder import GraphBuilder
from fxfactor.finn.integer.forms import Choices, GroupedConvolution, Staircase
from fxfactor.finn.integer.onnx_constants import Broken, Value
from fxfactor.finn.rules import Finding
from fxfactor.storage.onnx_names import site_of


class Context:
    """The file's graph to look things up in, the integer graph as far as it is written, and the findings so far."""

    def __init__(self, graph: onnx.GraphProto, choices: Choices) -> None:
        self.graph = graph
        self.choices = choices
        self.grouped: list[GroupedConvolution] = []
        self.staircases: list[Staircase] = []
        self.builder = GraphBuilder()
        self.findings: list[Finding] = []
        self.origin = {name: node for node in graph.node for name in node.output}
        self.constants = {tensor.name for tensor in graph.initializer}

    def site(self, node: onnx.NodeProto) -> str:
        """Module path of `node`, or a name for it; a split or concatenation is named after the branches between the two."""
        site = site_of(node, self.origin, self.constants)
        if not site and node.op_type in ("Split", "Concat"):
            if node.op_type == "Concat":
                branch = self.origin.get(node.input[0])
            else:
                branch = next((reader for reader in self.graph.node if node.output[0] in reader.input), None)
            site = "" if branch is None else site_of(branch, self.origin, self.constants).rpartition(".")[0]
        return site or node.name or node.op_type

    def report(self, site: str, broken: Broken, blocks: bool = True) -> None:
        """Add a finding."""
        self.findings.append(Finding(broken.rule, site, broken.found, broken.remedy, blocks))


Handler = Callable[[Context, onnx.NodeProto, list[Value]], Iterable[Value]]
"""Returns the outputs of a node of which at least one input is a stream and all are known. Raises Broken."""
