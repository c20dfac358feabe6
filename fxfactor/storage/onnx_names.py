"""Module paths in ONNX files: how they are read from exporters' names, and how they outlive a clean-up by qonnx."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx

MARK = "fxfactor site: "
"""What starts a node's doc_string that `record_sites` wrote."""

PROXIES = ("act_quant", "weight_quant", "bias_quant", "trunc_quant", "input_quant", "export_handler")
"""What Brevitas puts below a layer."""

PARAMETERS = (".weight", ".running_mean")


def record_sites(model: onnx.ModelProto, called: Sequence[str] = ()) -> None:
    """Write into every node, as its doc_string, the module path it belongs to, in place.

    qonnx' cleanup_model gives nodes and tensors new names but keeps doc_strings: record before cleaning up, and
    `fxfactor.finn` will speak of the user's modules.

    `called`: paths of the modules in the order in which the exported graph calls them. Of a module that a graph calls by
    itself, torch's exporter tells the last part of the path only, the same for all quantizers "….spatial_quant": the
    first such node is then the first such call, and so on, where there are as many of both.
    """
    producers = {name: node for node in model.graph.node for name in node.output}
    constants = {tensor.name for tensor in model.graph.initializer}
    alike: dict[tuple[str, str], list[onnx.NodeProto]] = {}
    for node in model.graph.node:
        site = site_of(node, producers, constants)
        if site:
            node.doc_string = MARK + site
            alike.setdefault((node.op_type, site), []).append(node)
    for (_, site), nodes in alike.items():
        calls = [path for path in called if path == site or path.endswith(f".{site}")]
        if len(calls) == len(nodes):
            for node, path in zip(nodes, calls, strict=True):
                node.doc_string = MARK + path


def site_of(node: onnx.NodeProto, producers: Mapping[str, onnx.NodeProto], constants: Iterable[str]) -> str:
    """Module path of `node`: recorded, or from its parameters' names, or from the exporter's node name; "" if unknown."""
    if node.doc_string.startswith(MARK):
        return node.doc_string.removeprefix(MARK)
    for name in node.input[1:2]:
        while (producer := producers.get(name)) is not None and producer.input:
            name = producer.input[0]
        if name in constants and name.endswith(PARAMETERS):
            return name.rpartition(".")[0]
    return path_in(node.name)


def path_in(name: str) -> str:
    """Module path in a node name of torch's exporter: "/layer1/layer1.0/conv1/weight_quant/Quant" -> "layer1.0.conv1"."""
    parts: list[str] = []
    for part in name.strip("/").split("/")[:-1]:
        if part in PROXIES:
            break
        if parts and part.startswith(f"{parts[-1]}."):
            parts[-1] = part
        else:
            parts.append(part)
    return ".".join(parts)
