"""Writes the integer graph as ONNX nodes in the dialect that FINN's `step_convert_to_hw` takes.

Tensors lie as (1, H, W, C). Convolutions are Im2Col and MatMul, activations are MultiThreshold.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from fxfactor.finn.integer.requantizing import Requantization
from fxfactor.finn.integer.streams import Columns, Integers, Quantizer, Stream, Window, integer_datatype

GENERAL = "qonnx.custom_op.general"
HARDWARE = "finn.custom_op.fpgadataflow"
GROUPED = "MVAUGrouped"
"""The hardware layer of fxfactor/finn/process/grouped_mvau.py."""
REQUANT = "IntegerRequant"
"""The hardware layer of fxfactor/finn/process/integer_requant.py."""

METADATA = "fxfactor.finn"
ACCUMULATOR = "INT32"
"""What FINN itself annotates before it minimises widths from the weights."""


@dataclass
class GraphBuilder:
    """Collects nodes, initializers and annotations; matrices stay open to sign changes until `finish`."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    matrices: dict[str, NDArray[Any]] = field(default_factory=dict)
    shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    datatypes: dict[str, str] = field(default_factory=dict)
    kernels: dict[str, tuple[int, int]] = field(default_factory=dict)

    def _name(self, wanted: str) -> str:
        name, count = wanted, 0
        while name in self.shapes:
            count += 1
            name = f"{wanted}#{count}"
        return name

    def node(
        self,
        operation: str,
        inputs: Sequence[str],
        output: str,
        shape: tuple[int, ...],
        datatype: str,
        domain: str = "",
        **attributes: Any,
    ) -> str:
        """Add one node with one output; gives the output's name, `output` made unique."""
        name = self._name(output)
        self.nodes.append(helper.make_node(operation, list(inputs), [name], name=name, domain=domain, **attributes))
        self.shapes[name], self.datatypes[name] = shape, datatype
        return name

    def constant(self, wanted: str, value: NDArray[Any], datatype: str) -> str:
        """Add an initializer; gives its name."""
        name = self._name(wanted)
        self.matrices[name], self.shapes[name], self.datatypes[name] = value, value.shape, datatype
        return name

    def input(self, stream_shape: tuple[int, ...], datatype: str) -> str:
        """Declare the graph's input, (1, H, W, C) or (1, C)."""
        self.shapes["global_in"], self.datatypes["global_in"] = positions(stream_shape), datatype
        return "global_in"

    def multiply(self, site: str, tensor: str, matrix: Integers, datatype: str, kernel: tuple[int, int] | None) -> str:
        """MatMul with `matrix` (rows, columns); `kernel` is given where it is a depthwise convolution."""
        name = self.constant(f"{site}.weight", matrix, datatype)
        if kernel is not None:
            self.kernels[name] = kernel
        shape = (*self.shapes[tensor][:-1], matrix.shape[1])
        return self.node("MatMul", (tensor, name), site, shape, ACCUMULATOR)

    def multiply_groups(
        self, site: str, tensor: str, matrix: Integers, datatype: str, groups: int, kernel: tuple[int, int]
    ) -> str:
        """MVAUGrouped with `matrix` (kernel positions * C/G, outputs), a hardware layer of our own, on windows of C channels."""
        name = self.constant(f"{site}.weight", matrix, datatype)
        rows, columns = matrix.shape
        return self.node(
            GROUPED,
            (tensor, name),
            site,
            (*self.shapes[tensor][:-1], columns),
            ACCUMULATOR,
            HARDWARE,
            backend="fpgadataflow",
            Groups=groups,
            Kernel=list(kernel),
            MW=rows,
            MH=columns // groups,
            PE=1,
            SIMD=1,
            inputDataType=self.datatypes[tensor],
            outputDataType=ACCUMULATOR,
            accDataType=ACCUMULATOR,
            noActivation=1,
            numInputVectors=list(self.shapes[tensor][:-1]),
        )

    def columns_of_last(self) -> tuple[Columns, ...]:
        """Where the channels of the last node are computed, a product with a matrix."""
        name = self.nodes[-1].input[1]
        return (Columns(name, 0, self.matrices[name].shape[1]),)

    def reshape(self, name: str, tensor: str, shape: tuple[int, ...]) -> str:
        """The same numbers in another shape, (1, ...)."""
        wanted = self.constant(f"{name}.shape", np.asarray(shape, np.int64), "INT64")
        return self.node("Reshape", (tensor, wanted), name, shape, self.datatypes[tensor])

    def windows(self, site: str, tensor: str, window: Window, depthwise: bool) -> str:
        """Im2Col: (1, H, W, C) -> (1, H', W', kernel positions * C)."""
        _, height, width, channels = self.shapes[tensor]
        return self.node(
            "Im2Col",
            (tensor,),
            f"{site}.windows",
            (1, *window.positions(height, width), window.kernel[0] * window.kernel[1] * channels),
            self.datatypes[tensor],
            GENERAL,
            kernel_size=list(window.kernel),
            stride=list(window.strides),
            dilations=list(window.dilations),
            pad_amount=list(window.pads),
            input_shape=f"(1,{height},{width},{channels})",
            depthwise=int(depthwise),
        )

    def max_pool(self, site: str, tensor: str, window: Window) -> str:
        """MaxPoolNHWC: (1, H, W, C) -> (1, H', W', C)."""
        _, height, width, channels = self.shapes[tensor]
        return self.node(
            "MaxPoolNHWC",
            (tensor,),
            site,
            (1, *window.positions(height, width), channels),
            self.datatypes[tensor],
            GENERAL,
            kernel_shape=list(window.kernel),
            strides=list(window.strides),
            pads=list(window.pads),
            dilations=[1, 1],
            ceil_mode=0,
        )

    def upsample(self, site: str, tensor: str, size: tuple[int, ...]) -> str:
        """UpsampleNearestNeighbour: (1, H, W, C) -> (1, *size, C), every pixel several times."""
        _, height, width, channels = self.shapes[tensor]
        return self.node(
            "UpsampleNearestNeighbour",
            (tensor,),
            site,
            (1, *size, channels),
            self.datatypes[tensor],
            HARDWARE,
            backend="fpgadataflow",
            SIMD=1,
            HI=height,
            WI=width,
            HO=size[0],
            WO=size[1],
            NumChannels=channels,
            inputDataType=self.datatypes[tensor],
        )

    def spread_pixels(self, site: str, tensor: str, strides: tuple[int, int], size: tuple[int, ...]) -> str:
        """FMPadding_Pixel: (1, H, W, C) -> (1, *size, C), zeros between the pixels."""
        _, height, width, channels = self.shapes[tensor]
        return self.node(
            "FMPadding_Pixel",
            (tensor,),
            site,
            (1, *size, channels),
            self.datatypes[tensor],
            HARDWARE,
            backend="fpgadataflow",
            SIMD=1,
            ImgDim=[height, width],
            Stride=list(strides),
            NumChannels=channels,
            inputDataType=self.datatypes[tensor],
        )

    def quantize(self, site: str, stream: Stream, quantizer: Quantizer, steps: Integers) -> str:
        """MultiThreshold with integer `steps` (C or 1, levels - 1)."""
        datatype = integer_datatype(int(steps.min()), int(steps.max()))
        name = self.constant(f"{site}.thresholds", steps, datatype)
        layout = "NHWC" if len(stream.shape) == 3 else "NC"
        bias = {"out_bias": float(quantizer.least)} if quantizer.least else {}
        return self.node(
            "MultiThreshold",
            (stream.tensor, name),
            site,
            self.shapes[stream.tensor],
            quantizer.datatype,
            GENERAL,
            out_dtype=quantizer.datatype,
            data_layout=layout,
            **bias,
        )

    def requantize(self, site: str, stream: Stream, quantizer: Quantizer, line: Requantization) -> str:
        """IntegerRequant, a hardware layer of our own: a multiplication in place of thresholds."""
        *vectors, channels = self.shapes[stream.tensor]
        return self.node(
            REQUANT,
            (stream.tensor,),
            site,
            self.shapes[stream.tensor],
            quantizer.datatype,
            HARDWARE,
            backend="fpgadataflow",
            PE=1,
            NumChannels=channels,
            inputDataType=self.datatypes[stream.tensor],
            outputDataType=quantizer.datatype,
            numInputVectors=vectors,
            Scales=line.scales.tolist(),
            Biases=line.biases.tolist(),
            Shift=line.shift,
            Lowest=line.lowest,
            Highest=line.highest,
            ScaleBits=line.scale_bits,
            BiasBits=line.bias_bits,
        )

    def negate(self, columns: Sequence[Columns], which: NDArray[np.bool_]) -> None:
        """Change the sign of the matrix columns behind the channels in `which`."""
        channel = 0
        for run in columns:
            chosen = np.flatnonzero(which[channel : channel + run.count]) + run.start
            self.matrices[run.matrix][:, chosen] *= -1
            channel += run.count

    def finish(self, outputs: Sequence[str], notes: dict[str, Any]) -> onnx.ModelProto:
        """The model; `notes` (what the integers stand for) go into its metadata under "fxfactor.finn"."""
        initializers, annotations = [], []
        for name, value in self.matrices.items():
            if self.datatypes[name] != "INT64" and "thresholds" not in name:
                self.datatypes[name] = _widened(self.datatypes[name], value)
            dtype = np.int64 if self.datatypes[name] == "INT64" else np.float32
            initializers.append(numpy_helper.from_array(value.astype(dtype), name))
        for node in self.nodes:
            if node.op_type == GROUPED:
                node.attribute.append(helper.make_attribute("weightDataType", self.datatypes[node.input[1]]))
        for name, datatype in self.datatypes.items():
            annotation = onnx.TensorAnnotation(tensor_name=name)
            annotation.quant_parameter_tensor_names.add(key="finn_datatype", value=datatype)
            if name in self.kernels:
                sparsity = str({"dw": {"kernel_shape": list(self.kernels[name])}})
                annotation.quant_parameter_tensor_names.add(key="tensor_sparsity", value=sparsity)
            layout = {4: str(["N", "H", "W", "C"]), 2: str(["N", "C"])}.get(len(self.shapes[name]))
            if layout is not None and name not in self.matrices:
                annotation.quant_parameter_tensor_names.add(key="tensor_layout", value=layout)
            if datatype != "INT64":
                annotations.append(annotation)
        values = {
            name: helper.make_tensor_value_info(
                name, TensorProto.INT64 if self.datatypes[name] == "INT64" else TensorProto.FLOAT, shape
            )
            for name, shape in self.shapes.items()
        }
        graph = helper.make_graph(
            self.nodes,
            "integers",
            [values["global_in"]],
            [values[output] for output in outputs],
            initializer=initializers,
            value_info=[value for name, value in values.items() if name not in ("global_in", *outputs)],
        )
        graph.quantization_annotation.extend(annotations)
        opsets = [helper.make_opsetid("", 13), helper.make_opsetid(GENERAL, 1), helper.make_opsetid(HARDWARE, 1)]
        model = helper.make_model(graph, opset_imports=opsets, producer_name="fxfactor", ir_version=8)
        helper.set_model_props(model, {METADATA: json.dumps(notes)})
        return model


def _widened(datatype: str, value: Integers) -> str:
    """`datatype`, or a wider one where a sign change took `value` out of it (-8 -> 8 in four bits)."""
    if datatype == "BIPOLAR":
        return datatype
    bits = int(datatype.removeprefix("INT"))
    needed = int(integer_datatype(min(-1, int(value.min())), int(value.max())).removeprefix("INT"))
    return f"INT{max(bits, needed)}"


def positions(shape: tuple[int, ...]) -> tuple[int, ...]:
    """(C, H, W) -> (1, H, W, C); (C,) -> (1, C)."""
    return (1, *shape[1:], shape[0])
