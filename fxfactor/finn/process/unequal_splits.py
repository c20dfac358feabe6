"""A correction of FINN+ 1.6.1: FIFOs behind a StreamingSplit whose parts have different numbers of channels.

FINN's InsertFIFO takes the shape of the first output for all of them, and refuses the others ("Folded output shape … is not the
same"). With this file imported it finds FIFOs there already, as it would have made them. Needs nothing of fxfactor.
"""

from __future__ import annotations

from typing import Any

from finn.transformation.fpgadataflow.insert_fifo import InsertFIFO
from onnx import helper
from qonnx.custom_op.registry import getCustomOp

SPLIT, FIFO, DOMAIN = "StreamingSplit", "StreamingFIFO", "finn.custom_op.fpgadataflow"
_insert = InsertFIFO.apply


def apply(self: Any, model: Any) -> tuple[Any, bool]:
    """InsertFIFO.apply, after FIFOs were put behind the outputs of splits."""
    for node in [node for node in model.graph.node if node.op_type.startswith(SPLIT)]:
        for index in range(len(node.output)):
            _put_fifo(model, node, index, self)
    return _insert(self, model)


def _put_fifo(model: Any, node: Any, index: int, settings: Any) -> None:
    name = node.output[index]
    readers = model.find_consumers(name) or []
    if len(readers) != 1 or readers[0].op_type.startswith(FIFO) or DOMAIN not in readers[0].domain:
        return
    split, reader, at = getCustomOp(node), getCustomOp(readers[0]), list(readers[0].input).index(name)
    depth = max(_at(split.get_nodeattr("outFIFODepths"), index), _at(reader.get_nodeattr("inFIFODepths"), at))
    if depth <= 2 and not settings.create_shallow_fifos:
        return
    shape, datatype = split.get_normal_output_shape(index), split.get_output_datatype(index)
    behind = model.make_new_valueinfo_name()
    kind = model.get_tensor_valueinfo(name).type.tensor_type.elem_type
    model.graph.value_info.append(helper.make_tensor_value_info(behind, kind, [int(size) for size in shape]))
    model.set_tensor_datatype(behind, datatype)
    fifo = helper.make_node(
        FIFO,
        [name],
        [behind],
        domain=DOMAIN,
        backend="fpgadataflow",
        depth=depth,
        folded_shape=split.get_folded_output_shape(index),
        normal_shape=shape,
        dataType=datatype.name,
        ram_style=settings.ram_style,
    )
    model.graph.node.insert(list(model.graph.node).index(node) + 1, fifo)
    readers[0].input[at] = behind


def _at(depths: list[int], index: int) -> int:
    """FINN keeps one depth where it was told no more."""
    return depths[min(index, len(depths) - 1)]


def register() -> None:
    """Correct FINN in this process."""
    InsertFIFO.apply = apply


def step_take_unequal_splits(model: Any, cfg: Any) -> Any:
    """The first step of a build. The model is as it was."""
    register()
    return model


register()
