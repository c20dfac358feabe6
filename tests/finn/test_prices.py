"""What our prices are made of: the counts that formulas were fitted to, and FINN's own formulas that they repeat."""

from __future__ import annotations

from typing import Any

import pytest

from fxfactor.finn.process.folding import formulas

UNITS = [
    # MW, MH, PE, SIMD, weight bits, input bits, sum bits, and by Yosys: LUTs of logic, LUTs and block RAMs as memory, DSPs
    (144, 32, 1, 1, 4, 4, 14, 61, 32, 0, 1),
    (144, 32, 4, 1, 4, 4, 14, 148, 32, 0, 1),
    pytest.param(
        (144, 32, 8, 1, 4, 4, 14, 236, 32, 0, 2),
        marks=pytest.mark.xfail(
            strict=True, reason="one input at a time for eight outputs: our price is 28 % too high"
        ),
    ),
    (144, 32, 1, 4, 4, 4, 14, 84, 24, 0, 4),
    (144, 32, 4, 4, 4, 4, 14, 335, 24, 0, 4),
    (144, 32, 8, 4, 4, 4, 14, 628, 24, 0, 8),
    (144, 32, 4, 9, 4, 4, 14, 643, 24, 0, 9),
    (576, 64, 4, 16, 4, 4, 16, 1104, 80, 0, 16),
    (576, 64, 8, 16, 4, 4, 16, 2165, 80, 0, 32),
    (576, 64, 2, 4, 8, 8, 22, 222, 0, 1, 4),
    (576, 64, 4, 4, 8, 8, 22, 398, 0, 1, 8),
    (576, 64, 1, 1, 8, 8, 22, 49, 0, 1, 1),
    (27, 16, 4, 3, 4, 8, 14, 226, 16, 0, 6),
    (64, 64, 4, 8, 3, 3, 12, 502, 16, 0, 8),
    (576, 64, 2, 32, 8, 8, 22, 1591, 152, 0, 32),
    (16, 16, 16, 16, 4, 4, 12, 3868, 0, 0, 64),
    (144, 32, 4, 12, 6, 6, 18, 1062, 48, 0, 24),
    (144, 32, 4, 4, 4, 4, 20, 417, 24, 0, 4),
    (576, 64, 16, 32, 4, 4, 16, 8295, 80, 0, 128),
    # not used for the fit
    (288, 64, 4, 6, 4, 4, 15, 454, 32, 0, 6),
    (256, 128, 8, 8, 8, 8, 20, 1490, 40, 0, 32),
]
THRESHOLDS = [
    # bits of inputs, thresholds and results, signed results, channels, PE, and LUTs by Yosys with random thresholds
    (2, 3, 2, False, 64, 2, 23),
    (3, 3, 2, False, 16, 1, 25),
    (3, 3, 2, False, 32, 2, 31),
    (9, 7, 2, False, 32, 1, 52),
    (9, 7, 2, True, 16, 2, 88),
    (9, 8, 3, False, 32, 2, 129),
    (9, 8, 3, False, 64, 1, 105),
    (10, 7, 2, False, 32, 2, 83),
    (10, 9, 3, True, 64, 1, 115),
    (11, 10, 4, True, 16, 1, 123),
    (11, 10, 4, True, 32, 2, 230),
    (12, 9, 3, True, 64, 2, 160),
    (20, 17, 2, False, 16, 2, 169),
    (20, 18, 4, False, 16, 1, 186),
]
WINDOWS = [
    # pixels of a kernel, folds of channels, SIMD, all pixels at once, FINN's LUTs of memory, and LUTs by Yosys
    (1, 16, 2, False, 0, 93),
    (1, 16, 2, False, 0, 103),
    (9, 2, 8, False, 256, 529),
    (9, 8, 2, False, 84, 345),
    (9, 8, 2, False, 120, 401),
    (9, 8, 4, False, 144, 362),
    (9, 8, 4, False, 144, 366),
    (9, 16, 2, False, 84, 330),
    (9, 32, 1, False, 164, 496),
    (9, 32, 2, False, 80, 332),
    (9, 32, 2, False, 160, 449),
    (9, 64, 1, False, 312, 701),
]
WINDOWS_AT_ONCE = [
    # words of a line, folds of channels, SIMD, bits of a word, and by Yosys LUTs of memory and all LUTs; kernels of 3 × 3
    (496, 16, 1, 2, 128, 301),
    (496, 16, 1, 4, 128, 329),
    (496, 16, 1, 6, 128, 367),
    (496, 16, 1, 8, 256, 513),
    pytest.param(
        (448, 64, 1, 6, 112, 391),
        marks=pytest.mark.xfail(strict=True, reason="64 folds of channels: our price is 17 % too low"),
    ),
    (248, 8, 2, 12, 128, 404),
    (240, 16, 2, 12, 128, 375),
]
CONVERTERS = [
    # bits of a word written and of one read, and LUTs by Yosys
    (4, 8, 18),
    (4, 12, 22),
    (4, 16, 23),
    (4, 32, 34),
    (4, 64, 51),
    (8, 4, 30),
    (12, 4, 43),
    (16, 4, 88),
    (24, 4, 115),
    (32, 4, 205),
    (64, 4, 548),
    (8, 12, 37),
    (12, 8, 46),
    (16, 12, 102),
    (36, 16, 191),
    (12, 24, 26),
    (12, 36, 30),
    (12, 48, 31),
    (12, 96, 42),
    (12, 192, 59),
    (24, 12, 54),
    (36, 12, 91),
    (48, 12, 216),
    (72, 12, 286),
    (96, 12, 550),
    (192, 12, 1510),
    (24, 36, 68),
    (36, 24, 94),
    (48, 36, 246),
    (108, 48, 478),
]
REQUANTS = [
    # PE, bits of a product, bias and result, shift, signed, DSP slices, look-up tables of parameters, and LUTs by Yosys
    (1, 20, 9, 8, 9, False, 1, 18, 33),
    (1, 22, 11, 8, 11, False, 1, 23, 48),
    (1, 22, 12, 7, 12, False, 1, 24, 41),
    (1, 24, 13, 8, 13, False, 1, 25, 43),
    (1, 25, 20, 4, 15, False, 1, 32, 70),
    (1, 26, 20, 4, 17, True, 1, 33, 73),
    (1, 33, 22, 8, 22, False, 1, 39, 66),
    (1, 35, 30, 6, 26, True, 1, 49, 98),
    (1, 39, 26, 6, 26, True, 1, 47, 95),
    (1, 42, 36, 8, 28, False, 2, 58, 145),
    (1, 46, 32, 8, 32, True, 2, 57, 142),
    (1, 47, 42, 8, 35, True, 2, 68, 162),
    (1, 48, 43, 8, 36, True, 2, 70, 201),
    (1, 49, 33, 8, 33, True, 2, 62, 186),
    (1, 50, 43, 8, 35, False, 2, 69, 173),
    (1, 52, 45, 8, 39, True, 2, 73, 227),
]


@pytest.mark.parametrize("case", REQUANTS)
def test_multiplications_cost_what_yosys_counts(case: tuple[Any, ...]) -> None:
    *layer, luts = case
    assert formulas.requant_luts(*layer) == pytest.approx(luts, rel=0.2)


@pytest.mark.parametrize("unit", UNITS)
def test_matrix_units_cost_what_yosys_counts(unit: tuple[int, ...]) -> None:
    rows, columns, pe, simd, weights, inputs, sums, logic, memory, bram18, dsp = unit
    lanes = formulas.dsp_lanes("DSP48E2", weights, inputs, True)
    found = formulas.matrix_unit_luts(pe, simd, lanes, weights, inputs, sums) - pe * sums  # less the output queue
    assert found == pytest.approx(logic, rel=0.25)  # none of these units is among those that prices are fitted to
    kept = (0, 0) if pe == columns else formulas.replay_memory(rows // simd, simd * inputs)
    assert kept == pytest.approx((memory, bram18), abs=8)
    assert formulas.matrix_unit_dsps(pe, simd, lanes, "DSP48E2", weights, inputs) == dsp


@pytest.mark.parametrize("case", THRESHOLDS)
def test_thresholds_cost_what_yosys_counts(case: tuple[int, ...]) -> None:
    entering, width, bits, signed, channels, pe, luts = case
    memory = pe * sum(formulas.rom_luts(width, channels // pe * 2**stage) for stage in range(bits))
    assert formulas.threshold_luts(pe, bits, entering, bool(signed), memory) == pytest.approx(luts, rel=0.2, abs=11)


@pytest.mark.parametrize("case", WINDOWS)
def test_window_generators_cost_what_yosys_counts(case: tuple[Any, ...]) -> None:
    *layer, luts = case
    assert formulas.window_luts(*layer, width=8) == pytest.approx(luts, rel=0.25)


@pytest.mark.parametrize("case", WINDOWS_AT_ONCE)
def test_window_generators_that_give_a_window_at_once(case: tuple[int, ...]) -> None:
    words, folds, simd, width, memory, luts = case
    assert formulas.line_luts(3, words, width) == memory
    assert formulas.window_luts(9, folds, simd, True, memory, width) == pytest.approx(luts, rel=0.1)


@pytest.mark.parametrize("case", CONVERTERS)
def test_width_converters_cost_what_yosys_counts(case: tuple[int, ...]) -> None:
    *widths, luts = case
    assert formulas.converter_luts(*widths) == pytest.approx(luts, rel=0.2)


def test_equal_widths_need_no_converter() -> None:
    assert formulas.converter_luts(8, 8) == 0


def test_lanes_of_a_dsp() -> None:
    def lanes(weights: int, inputs: int, narrow: bool = True, block: str = "DSP48E2") -> int:
        return formulas.dsp_lanes(block, weights, inputs, narrow)

    assert [lanes(bits, bits) for bits in (3, 4, 5, 6, 8)] == [5, 4, 3, 2, 2]
    assert lanes(4, 8) == 3  # the first layer: pixels of 8 bits
    assert lanes(4, 4, block="DSP48E1") == 4
    assert (lanes(4, 4, block="DSP48E1"), lanes(4, 4, narrow=False, block="DSP48E1")) == (4, 3)
    assert lanes(27, 4) == 1
    assert formulas.matrix_unit_dsps(4, 9, 2, "DSP58", 8, 8) == 4 * 3  # three products at once
    assert formulas.matrix_unit_dsps(4, 9, 4, "DSP58", 4, 4) == 9


def test_memories() -> None:
    assert [formulas.rom_luts(12, depth) for depth in (1, 16, 32, 64, 128, 256, 512)] == [0, 6, 6, 12, 24, 48, 108]
    assert [formulas.block_rams(*each) for each in ((36, 512), (18, 1024), (9, 2048), (9, 4096), (20, 4096))] == [
        1,
        1,
        1,
        2,
        5,
    ]
    assert formulas.ultra_rams(73, 4097) == 4


@pytest.fixture
def layers() -> Any:
    """Makes one of FINN's layers."""
    pytest.importorskip("finn")
    from onnx import helper
    from qonnx.custom_op.registry import getCustomOp

    def make(kind: str, **attributes: Any) -> Any:
        node = helper.make_node(kind, ["in", "weights"], ["out"], domain="finn.custom_op.fpgadataflow.rtl",
                                backend="fpgadataflow", **attributes)  # fmt: skip
        return getCustomOp(node)

    return make


def unit(layers: Any, **attributes: Any) -> Any:
    types = {"inputDataType": "UINT8", "weightDataType": "INT8", "outputDataType": "INT22", "accDataType": "INT22"}
    return layers("MVAU_rtl", **{"MW": 576, "MH": 64, "SIMD": 4, "PE": 4, "noActivation": 1, "numInputVectors": [1, 8, 8],
                                 "mem_mode": "internal_decoupled", **types, **attributes})  # fmt: skip


@pytest.mark.finn
@pytest.mark.parametrize(
    ("simd", "pe", "bits"), [(1, 1, 2), (2, 1, 2), (4, 4, 8), (576, 64, 8), (16, 8, 4), (1, 1, 1), (9, 1, 3)]
)
def test_the_weight_memory_is_counted_as_finn_does(layers: Any, simd: int, pe: int, bits: int) -> None:
    part = "xczu7ev-ffvc1156-2-e"
    for style in ("block", "ultra"):
        layer = unit(layers, SIMD=simd, PE=pe, weightDataType=f"INT{bits}" if bits > 1 else "BINARY", ram_style=style)
        width, depth = simd * pe * bits, 576 * 64 // simd // pe
        assert formulas.weight_block_rams(width, depth) == layer.bram_estimation(part) or style == "ultra"
        assert formulas.ultra_rams(width, depth) == layer.uram_estimation(part) or style == "block"


@pytest.mark.finn
def test_what_finn_leaves_out_of_a_matrix_unit(layers: Any) -> None:
    from fxfactor.finn.process.folding.prices import finns, ours

    part, layer = "xczu7ev-ffvc1156-2-e", unit(layers, ram_style="block")
    assert finns(layer, part) == (0, 24, 4, 0)
    lut, bram18, dsp, uram = ours(layer, part, True)
    assert (bram18, dsp, uram) == (25, 8, 0)  # two lanes at 8 bits, and the buffer of the inputs
    assert lut == pytest.approx(398 + 88 + 4 * 4 * 8, rel=0.1)  # by Yosys, with the queues of sums and of weights
    distributed = ours(unit(layers, ram_style="distributed"), part, True)
    assert distributed[0] - lut == formulas.rom_luts(128, 2304)
    assert distributed[1] == 1
    assert ours(unit(layers, ram_style="ultra", runtime_writeable_weights=1), part, True)[3] == 2


@pytest.mark.finn
def test_thresholds_in_block_ram_where_their_depth_says_so(layers: Any) -> None:
    from fxfactor.finn.process.folding.candidates import NEVER
    from fxfactor.finn.process.folding.prices import finns, ours

    def made(trigger: int) -> Any:
        return layers("Thresholding_rtl", NumChannels=64, PE=1, inputDataType="INT16", weightDataType="INT16",
                      outputDataType="UINT8", numSteps=255, depth_trigger_bram=trigger, depth_trigger_uram=NEVER)  # fmt: skip

    part = "xczu7ev-ffvc1156-2-e"
    never, deep = ours(made(NEVER), part, False), ours(made(1024), part, False)
    assert never[1] == 0
    assert deep[1] == 1 + 2 + 4 + 8  # 1,024 to 8,192 thresholds of 16 bits
    assert deep[0] < never[0] / 4
    assert finns(made(1024), part)[3] == 0  # without a trigger for it FINN would count UltraRAM
