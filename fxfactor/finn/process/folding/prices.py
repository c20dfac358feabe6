"""What one hardware layer costs: FINN's own estimators, corrected where they are known to leave something out.

`finns` are FINN's figures, unchanged. `ours` start from them and count DSP lanes, the look-up tables of RTL matrix units, of
threshold comparators, of padding, adders and pools by `formulas`; the memory is counted where it was put.
"""

from __future__ import annotations

import math
from typing import Any

from . import formulas
from .program import Costs, add

FREE = ("StreamingSplit_hls", "StreamingConcat_hls", "Reshape_rtl")
"""Layers that only pass words on: neither FINN nor we count look-up tables for them."""


def finns(layer: Any, part: str) -> Costs:
    """FINN's estimate of a layer."""
    return (
        float(layer.lut_estimation(part)),
        float(layer.bram_estimation(part)),
        float(layer.dsp_estimation(part)),
        float(layer.uram_estimation(part)),
    )


def ours(layer: Any, part: str, narrow: bool) -> Costs:
    """Our estimate of a layer. `narrow`: its weights do not reach the lowest number of their type."""
    kind = layer.onnx_node.op_type
    if kind in ("MVAU_rtl", "MVAUGrouped_rtl"):
        return _matrix_unit(layer, part, narrow)
    if kind in ("MVAU_hls", "VVAU_hls"):
        return _hls_unit(layer, part)
    if kind == "Thresholding_rtl":
        return _thresholds(layer, part)
    if kind == "IntegerRequant_rtl":
        return _multiplication(layer, part)
    if kind == "StreamingDataWidthConverter_rtl":
        return formulas.converter_luts(layer.get_nodeattr("inWidth"), layer.get_nodeattr("outWidth")), 0.0, 0.0, 0.0
    theirs = finns(layer, part)
    if kind == "ConvolutionInputGenerator_rtl":
        return _window_luts(layer, theirs[0]), *theirs[1:]
    return (theirs[0] or _small_layer_luts(layer, kind), *theirs[1:])


def _matrix_unit(layer: Any, part: str, narrow: bool) -> Costs:
    from finn.util.basic import get_dsp_block

    pe, simd = layer.get_nodeattr("PE"), layer.get_nodeattr("SIMD")
    weights, inputs = layer.get_input_datatype(1), layer.get_input_datatype(0)
    sums = layer.get_output_datatype().bitwidth()
    block = get_dsp_block(part)
    lanes = formulas.dsp_lanes(block, weights.bitwidth(), inputs.bitwidth(), narrow)
    dsp = formulas.matrix_unit_dsps(pe, simd, lanes, block, weights.bitwidth(), inputs.bitwidth())
    rows, columns = layer.get_nodeattr("MW"), layer.get_nodeattr("MH")
    lut = formulas.matrix_unit_luts(pe, simd, lanes, weights.bitwidth(), inputs.bitwidth(), sums)
    kept = (0, 0) if pe == columns else formulas.replay_memory(rows // simd, simd * inputs.bitwidth())
    return add((lut + kept[0], float(kept[1]), float(dsp), 0.0), _weight_memory(layer))


def _weight_memory(layer: Any) -> Costs:
    """The memory that streams the weights. Where Vivado may choose ("auto") it is counted in block RAM, as FINN does."""
    width = layer.get_nodeattr("PE") * layer.get_nodeattr("SIMD") * layer.get_input_datatype(1).bitwidth()
    depth, style = layer.calc_wmem(), layer.get_nodeattr("ram_style")
    queue = float(formulas.weight_queue_luts(width))
    if style == "distributed":
        return queue + formulas.rom_luts(width, depth), 0.0, 0.0, 0.0
    if style == "ultra":
        writing = formulas.WRITEABLE_MEMORY_LUTS if layer.get_nodeattr("runtime_writeable_weights") else 0
        return queue + writing, 0.0, 0.0, float(formulas.ultra_rams(width, depth))
    return queue, float(formulas.weight_block_rams(width, depth)), 0.0, 0.0


def _hls_unit(layer: Any, part: str) -> Costs:
    lut, bram18, dsp, uram = finns(layer, part)
    if layer.onnx_node.op_type == "VVAU_hls":
        dsp *= layer.get_nodeattr("SIMD")  # FINN multiplies by PE only
    return lut, bram18, dsp, uram


def _thresholds(layer: Any, part: str) -> Costs:
    pe, width = layer.get_nodeattr("PE"), layer.get_input_datatype(1).bitwidth()
    leaving, entering = layer.get_output_datatype(), layer.get_input_datatype(0).bitwidth()
    bits, signed = leaving.bitwidth(), leaving.signed()
    block, ultra = layer.get_nodeattr("depth_trigger_bram"), layer.get_nodeattr("depth_trigger_uram")
    if not block and not ultra:  # Vivado chooses, and FINN guesses what
        lut, bram18, dsp, uram = finns(layer, part)
        return formulas.threshold_luts(pe, bits, entering, signed, lut), bram18, dsp, uram
    depths = [layer.get_nodeattr("NumChannels") // pe * 2**stage for stage in range(bits)]
    memory = pe * sum(formulas.rom_luts(width, depth) for depth in depths if not block or depth < block)
    bram18 = pe * sum(formulas.block_rams(width, depth) for depth in depths if block and depth >= block)
    return formulas.threshold_luts(pe, bits, entering, signed, memory), float(bram18), 0.0, 0.0


def _multiplication(layer: Any, part: str) -> Costs:
    """A quantizer as a product: what multiplies is certain, the rest is by our formula. FINN has no such layer."""
    (width, words), pe, leaving = layer.memory(), layer.get_nodeattr("PE"), layer.get_output_datatype()
    dsp, is_block = layer.dsp_estimation(part), layer.get_nodeattr("rom_style") == "block"
    lut = formulas.requant_luts(
        pe,
        sum(layer.multiplied()),
        layer.get_nodeattr("BiasBits"),
        leaving.bitwidth(),
        layer.get_nodeattr("Shift"),
        leaving.signed(),
        dsp // pe,
        0 if is_block else width * math.ceil(words / 64),
    )
    return lut, float(formulas.block_rams(width, words)) if is_block else 0.0, float(dsp), 0.0


def _window_luts(layer: Any, finns_luts: float) -> float:
    """FINN's figure is a constant and its memory."""
    rows, columns = layer.get_nodeattr("ConvKernelDim")
    simd, width = layer.get_nodeattr("SIMD"), layer.get_instream_width()
    folds, parallel = layer.get_nodeattr("IFMChannels") // simd, bool(layer.get_nodeattr("parallel_window"))
    memory = finns_luts - 300
    if parallel:
        taken = (columns - 1) * layer.get_nodeattr("Dilation")[1] + 1
        memory = formulas.line_luts(rows, (layer.get_nodeattr("IFMDim")[1] - taken) * folds, width)
    return formulas.window_luts(rows * columns, folds, simd, parallel, memory, width)


def _small_layer_luts(layer: Any, kind: str) -> float:
    """Look-up tables of layers for which FINN's estimator says 0, from what they compute."""
    if kind == "FMPadding_rtl":
        return formulas.padding_luts(layer.get_instream_width())
    if kind.startswith("Elementwise"):
        return layer.get_nodeattr("PE") * layer.get_output_datatype().bitwidth()
    if kind == "Pool_hls":
        return layer.get_nodeattr("PE") * 2 * layer.get_output_datatype().bitwidth()
    if kind == "GlobalAccPool_hls":
        return formulas.accumulator_luts(
            layer.get_nodeattr("PE"), layer.get_nodeattr("NumChannels"), layer.get_output_datatype().bitwidth()
        )
    if kind == "DuplicateStreams_hls":
        return formulas.DUPLICATE_LUTS
    return 0.0
