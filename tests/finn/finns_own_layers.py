"""A script: one layer of each kind that FINN has in HLS only, executed in FINN's Python on random data.

`finns_own_layers.py FOLDER LAYER_STREAMS`: writes FOLDER/NAME.json (what process/layer_streams.py tells of the layer),
FOLDER/NAME.npz (inputs and outputs, in the order in which the stream sends them) and the constants. It needs no fxfactor.
"""

from __future__ import annotations

import json
import os
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import numpy as np

ABSTRACT = "finn.custom_op.fpgadataflow"
FRAMES = 3


def case(
    kind: str, inputs: list[Any], outputs: list[Any], constants: dict[str, Any] | None = None, **attributes: Any
) -> Any:
    """Inputs and outputs are (shape, datatype); constants go behind the inputs."""
    return kind, inputs, outputs, constants or {}, attributes


def elementwise(
    operation: str, left: str, right: str, out: str, pe: int, constant: Any = None, shape: Any = (1, 2, 3, 6)
) -> Any:
    settings = {
        "lhs_dtype": left,
        "rhs_dtype": right,
        "out_dtype": out,
        "lhs_shape": shape,
        "out_shape": shape,
        "PE": pe,
    }
    inputs = [(shape, left)] if constant is not None else [(shape, left), (shape, right)]
    rhs = shape if constant is None else constant.shape
    settings |= {"rhs_shape": rhs, "rhs_style": "input" if constant is None else "const"}
    constants = {} if constant is None else {"c": (constant, right)}
    return case(f"Elementwise{operation}", inputs, [(shape, out)], constants, **settings)


def vector_unit(pe: int, simd: int, weights: Any) -> Any:
    settings = {"Kernel": [3, 3], "Dim": [2, 3], "Channels": 6, "PE": pe, "SIMD": simd, "noActivation": 1}
    types = {"inputDataType": "UINT3", "weightDataType": "INT4", "outputDataType": "INT11", "accDataType": "INT11"}
    return case(
        "VVAU", [((1, 2, 3, 54), "UINT3")], [((1, 2, 3, 6), "INT11")], {"w": (weights, "INT4")}, **settings, **types
    )


def matrix_unit(pe: int, simd: int, weights: Any) -> Any:
    settings = {"MW": 12, "MH": 8, "PE": pe, "SIMD": simd, "noActivation": 1, "numInputVectors": [1, 2, 2]}
    types = {"inputDataType": "INT2", "weightDataType": "INT3", "outputDataType": "INT8", "accDataType": "INT8"}
    return case(
        "MVAU", [((1, 2, 2, 12), "INT2")], [((1, 2, 2, 8), "INT8")], {"w": (weights, "INT3")}, **settings, **types
    )


def pool(function: str, datatype: str, out: str, pe: int) -> Any:
    settings = {
        "Channels": 6,
        "PE": pe,
        "KernelSize": [2, 3],
        "Function": function,
        "OutImgDims": [2, 2],
        "AccumBits": 8,
    }
    types = {"InputDataType": datatype, "OutputDataType": out}
    return case("Pool", [((1, 2, 2, 36), datatype)], [((1, 2, 2, 6), out)], **settings, **types)


def upsampling(down: int, across: int, simd: int) -> Any:
    settings = {"HI": 2, "WI": 3, "HO": 2 * down, "WO": 3 * across, "NumChannels": 6, "SIMD": simd}
    out = (1, 2 * down, 3 * across, 6)
    return case("UpsampleNearestNeighbour", [((1, 2, 3, 6), "INT4")], [(out, "INT4")], inputDataType="INT4", **settings)


def spread(down: int, across: int, simd: int) -> Any:
    settings = {"ImgDim": [2, 3], "Stride": [down, across], "NumChannels": 6, "SIMD": simd}
    out = (1, 2 + down - 1, 3 + 2 * (across - 1), 6)
    return case("FMPadding_Pixel", [((1, 2, 3, 6), "UINT4")], [(out, "UINT4")], inputDataType="UINT4", **settings)


def cases(rng: Any) -> dict[str, Any]:
    per_channel = rng.integers(-8, 8, (6,)).astype(np.float32)
    everywhere = rng.integers(-8, 8, (1, 2, 3, 6)).astype(np.float32)
    depthwise = rng.integers(-8, 8, (6, 1, 3, 3)).astype(np.float32)
    dense = rng.integers(-4, 4, (12, 8)).astype(np.float32)
    pixels = {"numInputVectors": [1, 2, 3]}
    return {
        "duplicate": case("DuplicateStreams", [((1, 2, 3, 6), "INT4")], [((1, 2, 3, 6), "INT4")] * 3, NumChannels=6, PE=2,
                          NumOutputStreams=3, inputDataType="INT4", **pixels),
        "add": elementwise("Add", "INT4", "UINT3", "INT5", 3),
        "add, wide words": elementwise("Add", "INT12", "INT12", "INT13", 6),
        "subtract": elementwise("Sub", "INT4", "UINT3", "INT6", 2),
        "multiply": elementwise("Mul", "INT4", "INT4", "INT8", 1),
        "add a constant per channel": elementwise("Add", "INT4", "INT4", "INT5", 2, per_channel),
        "multiply by constants everywhere": elementwise("Mul", "UINT4", "INT4", "INT8", 3, everywhere),
        "split": case("StreamingSplit", [((1, 2, 3, 12), "INT5")], [((1, 2, 3, size), "INT5") for size in (4, 6, 2)], SIMD=2,
                      ChannelsPerStream=[4, 6, 2], inputDataType="INT5", **pixels),
        "concatenate": case("StreamingConcat", [((1, 2, 3, 4), "INT4"), ((1, 2, 3, 6), "UINT5")], [((1, 2, 3, 10), "INT6")],
                            SIMD=2, ChannelsPerStream=[4, 6], inputDataTypes=["INT4", "UINT5"], **pixels),
        "upsampling": upsampling(2, 3, 2),
        "upsampling, one way": upsampling(1, 2, 6),
        "pixels spread": spread(2, 3, 2),
        "pixels spread, one way": spread(3, 1, 1),
        "global sum": case("GlobalAccPool", [((1, 2, 3, 6), "INT5")], [((1, 1, 1, 6), "INT8")], NumChannels=6, PE=3,
                           inputDataType="INT5", **pixels),
        "largest of a window": pool("MaxPool", "INT4", "INT4", 2),
        "sum of a window": pool("AccPool", "UINT4", "UINT7", 3),
        "vector unit": vector_unit(2, 1, depthwise),
        "vector unit, parallel window": vector_unit(3, 9, depthwise),
        "matrix unit": matrix_unit(2, 3, dense),
        "matrix unit, unfolded": matrix_unit(8, 12, dense),
    }  # fmt: skip


def stream_order(kind: str, attributes: dict[str, Any], value: Any) -> Any:
    """FINN's Python pools windows in the order of Im2Col; the window generator sends (channel fold, position, PE)."""
    if kind != "Pool":
        return value
    pe, channels = attributes["PE"], attributes["Channels"]
    windows = value.reshape(*value.shape[:3], -1, channels // pe, pe)
    return np.swapaxes(windows, 3, 4).reshape(value.shape)


def run(name: str, given: Any, folder: Path, layer_streams: Any, rng: Any) -> None:
    from onnx import TensorProto, helper
    from qonnx.core.datatype import DataType
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp
    from qonnx.util.basic import qonnx_make_model

    kind, inputs, outputs, constants, attributes = given
    ins, outs = [f"in{at}" for at in range(len(inputs))], [f"out{at}" for at in range(len(outputs))]
    values = [helper.make_tensor_value_info(each, TensorProto.FLOAT, shape)
              for each, (shape, _) in zip(ins + outs, inputs + outputs, strict=True)]  # fmt: skip
    models = []
    for suffix, domain in (("", ABSTRACT), ("_hls", f"{ABSTRACT}.hls")):
        node = helper.make_node(f"{kind}{suffix}", [*ins, *constants], outs, name="layer", domain=domain,
                                backend="fpgadataflow", **attributes)  # fmt: skip
        graph = helper.make_graph([node], "one", values[: len(ins)], values[len(ins) :])
        model = ModelWrapper(qonnx_make_model(graph))
        for each, (value, datatype) in constants.items():
            model.set_initializer(each, value)
            model.set_tensor_datatype(each, DataType[datatype])
        for each, (_, datatype) in zip(ins + outs, inputs + outputs, strict=True):
            model.set_tensor_datatype(each, DataType[datatype])
        models.append(model)
    arrays: dict[str, list[Any]] = {each: [] for each in ins + outs}
    python = getCustomOp(models[0].graph.node[0])
    for _ in range(FRAMES):
        context = {each: model.get_initializer(each) for each in constants}
        for each, (shape, datatype) in zip(ins, inputs, strict=True):
            kind_of = DataType[datatype]
            context[each] = rng.integers(int(kind_of.min()), int(kind_of.max()) + 1, shape).astype(np.float32)
        for each, (shape, _) in zip(outs, outputs, strict=True):
            context[each] = np.zeros(shape, np.float32)
        python.execute_node(context, models[0].graph)
        for each in ins:
            arrays[each].append(stream_order(kind, attributes, context[each]))
        for each in outs:
            arrays[each].append(context[each])
    np.savez(folder / f"{name}.npz", **{each: np.concatenate(value) for each, value in arrays.items()})
    hls = models[1]
    told = layer_streams.describe(hls, layer_streams.tensor_names(hls, outs), folder / f"{name} constants")
    (folder / f"{name}.json").write_text(json.dumps(told))


def main(folder: Path, layer_streams: Path) -> None:
    os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
    import finn.xsi

    finn.xsi.SimEngine = object
    spec = spec_from_file_location("layer_streams", layer_streams)
    assert spec is not None and spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    rng = np.random.default_rng(0)
    for name, given in cases(rng).items():
        run(name, given, folder, module, rng)


if __name__ == "__main__":
    sys.path.pop(0)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
