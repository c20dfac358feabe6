"""The RTL of a layer as Yosys takes it: changes of text on copies, cells that stay as they are, memories with random content.

Yosys' SystemVerilog front end (slang) knows less than Vivado's. What is changed has no effect on what is built.
"""

from __future__ import annotations

import hashlib
import random
import re
from dataclasses import dataclass
from pathlib import Path

from fxfactor.errors import FinnError
from fxfactor.finn.simulation.rtl import Code

CELLS, LUT_RAMS, ROMS, ROM_MAP = "fx_cells.v", "fx_lutrams.txt", "fx_roms.txt", "fx_roms.v"
BLACK_BOXES = {"LUT6_2": "cells_sim.v", "DSP48E1": "cells_sim.v", "DSP48E2": "cells_xtra.v", "SRL16E": "cells_sim.v"}
"""Primitives that matrix units are made of -> the file of Yosys' library that has their ports."""

_ROMS = """
ram distributed $__FX_ROM_ {
	option "ABITS" 6 { abits 6; cost 2; }
	option "ABITS" 7 { abits 7; cost 4; }
	option "ABITS" 8 { abits 8; cost 8; }
	width 1;
	init any;
	port ar "R" {
	}
}
"""
_ROM_MAP = r"""
module \$__FX_ROM_ (PORT_R_ADDR, PORT_R_RD_DATA);
	parameter OPTION_ABITS = 6;
	parameter INIT = 0;
	input [OPTION_ABITS-1:0] PORT_R_ADDR;
	output PORT_R_RD_DATA;
	wire [3:0] word;
	wire [1:0] half;
	genvar i;
	generate
		for(i = 0; i < 2**(OPTION_ABITS-6); i = i + 1) begin : gen
			LUT6 #(.INIT(INIT[64*i +: 64])) lut (
				.I0(PORT_R_ADDR[0]), .I1(PORT_R_ADDR[1]), .I2(PORT_R_ADDR[2]), .I3(PORT_R_ADDR[3]), .I4(PORT_R_ADDR[4]),
				.I5(PORT_R_ADDR[5]), .O(word[i])
			);
		end
		if(OPTION_ABITS == 6) assign PORT_R_RD_DATA = word[0];
		else begin
			for(i = 0; i < OPTION_ABITS - 6; i = i + 1) begin : half_of
				MUXF7 mux(.I0(word[2*i]), .I1(word[2*i+1]), .S(PORT_R_ADDR[6]), .O(half[i]));
			end
			if(OPTION_ABITS == 7) assign PORT_R_RD_DATA = half[0];
			else MUXF8 mux(.I0(half[0]), .I1(half[1]), .S(PORT_R_ADDR[7]), .O(PORT_R_RD_DATA));
		end
	endgenerate
endmodule
"""
"""A memory in look-up tables that is never written: 64 words for each bit, four of them joined for nothing. Yosys would take it
apart like any logic, into two to eight times as many."""

SHIFT_REGISTER = "fx_shift_register.sv"
_SHIFT_REGISTER = """
module fx_shift_register #(int unsigned WIDTH, int unsigned ADDRESS)(
	input  logic clk, input logic push, input logic [WIDTH-1:0] entering, input logic [ADDRESS-1:0] address,
	output logic [WIDTH-1:0] leaving
);
	if(ADDRESS <= 4) begin : genSrl
		wire [3:0] at = {4'd0, address};
		for(genvar i = 0; i < WIDTH; i++) begin : genBit
			SRL16E bits(
				.CLK(clk), .CE(push), .D(entering[i]), .A0(at[0]), .A1(at[1]), .A2(at[2]), .A3(at[3]), .Q(leaving[i])
			);
		end : genBit
	end : genSrl
	else begin : genLong
		logic [WIDTH-1:0] words[2**ADDRESS];
		always_ff @(posedge clk) if(push) words <= { entering, words[0:2**ADDRESS-2] };
		assign leaving = words[address];
	end : genLong
endmodule : fx_shift_register
"""
"""A queue of which any word is read: up to 16 words, a look-up table for each bit."""

QUEUES = {
    "mvu_vvu_axi.sv": (
        r"\(\* SHREG_EXTRACT = \"YES\" \*\)\s*output_t\s+OBuf\[0:MAX_IN_FLIGHT\];",
        "output_t OBuf;\n"
        "\t\tfx_shift_register #(.WIDTH($bits(output_t)), .ADDRESS($clog2(MAX_IN_FLIGHT+1))) queue("
        ".clk(ap_clk), .push(ovld), .entering(odat), .address(OPtr[$left(OPtr)-1:0]), .leaving(OBuf));",
        r"always_ff @\(posedge ap_clk\) begin\s*if\(ovld\)\s*OBuf <= .*?end",
        "OBuf[OPtr[$left(OPtr)-1:0]]",
        "OBuf",
    ),
    "memstream.sv": (
        r"\(\* SHREG_EXTRACT = \"yes\" \*\)\s*data_t\s+OSrl\[FULL_CREDIT-1\];\s*(logic .*? OPtr = -1;)",
        r"\1\n\t\tdata_t OSrl;\n"
        r"\t\tfx_shift_register #(.WIDTH(WIDTH), .ADDRESS($clog2(FULL_CREDIT))) queue("
        r".clk(clk), .push(Rs3), .entering(Dat3), .address(OPtr[$left(OPtr)-1:0]), .leaving(OSrl));",
        r"always_ff @\(posedge clk\) begin\s*if\(Rs3\)\s*OSrl <= .*?end",
        "OSrl[OPtr]",
        "OSrl",
    ),
}
"""File -> its queue, which Vivado is told to put into shift registers (SHREG_EXTRACT) and Yosys would not: what declares it,
what does so in its place, what fills it, how it is read, and how then.
"""

THRESHOLDS = "thresholding.sv"
_READ = 'initial  $readmemh($sformatf("%sthreshs_%0d_%0d.dat", THRESHOLDS_PATH, pe, stage), Threshs);'


@dataclass(frozen=True)
class Source:
    """`files` is what is synthesised, name -> text; `data` what its memories hold, name -> bytes."""

    files: dict[str, str]
    data: dict[str, bytes]

    @property
    def key(self) -> str:
        """A hash of all of it."""
        digest = hashlib.sha256()
        for name, text in self.files.items():
            digest.update(f"{name}\0{text}\0".encode())
        for name, content in self.data.items():
            digest.update(f"{name}\0".encode() + content + b"\0")
        return digest.hexdigest()[:24]


def source_of(code: Code) -> Source:
    """The code for Yosys. Weights and thresholds become random numbers as wide, so that equal layers count equal."""
    files = {name: _patched(name, text) for name, text in code.files.items()}
    if files.keys() & QUEUES.keys():
        files[SHIFT_REGISTER] = _SHIFT_REGISTER
    return Source(files, {name: _random_like(content, name) for name, content in code.data.items()})


def _patched(name: str, text: str) -> str:
    text = re.sub(r"^`default_nettype.*$", "", text, flags=re.MULTILINE)
    # a wildcard in a comparison: the only pattern with one is CFG, 2'b1x
    text = text.replace("P.op !=? CFG", "!P.op[1]").replace("==?", "==")
    # a check that simulators make, which synthesis leaves out
    text = re.sub(r"if\(1\) begin : blkRecoveryWatch.*?end : blkRecoveryWatch", "", text, flags=re.DOTALL)
    # in the first stage the slice has its bounds the wrong way round: no bits
    text = text.replace("p.ptr[M-1:SN+1] < 2", "(p.ptr[M-1:0] >> (SN+1)) < 2")
    # Yosys reads this attribute in small letters only
    text = re.sub(r"\bRAM_STYLE = RAM_STYLE \*\)", "ram_style = RAM_STYLE *)", text)
    if name == THRESHOLDS:
        return _with_plain_names(text)
    return _with_shift_registers(name, text) if name in QUEUES else text


def _with_shift_registers(name: str, text: str) -> str:
    """The queue of a file as a shift register. Raises FinnError where the file is not as expected: FINN has changed it."""
    declared, register, filled, read, instead = QUEUES[name]
    text, declarations = re.subn(declared, register, text)
    text, fillings = re.subn(filled, "", text, count=1, flags=re.DOTALL)
    if (declarations, fillings, text.count(read)) != (1, 1, 1):
        raise _changed(name)
    return text.replace(read, instead)


def _changed(name: str) -> FinnError:
    return FinnError(
        f"required: FINN's {name} as in finn-plus 1.6.1, for a change that Yosys needs; found: another; install "
        "finn-plus==1.6.1, or report it as a defect of fxfactor"
    )


def _with_plain_names(text: str) -> str:
    """Names of files out of characters: $sformatf is not evaluated, and the memory would be empty without a word.

    Raises FinnError where the file is not as expected: FINN has changed it.
    """
    if text.count(_READ) != 1:
        raise _changed(THRESHOLDS)
    hundreds, tens, ones = ("48 + pe / 100", "48 + pe / 10 % 10", "48 + pe % 10")
    digits = f"localparam logic [7:0] D2 = {hundreds}, D1 = {tens}, D0 = {ones}, S = 48 + stage;"

    def read(number: str) -> str:
        return f'initial $readmemh({{THRESHOLDS_PATH, "threshs_", {number}, "_", S, ".dat"}}, Threshs);'

    branches = f"if(pe < 10) {read('D0')} else if(pe < 100) {read('D1, D0')} else {read('D2, D1, D0')}"
    return text.replace(_READ, f"{digits} {branches}")


def _random_like(content: bytes, name: str) -> bytes:
    """As many hexadecimal numbers, as long and at most as wide; the same ones for the same name and shape."""
    words = content.decode().split()
    wide = max((int(word, 16).bit_length() for word in words), default=0)
    numbers = random.Random(f"{name} {len(words)} {wide}")
    return "".join(f"{numbers.getrandbits(wide) if wide else 0:0{len(word)}x}\n" for word in words).encode()


def libraries_of(share: Path) -> dict[str, str]:
    """What a synthesis reads beside a layer, from Yosys' folder share/xilinx: name -> text.

    The primitives that stay as they are, with ports and parameters; and the memories in look-up tables of UltraScale, where
    Yosys 0.70 says 16 bits of address for the 9 of a RAM512X1S, and stops at any memory of more than 256 words.
    """
    texts = {file: (share / file).read_text() for file in set(BLACK_BOXES.values())}
    memories = (share / "lutrams_xcu.txt").read_text()
    return {
        CELLS: "".join(_black_box(name, texts[file]) for name, file in BLACK_BOXES.items()),
        ROMS: _ROMS,
        ROM_MAP: _ROM_MAP,
        LUT_RAMS: memories.replace('option "ABITS" 16 {\n\t\tabits 16;', 'option "ABITS" 9 {\n\t\tabits 9;'),
    }


def _black_box(name: str, text: str) -> str:
    found = re.search(rf"^module {name}\b.*?^endmodule", text, re.MULTILINE | re.DOTALL)
    if found is None:
        raise FinnError(
            f"required: the cell {name} in Yosys' library for Xilinx; found: none; install the version of pyosys that "
            '`pip install "fxfactor[synthesize]"` takes'
        )
    module = re.sub(r"\(\*.*?\*\)", "", found[0], flags=re.DOTALL)
    head, _, rest = module.partition(";")
    kept = [line for line in rest.splitlines() if re.match(r"\s*(parameter|input|output)\b", line)]
    return "\n".join([f"{head};", *kept, "endmodule", ""])
