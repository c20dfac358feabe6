"""Which model in native/models.h stands for a layer that FINN has in HLS only, and its parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import prod

import numpy as np

from fxfactor.errors import FinnError
from fxfactor.finn.simulation.design import Layer, Port

Parameters = tuple[str, list[int | str]]
"""Name of the class in models.h, and what its constructor is given after the ports."""


def parameters_of(layer: Layer) -> str:
    """The parameters of a layer's model as text. Raises FinnError where there is no model of this kind."""
    make = MODELS.get(layer.kind)
    if make is None and layer.kind.startswith("Elementwise"):
        make = _elementwise
    if make is None:
        raise FinnError(
            f"required: a layer in RTL, or one of the kinds {', '.join(MODELS)}, for which there are models; found: "
            f"{layer.name} ({layer.kind}); use fxfactor.finn.prepare and FINN's own simulation, which needs Vivado"
        )
    kind, values = make(layer)
    sides = [
        [len(ports), *(each for port in ports for each in _elements(port))]
        for ports in (layer.in_ports, layer.out_ports)
    ]
    return " ".join(map(str, (kind, *sides[0], *sides[1], *values))) + "\n"


def _elements(port: Port) -> tuple[int, int, int]:
    return port.element_bits, port.elements, int(port.signed)


def _constant(layer: Layer) -> np.ndarray:
    values = np.load(layer.told["constant"])
    streams = {layer.attributes.get("inputDataType"), layer.attributes.get("outputDataType")}
    if (values != np.round(values)).any() or "BIPOLAR" in streams:  # weights may be −1 and 1
        raise FinnError(
            f"required: integers of at least 2 bits as weights of {layer.name} ({layer.kind}); found: other values; use "
            "weights of at least 2 bits"
        )
    return np.asarray(values, np.int64)


def _duplicate(layer: Layer) -> Parameters:
    return "Duplicate", []


def _distribute(layer: Layer) -> Parameters:
    folds = [channels // layer.attributes["SIMD"] for channels in layer.attributes["ChannelsPerStream"]]
    return "Distribute", [len(folds), *folds]


def _elementwise(layer: Layer) -> Parameters:
    operation = layer.kind.removeprefix("Elementwise").removesuffix("_hls")
    if operation not in ("Add", "Sub", "Mul"):
        raise FinnError(
            f"required: Add, Sub or Mul, for which there is a model; found: {layer.name} ({layer.kind}); use "
            "fxfactor.finn.prepare and FINN's own simulation, which needs Vivado"
        )
    if layer.told["constant"] is None:
        if layer.in_ports[0].folded != layer.in_ports[1].folded:
            raise FinnError(
                f"required: two inputs of one shape at {layer.name}; found: {layer.in_ports[0].folded} and "
                f"{layer.in_ports[1].folded}; use fxfactor.finn.prepare and FINN's own simulation, which needs Vivado"
            )
        return "Elementwise", [operation, 0, 0]
    shape = (*layer.out_ports[0].folded[:-2], prod(layer.out_ports[0].folded[-2:]))
    values = np.broadcast_to(_constant(layer), shape).reshape(-1)
    first = int(layer.attributes.get("lhs_style") == "const")
    return "Elementwise", [operation, first, len(values), *values.tolist()]


def _upsample(layer: Layer) -> Parameters:
    given = layer.attributes
    factors = [given["HO"] // given["HI"], given["WO"] // given["WI"]]
    return "Enlarge", [given["HO"], given["WO"], given["NumChannels"] // given["SIMD"], *factors, 0]


def _spread(layer: Layer) -> Parameters:
    given = layer.attributes
    size = [n + (n - 1) * (stride - 1) for n, stride in zip(given["ImgDim"], given["Stride"], strict=True)]
    return "Enlarge", [*size, given["NumChannels"] // given["SIMD"], *given["Stride"], 1]


def _global_sum(layer: Layer) -> Parameters:
    pixels = prod(layer.attributes["numInputVectors"])
    return "GlobalSum", [pixels, layer.in_ports[0].words // pixels]


def _pool(layer: Layer) -> Parameters:
    function = layer.attributes["Function"]
    if function not in ("MaxPool", "AccPool"):
        raise FinnError(
            f"required: max pooling, or sums; found: {function} at {layer.name}; use fxfactor.finn.prepare and FINN's own "
            "simulation, which needs Vivado"
        )
    return "Pool", [int(function == "MaxPool"), prod(layer.attributes["KernelSize"])]


def _require_no_activation(layer: Layer) -> None:
    if not layer.attributes.get("noActivation", 0) or layer.attributes.get("binaryXnorMode", 0):
        raise FinnError(
            f"required: a matrix unit without thresholds of its own, on integers of at least 2 bits; found: {layer.name} "
            f"({layer.kind}); report it with the file as a defect of fxfactor"
        )


def _vector_unit(layer: Layer) -> Parameters:
    _require_no_activation(layer)
    weights = _constant(layer).reshape(layer.attributes["Channels"], -1)
    return "VectorUnit", [*weights.shape, *weights.reshape(-1).tolist()]


def _matrix_unit(layer: Layer) -> Parameters:
    _require_no_activation(layer)
    weights = _constant(layer)
    return "MatrixUnit", [*weights.shape, *weights.reshape(-1).tolist()]


MODELS: dict[str, Callable[[Layer], Parameters]] = {
    "DuplicateStreams_hls": _duplicate,
    "ElementwiseAdd_hls": _elementwise,
    "FMPadding_Pixel_hls": _spread,
    "GlobalAccPool_hls": _global_sum,
    "MVAU_hls": _matrix_unit,
    "Pool_hls": _pool,
    "StreamingConcat_hls": _distribute,
    "StreamingSplit_hls": _distribute,
    "UpsampleNearestNeighbour_hls": _upsample,
    "VVAU_hls": _vector_unit,
}
"""FINN's kind of layer -> its model; elementwise operations of other names are looked at one by one."""


def modelled(layers: Iterable[Layer]) -> tuple[str, ...]:
    """Names of the layers that a model stands for."""
    return tuple(layer.name for layer in layers if not layer.is_rtl)
