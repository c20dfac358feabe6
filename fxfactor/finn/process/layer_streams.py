"""What a simulation has to know of the hardware layers that FINN generated; loaded by the worker, and only there.

For every layer: its sources, its streams (bits of a word, how a tensor is dealt into words), FINN's own figure of cycles, and
for layers that exist in HLS only the constants that a model of them needs. Nothing of fxfactor is imported.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

CONSTANTS = {"MVAU_hls": 1, "VVAU_hls": 1}
"""Layers in HLS -> which of their inputs is constant; an elementwise layer says so in its attributes."""


def tensor_names(model: Any, outputs: list[str]) -> dict[tuple[str, int], str]:
    """(layer, output) -> the name of its tensor, to be asked before FINN gives all tensors new names.

    `outputs`: what the outputs of the model are called in the network around it; so are those of the layers behind which
    nothing but FIFOs stands.
    """
    names = {(node.name, index): name for node in model.graph.node for index, name in enumerate(node.output)}
    produced = {name: (node, index) for node in model.graph.node for index, name in enumerate(node.output)}
    for name, told in zip([output.name for output in model.graph.output], outputs, strict=True):
        node, index = produced[name]
        names[node.name, index] = told
        while node.op_type.startswith("StreamingFIFO"):
            node, index = produced[node.input[0]]
            names[node.name, index] = told
    return names


def describe(model: Any, names: dict[tuple[str, int], str], folder: Path) -> list[dict[str, Any]]:
    """One entry per hardware layer, in the order of execution; constants of HLS layers are saved in `folder`."""
    from qonnx.custom_op.registry import getCustomOp

    folder.mkdir()
    produced = {name: (node.name, index) for node in model.graph.node for index, name in enumerate(node.output)}
    layers = []
    for node in model.graph.node:
        layer: Any = getCustomOp(node)
        streamed = [(index, name) for index, name in enumerate(node.input) if model.get_initializer(name) is None]
        layers.append(
            {
                "name": node.name,
                "kind": node.op_type,
                "attributes": _attributes(layer, node),
                "inputs": [
                    {"from": produced.get(name), **_stream(layer, index, is_input=True)} for index, name in streamed
                ],
                "outputs": [
                    {"tensor": names[node.name, index], **_stream(layer, index, is_input=False)}
                    for index in range(len(node.output))
                ],
                "cycles": int(layer.get_exp_cycles()),
                "folder": layer.get_nodeattr("code_gen_dir_ipgen"),
                "top": _top(layer, node),
                "sources": [str(each) for each in layer.get_rtl_file_list(abspath=True)]
                if hasattr(layer, "get_rtl_file_list")
                else [],
                "constant": _save_constant(model, layer, node, folder),
            }
        )
    return layers


def _stream(layer: Any, index: int, is_input: bool) -> dict[str, Any]:
    """How a tensor travels: `folded` is its shape as (..., words, elements of a word), `padded` the bits of the port."""
    if is_input:
        datatype, folded = layer.get_input_datatype(index), layer.get_folded_input_shape(index)
        bits, padded = layer.get_instream_width(index), layer.get_instream_width_padded(index)
    else:
        datatype, folded = layer.get_output_datatype(index), layer.get_folded_output_shape(index)
        bits, padded = layer.get_outstream_width(index), layer.get_outstream_width_padded(index)
    return {
        "folded": [int(size) for size in folded],
        "bits": int(bits),
        "padded": int(padded),
        "element_bits": int(datatype.bitwidth()),
        "signed": bool(datatype.signed()),
        "datatype": datatype.name,
    }


def _attributes(layer: Any, node: Any) -> dict[str, Any]:
    """All attributes that JSON can hold."""
    values = {}
    for attribute in node.attribute:
        value = layer.get_nodeattr(attribute.name)
        value = value.tolist() if hasattr(value, "tolist") else value
        if isinstance(value, int | float | str | list):
            values[attribute.name] = value
    return values


def _top(layer: Any, node: Any) -> str:
    known = "gen_top_module" in layer.get_nodeattr_types()
    return (layer.get_nodeattr("gen_top_module") if known else "") or node.name


def _save_constant(model: Any, layer: Any, node: Any, folder: Path) -> str | None:
    """The file with a layer's constant input as (rows, columns) of integers, or None where it has none to tell of."""
    import numpy as np

    index = CONSTANTS.get(node.op_type)
    if node.op_type.startswith("Elementwise"):
        index = next(
            (at for at, side in enumerate(("lhs", "rhs")) if layer.get_nodeattr(f"{side}_style") == "const"), None
        )
    if index is None:
        return None
    file = folder / f"{node.name}.npy"
    np.save(file, np.asarray(model.get_initializer(node.input[index])))
    return str(file)
