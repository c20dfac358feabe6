"""Closed formulas for what FINN's estimators leave out or get wrong, and where each comes from.

Exact ones are read off FINN's RTL (finn-rtllib of finn-plus 1.6.1) or its own estimators; fitted ones are least squares over
counts of that RTL by Yosys 0.70 (PyPI pyosys, synth_xilinx for UltraScale+). `benchmarks/synthesis.py` makes the counts and fits
FITTED; those of single units stand in tests/finn/test_prices.py. Nobody has compared them with Vivado yet, whose counts may
differ by a third for a single layer.
"""

from __future__ import annotations

import math

WRITEABLE_MEMORY_LUTS = 60
"""An AXI-lite port to write a weight memory: two address counters and a word register; assumed, not counted."""
DUPLICATE_LUTS = 10
"""The handshake of a stream copied in HLS; assumed, not counted."""

FITTED: dict[str, tuple[float, ...]] = {
    "matrix unit": (46.1, 1.46, 6.53, 5.17),
    "multiplication": (2.12, 1.76, 0.836, 1.02, 2.51),
    "padding": (31.9, 0.444),
    "thresholds": (12.1, 1.42, 2.63, 0.837),
    "width converter": (9.09, 2.36, 0.857, 0.721, 2.36),
    "window generator": (92.9, 233.0, 172.0, 18.4, 0.946, 93.9, 7.97),
}
"""What each part takes, in look-up tables: made by `benchmarks/synthesis.py fit`."""

_A_WIDTH = {"DSP48E1": 25, "DSP48E2": 27, "DSP58": 27}


def _priced(what: str, parts: tuple[float, ...]) -> float:
    return sum(price * part for price, part in zip(FITTED[what], parts, strict=True))


def dsp_lanes(block: str, weight_bits: int, input_bits: int, narrow: bool) -> int:
    """Products that one DSP slice makes at once for one input: NUM_LANES of mvu.sv. 4 for 4 × 4 bits, 2 for 8 × 8.

    `block`: DSP48E1, DSP48E2 or DSP58. `narrow`: the weights leave out the lowest number of their type.
    """
    wide = _A_WIDTH[block]
    if wide == weight_bits:
        return 1
    return 1 + (wide - (not narrow) - weight_bits) // (weight_bits + input_bits - 1)


def matrix_unit_dsps(pe: int, simd: int, lanes: int, block: str, weight_bits: int, input_bits: int) -> int:
    """DSP slices of an RTL matrix unit, by mvu_vvu_axi.sv: a slice for every input and `lanes` outputs.

    A DSP58 adds up three products of one output where it has no more lanes than that, up to 8 × 9 bits.
    """
    if block == "DSP58" and lanes <= 3 and weight_bits <= 8 and input_bits <= 9:
        return pe * math.ceil(simd / 3)
    return math.ceil(pe / lanes) * simd


def matrix_unit_luts(pe: int, simd: int, lanes: int, weight_bits: int, input_bits: int, sum_bits: int) -> float:
    """Look-up tables of an RTL matrix unit without its memories. FINN says 0. See `matrix_unit_parts`."""
    return _priced("matrix unit", matrix_unit_parts(pe, simd, lanes, weight_bits, input_bits, sum_bits)) + pe * sum_bits


def matrix_unit_parts(
    pe: int, simd: int, lanes: int, weight_bits: int, input_bits: int, sum_bits: int
) -> tuple[float, ...]:
    """What the logic of a matrix unit grows with; its output queue is known exactly, a shift register for every bit.

    Control; bits of the adders that sum up SIMD products of `lane` bits for every output; inputs and outputs that share
    their DSP slice with one below (what flows over into it is found and taken back); bits that their sums have beyond the
    lane.
    """
    lane = weight_bits + input_bits - 1
    shared = pe - math.ceil(pe / lanes)
    return 1.0, pe * (simd - 1) * lane, shared * simd, shared * max(0, sum_bits - lane)


def replay_memory(words: int, width: int) -> tuple[int, int]:
    """Look-up tables and 18 kbit block RAMs of the buffer in which a matrix unit keeps its inputs for all outputs.

    Rows are a power of two (replay_buffer.sv). Up to 64 of them lie in look-up tables by Yosys, and up to 2 kbit at any depth.
    FINN counts none. A unit that computes all outputs at once has no such buffer.
    """
    rows = 2 ** math.ceil(math.log2(max(words, 2)))
    if rows <= 32:
        return 8 * math.ceil(width / 14), 0
    if rows <= 64:
        return 8 * math.ceil(width / 7), 0
    if rows * width < 2048:
        return width * math.ceil(rows / 32), 0
    return 0, block_rams(width, rows)


def weight_queue_luts(width: int) -> int:
    """The queue behind a weight memory that streams words of `width` bits (memstream.sv): a shift register for every bit."""
    return width


def threshold_luts(pe: int, bits: int, input_bits: int, signed: bool, memory: float) -> float:
    """Look-up tables of RTL thresholds; `memory` of them by `rom_luts`, which is all that FINN counts. See `threshold_parts`.

    For random thresholds. Those at equal distances, as pixel inputs have, need much less: 221 where FINN says 1,280.
    """
    return _priced("thresholds", threshold_parts(pe, bits, input_bits, signed, memory))


def threshold_parts(pe: int, bits: int, input_bits: int, signed: bool, memory: float) -> tuple[float, ...]:
    """Control; bits of comparators, one for each bit of the result; bits of signed results, which are shifted; memory."""
    return 1.0, pe * bits * input_bits, pe * bits if signed else 0.0, memory


def converter_luts(written: int, read: int) -> float:
    """Look-up tables of a width converter (vpc.sv) from words of `written` bits to words of `read`. See `converter_parts`."""
    return 0.0 if written == read else _priced("width converter", converter_parts(written, read))


def converter_parts(written: int, read: int) -> tuple[float, ...]:
    """What a width converter grows with. FINN's formula has the width only, and says a quarter where a word becomes eight.

    It takes and gives multiples of their common divisor, and keeps as many of these parts as it takes and gives at once: control;
    these parts, which a mask tells; bits that it takes, once more if these are several parts; and bits that are turned round
    to where there is room. That takes a step for every bit in the number of parts beyond the first, in which a number that is
    no power of two costs less (0.6, as counted).
    """
    common = math.gcd(written, read)
    taken = written // common
    turns = max(0.0, math.log2(taken) - 1) * (1.0 if taken & (taken - 1) == 0 else 0.6)
    return 1.0, taken + read // common, written, written if taken > 1 else 0.0, written * turns


def window_luts(pixels: int, folds: int, simd: int, parallel: bool, memory: float, width: int) -> float:
    """Look-up tables of ConvolutionInputGenerator_rtl; FINN says 300 and its memory for any. See `window_parts`."""
    return _priced("window generator", window_parts(pixels, folds, simd, parallel, memory, width))


def window_parts(pixels: int, folds: int, simd: int, parallel: bool, memory: float, width: int) -> tuple[float, ...]:
    """What a window generator grows with: control, by its kind (kernels of one pixel of `pixels`, which are a stride alone;
    pixels of a window one after the other; all at once); its memory in look-up tables, by `line_luts` for all at once and
    by FINN's figure for the others. All at once need registers for the `width` of an input word in bits. The others have
    more control where the channels of a pixel come in `folds`, and what joins the parts of their memory, which is deepest
    for one channel at a time.
    """
    at_once = pixels > 1 and parallel
    kinds = pixels == 1, pixels > 1 and not parallel, at_once, folds > 1 and not at_once
    joined = pixels > 1 and simd == 1 and not at_once
    return *(float(kind) for kind in kinds), memory, float(joined), width if at_once else 0.0


def line_luts(rows: int, words: int, width: int) -> int:
    """The lines that a window generator keeps beside the window, for `rows` of a kernel whose pixels come all at once.

    All but the last row have one of `words` words of `width` bits each, in look-up tables of 64 rows by 7 bits (RAM64M8).
    """
    return (rows - 1) * 8 * math.ceil(words / 64) * math.ceil(width / 7)


def padding_luts(width: int) -> float:
    """Look-up tables of FMPadding_rtl, whose words have `width` bits. FINN says 0."""
    return _priced("padding", (1.0, width))


def requant_luts(
    pe: int, product_bits: int, bias_bits: int, bits: int, shift: int, signed: bool, slices: int, parameters: int
) -> float:
    """Look-up tables of IntegerRequant. FINN has no such layer. See `requant_parts`."""
    return _priced(
        "multiplication", requant_parts(pe, product_bits, bias_bits, bits, shift, signed, slices, parameters)
    )


def requant_parts(
    pe: int, product_bits: int, bias_bits: int, bits: int, shift: int, signed: bool, slices: int, parameters: int
) -> tuple[float, ...]:
    """What a multiplication for a quantizer grows with: control; `parameters`, look-up tables of 64 words by a bit; bits of
    the sum where a product takes several DSP `slices`, which one of them cannot add; bits above those of the result, which
    say whether it is clipped; and signed results.
    """
    total = max(product_bits, bias_bits, bits)
    several = pe * (total + 1) if slices > 1 else 0
    return 1.0, parameters, several, pe * max(0, total - shift - bits), pe if signed else 0.0


def rom_luts(width: int, depth: int) -> int:
    """A memory in look-up tables: 64 bits each, 32 bits of two columns where no more rows are needed; wide multiplexers
    join up to 256 rows for nothing.
    """
    if depth <= 1:
        return 0
    if depth <= 32:
        return math.ceil(width / 2)
    return width * (math.ceil(depth / 64) + math.ceil((math.ceil(depth / 256) - 1) / 3))


def block_rams(width: int, depth: int) -> int:
    """18 kbit block RAMs of a memory, in the one shape of 36 × 512 to 1 × 16,384 that takes the fewest."""
    shapes = ((36, 512), (18, 1024), (9, 2048), (4, 4096), (2, 8192), (1, 16384))
    return min(math.ceil(width / wide) * math.ceil(depth / deep) for wide, deep in shapes)


def weight_block_rams(width: int, depth: int) -> int:
    """18 kbit block RAMs of a weight memory: FINN's `MVAU.bram_estimation`, for any depth."""
    if width == 1:
        return math.ceil(depth / 16384)
    if width == 2:
        return math.ceil(depth / 8192)
    if width <= 4:
        return math.ceil(depth / 4096)
    if width <= 9:
        return math.ceil(depth / 2048)
    if width <= 18 or depth > 512:
        return math.ceil(depth / 1024) * math.ceil(width / 18)
    return math.ceil(depth / 512) * math.ceil(width / 36)


def ultra_rams(width: int, depth: int) -> int:
    """UltraRAMs of a memory: 72 × 4,096, FINN's `MVAU.uram_estimation`."""
    return math.ceil(width / 72) * math.ceil(depth / 4096)


def accumulator_luts(pe: int, channels: int, bits: int) -> int:
    """Sums over a frame: an adder for each of `pe` channels, and a memory for the sums of all."""
    return pe * (bits + rom_luts(bits, channels // pe))
