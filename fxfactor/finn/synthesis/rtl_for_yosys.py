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

CELLS, LUT_RAMS = "fx_cells.v", "fx_lutrams.txt"
BLACK_BOXES = {"LUT6_2": "cells_sim.v", "DSP48E1": "cells_sim.v", "DSP48E2": "cells_xtra.v"}
"""Primitives that FINN's matrix units are made of -> the file of Yosys' library that has their ports."""

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
    # and calls a memory in look-up tables that is never written "logic"
    text = re.sub(r"\brom_style = \"distributed\"", 'rom_style = "logic"', text)
    text = text.replace('DEPTH_TRIGGER_BRAM? "distributed" : "auto"', 'DEPTH_TRIGGER_BRAM? "logic" : "auto"')
    return _with_plain_names(text) if name == THRESHOLDS else text


def _with_plain_names(text: str) -> str:
    """Names of files out of characters: $sformatf is not evaluated, and the memory would be empty without a word.

    Raises FinnError where the file is not as expected: FINN has changed it.
    """
    if text.count(_READ) != 1:
        raise FinnError(
            f"required: FINN's {THRESHOLDS} as in finn-plus 1.6.1, for a change that Yosys needs; found: another; install "
            "finn-plus==1.6.1, or report it as a defect of fxfactor"
        )
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
