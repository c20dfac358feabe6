"""synthesize: a small network counted by Yosys, counts that are kept, and what is refused."""

from __future__ import annotations

import io
import json
import random
import time
from importlib.util import find_spec
from pathlib import Path

import pytest
from finn_helpers import export_to
from rich.console import Console
from small_networks import build, conv, norm, relu, stem
from torch import nn
from typer.testing import CliRunner

import fxfactor
from fxfactor.cli.finn import app
from fxfactor.errors import FinnError
from fxfactor.finn.commands import Commands
from fxfactor.finn.process.folding import formulas
from fxfactor.finn.simulation.rtl import TOP, Code
from fxfactor.finn.synthesis import counting
from fxfactor.finn.synthesis.cells import Area, area_of
from fxfactor.finn.synthesis.counting import Counter, family_of, find_yosys
from fxfactor.finn.synthesis.flow import AREAS
from fxfactor.finn.synthesis.rtl_for_yosys import QUEUES, THRESHOLDS, libraries_of, source_of

needs_yosys = pytest.mark.skipif(find_spec("pyosys") is None, reason="pip install 'fxfactor[synthesize]'")


def network() -> nn.Module:
    return build(lambda: nn.Sequential(*stem(), conv(8, 4), norm(4), relu()))


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("counts")


@pytest.fixture(scope="module")
def result(store: Path) -> fxfactor.finn.Synthesis:
    file = export_to(store / "model.onnx", network(), (1, 3, 8, 8))
    return fxfactor.finn.synthesize(file, "ZCU104", 1000, requant=False, cache=store / "cache")


@pytest.mark.finn
@needs_yosys
def test_every_layer_in_rtl_is_counted(result: fxfactor.finn.Synthesis) -> None:
    counted = {layer.kind: layer for layer in result.layers if layer.yosys is not None}
    assert {"FMPadding_rtl", "ConvolutionInputGenerator_rtl", "MVAU_rtl", "Thresholding_rtl"} <= set(counted)
    assert result.not_counted == tuple(layer.name for layer in result.layers if layer.kind.endswith("_hls"))
    for layer in counted.values():
        assert layer.yosys is not None
        assert layer.yosys.lut > 10 and layer.yosys.ff > 10
        assert layer.yosys.lut >= layer.yosys.lut_memory
        assert (layer.yosys.dsp > 0) == layer.kind.startswith("MVAU")
    assert result.total.dsp == result.ours.dsp == result.finn.dsp
    assert sum((area for area, _, _ in result.by_site().values()), Area(0, 0, 0, 0, 0, 0)) == result.total
    assert sum(area.lut for area, _, _ in result.by_kind().values()) == result.total.lut
    assert len({layer.site for layer in counted.values()}) > 1


@pytest.mark.slow
@pytest.mark.finn
@needs_yosys
def test_counts_are_kept_and_do_not_depend_on_weights(
    result: fxfactor.finn.Synthesis, store: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def count(*_: object) -> None:
        raise AssertionError("counted again")

    monkeypatch.setattr(Counter, "_count", count)
    other = network()
    weight = other[4].weight
    weight.data = weight.data.flip(0)  # other weights, and sums as wide
    file = export_to(store / "other.onnx", other, (1, 3, 8, 8))
    again = fxfactor.finn.synthesize(file, "ZCU104", 1000, requant=False, cache=store / "cache")
    assert again.counted == 0 < result.counted
    assert again.layers == result.layers
    assert not list((store / "cache" / AREAS).glob(".run-*"))


@pytest.mark.finn
@needs_yosys
def test_the_result_as_text_and_json(result: fxfactor.finn.Synthesis, store: Path) -> None:
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result)
    text = console.export_text()
    total = f"{result.total.lut:,} ({result.ours.lut:,}, {result.finn.lut:,})"
    assert total in text
    assert "packs less tightly" in text
    arguments = ["synthesize", str(store / "model.onnx"), "--no-requant", "--cache", str(store / "cache"), "--json"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    data = json.loads(told.stdout)
    assert data["total"]["lut"] == result.total.lut
    assert data["counted"] == 0
    assert len(data["layers"]) == len(result.layers)


# ---- cells ----


def test_cells_become_areas() -> None:
    cells = {"LUT2": 3, "LUT6": 4, "LUT6_2": 1, "INV": 2, "RAM32M16": 2, "SRL16E": 5, "FDRE": 7, "FDSE_1": 1, "CARRY4": 9,
             "MUXF7": 3, "RAMB18E2": 1, "RAMB36E2": 2, "DSP48E2": 6, "URAM288": 1}  # fmt: skip
    assert area_of(cells) == Area(lut=31, lut_memory=16, ff=8, bram18=5, dsp=6, uram=1)


def test_cells_that_nobody_knows_are_no_area() -> None:
    with pytest.raises(ValueError, match="2 cells of the kind 'NEW'"):
        area_of({"LUT2": 3, "NEW": 2})


# ---- the RTL for Yosys ----


def code(text: str, data: dict[str, bytes] | None = None, name: str = "layer.sv") -> Code:
    return Code({name: text}, data or {}, (8,), (8,))


def test_memories_hold_random_numbers_as_wide_and_as_many() -> None:
    weights = source_of(code("", {"a.dat": b"0f\n7f\n00\n"})).data["a.dat"].decode()
    other = source_of(code("", {"a.dat": b"40\n01\n02\n"})).data["a.dat"].decode()
    assert weights == other
    assert [len(word) for word in weights.split()] == [2, 2, 2]
    assert all(int(word, 16) < 128 for word in weights.split())
    assert source_of(code("", {"a.dat": b"0f\n7f\n"})).data["a.dat"] not in (weights.encode(), b"")


def test_thresholds_are_read_by_names_that_yosys_evaluates() -> None:
    read = 'initial  $readmemh($sformatf("%sthreshs_%0d_%0d.dat", THRESHOLDS_PATH, pe, stage), Threshs);'
    text = source_of(code(f"begin\n{read}\nend", name=THRESHOLDS)).files[THRESHOLDS]
    assert "$sformatf" not in text and text.count("$readmemh") == 3
    with pytest.raises(FinnError, match=r"required: FINN's thresholding.sv as in finn-plus 1.6.1"):
        source_of(code("something else", name=THRESHOLDS))


def test_a_library_without_a_cell_is_refused(tmp_path: Path) -> None:
    for name in ("cells_sim.v", "cells_xtra.v", "lutrams_xcu.txt"):
        (tmp_path / name).write_text("module LUT6_2 (input I0);\nendmodule\n")
    with pytest.raises(FinnError, match="required: the cell DSP48E1 in Yosys' library"):
        libraries_of(tmp_path)


# ---- Yosys ----

ADDER = f"module {TOP}(input [7:0] a, b, output [7:0] c); assign c = a + b; endmodule"
DEEP = f"""module {TOP}(input clk, we, input [9:0] at, input [7:0] d, output reg [7:0] q);
(* ram_style = "STYLE" *) reg [7:0] memory [0:1023];
always @(posedge clk) begin if(we) memory[at] <= d; q <= memory[at]; end
endmodule"""


@needs_yosys
def test_memories_go_where_their_style_says(tmp_path: Path) -> None:
    counter = Counter(find_yosys(), "xcup", True, tmp_path, 2)
    codes = {style: code(DEEP.replace("STYLE", style)) for style in ("block", "distributed", "ultra")}
    with Commands(time.monotonic() + 600) as commands:
        areas, counted = counter.areas(codes.values(), commands, lambda step: None)
    found = {style: areas[each.key] for style, each in codes.items()}
    assert counted == 3
    assert (found["block"].bram18, found["block"].lut_memory, found["block"].uram) == (1, 0, 0)
    assert (found["ultra"].bram18, found["ultra"].lut_memory, found["ultra"].uram) == (0, 0, 1)
    assert (found["distributed"].bram18, found["distributed"].uram) == (0, 0)
    assert found["distributed"].lut_memory == 8 * 1024 // 64


ROM = f"""module {TOP}(input clk, input [ADDRESS-1:0] at, output reg [32:0] q);
(* rom_style = "distributed" *) reg [32:0] memory [0:2**ADDRESS-1];
initial $readmemh("memory.dat", memory);
always @(posedge clk) q <= memory[at];
endmodule"""


@needs_yosys
def test_a_memory_that_is_never_written_takes_a_look_up_table_for_64_bits(tmp_path: Path) -> None:
    """As our price `rom_luts` has it; random content would become three to eight times as many as logic."""
    counter = Counter(find_yosys(), "xcup", True, tmp_path, 2)
    codes = {}
    for address in (5, 6, 7, 8, 9):
        words = "".join(f"{random.Random(at).getrandbits(33):09x}\n" for at in range(2**address))
        codes[address] = code(ROM.replace("ADDRESS", str(address)), {"memory.dat": words.encode()})
    with Commands(time.monotonic() + 600) as commands:
        areas, _ = counter.areas(codes.values(), commands, lambda step: None)
    found = {address: areas[each.key].lut for address, each in codes.items()}
    assert found == {5: 33, 6: 33, 7: 66, 8: 132, 9: 264 + 33}
    assert all(area.bram18 == 0 and area.ff == 33 for area in areas.values())
    assert [formulas.rom_luts(33, 2**address) for address in (6, 7, 8, 9)] == [33, 66, 132, 297]


QUEUE = """module memstream #(WIDTH = 40, FULL_CREDIT = 8)(input clk, Rs3, input [WIDTH-1:0] Dat3, input [3:0] at, output [WIDTH-1:0] q);
typedef logic [WIDTH-1:0] data_t;
		(* SHREG_EXTRACT = "yes" *)
		data_t  OSrl[FULL_CREDIT-1];
		logic [$clog2(FULL_CREDIT):0]  OPtr = -1;
		always_ff @(posedge clk) begin
			if(Rs3)  OSrl <= { Dat3, OSrl[0:FULL_CREDIT-3] };
		end
always_ff @(posedge clk) OPtr <= at;
assign q = OSrl[OPtr];
endmodule
"""


@needs_yosys
def test_a_queue_is_a_look_up_table_for_each_bit(tmp_path: Path) -> None:
    """What Vivado makes of it; Yosys alone would take flip-flops for all words, and multiplexers."""
    top = f"""module {TOP}(input clk, push, input [39:0] d, input [3:0] at, output [39:0] q);
    memstream queue(.clk(clk), .Rs3(push), .Dat3(d), .at(at), .q(q)); endmodule"""
    layer = Code({"layer.sv": top, "memstream.sv": QUEUE}, {}, (8,), (8,))
    counter = Counter(find_yosys(), "xcup", True, tmp_path, 1)
    with Commands(time.monotonic() + 600) as commands:
        areas, _ = counter.areas([layer], commands, lambda step: None)
    assert (areas[layer.key].lut, areas[layer.key].ff) == (40, 3)


@pytest.mark.parametrize("name", QUEUES)
def test_a_queue_that_finn_has_changed_is_refused(name: str) -> None:
    with pytest.raises(FinnError, match=f"required: FINN's {name} as in finn-plus 1.6.1"):
        source_of(code("module other; endmodule", name=name))


@needs_yosys
def test_what_yosys_does_not_take_is_told(tmp_path: Path) -> None:
    counter = Counter(find_yosys(), "xc7", False, tmp_path, 1)
    with (
        Commands(time.monotonic() + 600) as commands,
        pytest.raises(FinnError, match=r"counting a layer \(layer.sv\) failed"),
    ):
        counter.areas([code(f"module {TOP}(input a); nonsense endmodule")], commands, lambda step: None)
    assert not [entry for entry in tmp_path.iterdir()]


@needs_yosys
def test_time_is_up(tmp_path: Path) -> None:
    counter = Counter(find_yosys(), "xcup", False, tmp_path, 1)
    with Commands(time.monotonic()) as commands, pytest.raises(FinnError, match="stopped while counting a layer"):
        counter.areas([code(ADDER)], commands, lambda step: None)
    assert not [entry for entry in tmp_path.iterdir()]
    assert not commands.running


def test_what_is_missing_or_not_supported_is_told_before_finn_starts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    with pytest.raises(FinnError, match="required: a board with Zynq-7000 or UltraScale"):
        fxfactor.finn.synthesize(tmp_path / "no.onnx", "VCK190")
    monkeypatch.setattr(counting, "find_spec", lambda name: None)
    with pytest.raises(FinnError, match=r"required: Yosys.*pip install pyosys==0.70"):
        fxfactor.finn.synthesize(tmp_path / "no.onnx", "ZCU104")


def test_families_of_parts() -> None:
    assert family_of("xc7z020clg400-1") == "xc7"
    assert family_of("xczu7ev-ffvc1156-2-e") == "xcup" == family_of("xck26-sfvc784-2LV-c")
    with pytest.raises(FinnError, match="found: xcvc1902"):
        family_of("xcvc1902-vsva2197-2MP-e-S")
