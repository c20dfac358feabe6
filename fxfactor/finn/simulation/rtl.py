"""The RTL of one layer as Verilator takes it: FINN's files with neutral names, a patch where one is needed, a wrapper.

What is compiled knows neither the layer's name nor the folder FINN wrote it to, and its weights and thresholds stay in files
that are read when a simulation starts. So equal layers are compiled once, and other weights need no new compilation.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from pathlib import Path

from fxfactor.errors import FinnError
from fxfactor.finn.simulation.design import Layer

TOP = "fx_layer"
CORE = "fx_core"

LIBRARY = ("memstream/hdl/memstream.sv", "memstream/hdl/memstream_axi.sv", "axi/hdl/axilite.sv")
"""What the memory of a matrix unit needs of finn-rtllib beside its generated wrapper."""

ADDER_TREE = "add_multi.sv"


@dataclass(frozen=True)
class Code:
    """`files` is what is compiled, name -> text; `data` is what is read at the start, name -> bytes."""

    files: dict[str, str]
    data: dict[str, bytes]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    """Bits of each port."""

    @property
    def key(self) -> str:
        """A hash of all that is compiled."""
        digest = hashlib.sha256()
        for name, text in self.files.items():
            digest.update(f"{name}\0{text}\0".encode())
        return digest.hexdigest()[:24]


def code_of(layer: Layer, library: Path) -> Code:
    """The code of a layer in RTL; `library` is the folder finn-rtllib. Reads FINN's generated files, so they must be there."""
    folder, top = Path(layer.told["folder"]), layer.told["top"]
    paths = [Path(source) for source in layer.told["sources"]]
    memory = folder / f"{top}_memstream_wrapper.v"
    if memory.is_file():
        paths += [memory, *(library / name for name in LIBRARY)]
    own = _neutral(folder, top)
    files = {}
    for path in dict.fromkeys(paths):
        text = path.read_text()
        if path.name == ADDER_TREE:
            text = hoist_leaf_loads(text, path)
        files[own(path.name)] = own(text) if folder in path.parents else text
    inputs = tuple(port.padded for port in layer.in_ports)
    outputs = tuple(port.padded for port in layer.out_ports)
    weights = _weight_bits(layer) if memory.is_file() else 0
    files[f"{TOP}.sv"] = _wrapper(inputs, outputs, weights)
    data = {own(path.name): path.read_bytes() for path in sorted(folder.glob("*.dat"))}
    return Code(files, data, inputs, outputs)


def _neutral(folder: Path, top: str) -> _Renaming:
    return _Renaming(str(folder), re.compile(rf"(?<![A-Za-z0-9_]){re.escape(top)}(?![0-9])"))


@dataclass(frozen=True)
class _Renaming:
    folder: str
    top: re.Pattern[str]

    def __call__(self, text: str) -> str:
        return self.top.sub(CORE, text.replace(self.folder, "."))


def hoist_leaf_loads(text: str, path: Path) -> str:
    """Move the function init_leaf_loads out of its generate block and pack its result: Verilator evaluates it only then.

    Raises FinnError where the file is not as expected: FINN has changed it.
    """
    begin = text.find("\t\ttypedef int unsigned  leaf_load_t")
    end = text.find("\t\tlocalparam leaf_load_t   LEAF_LOAD", begin)
    wire = "\tuwire [SUM_WIDTH-1:0]  sum0;\n"
    if begin < 0 or end < 0 or text.count(wire) != 1:
        raise FinnError(
            f"required: FINN's adder tree as in finn-plus 1.6.1, for a change that Verilator needs; found: another {path}; "
            "install finn-plus==1.6.1, or report it as a defect of fxfactor"
        )
    block = text[begin:end].replace("int unsigned  leaf_load_t[2*N-1]", "logic [2*N-2:0][31:0]  leaf_load_t")
    return (text[:begin] + text[end:]).replace(wire, block + wire)


def _weight_bits(layer: Layer) -> int:
    """Bits of a weight word, as its memory sends it."""
    attributes = layer.attributes
    bits = int(re.sub(r"\D", "", attributes["weightDataType"]) or 1)
    return -(-attributes["PE"] * attributes["SIMD"] * bits // 8) * 8


def _wrapper(inputs: tuple[int, ...], outputs: tuple[int, ...], weights: int) -> str:
    """A module with plain ports around the layer and, where it has one, its weight memory."""
    ports, pins = ["input logic clk", "input logic rst_n"], [".ap_clk(clk)", ".ap_rst_n(rst_n)"]
    for index, bits in enumerate(inputs):
        name = f"in{index}"
        ports += [f"input logic [{bits - 1}:0] {name}_data", f"input logic {name}_valid", f"output logic {name}_ready"]
        pins += _pins(f"in{index}_V", name)
    for index, bits in enumerate(outputs):
        name = f"out{index}"
        ports += [f"output logic [{bits - 1}:0] {name}_data", f"output logic {name}_valid", f"input logic {name}_ready"]
        pins += _pins(f"out{index}_V", name)
    memory = ""
    if weights:
        pins += [".ap_clk2x(clk)", *_pins("in1_V", "weights")]
        quiet = ", ".join(f".s_axilite_{name}(1'b0)" for name in ("AWVALID", "WVALID", "BREADY", "ARVALID", "RREADY"))
        stream = ", ".join(_pins("m_axis_0", "weights", lower=True))
        memory = (
            f"\twire [{weights - 1}:0] weights_data;\n\twire weights_valid, weights_ready;\n"
            f"\t{CORE}_memstream_wrapper memory (.ap_clk(clk), .ap_clk2x(clk), .ap_rst_n(rst_n), {quiet},\n"
            f"\t\t.s_axis_0_tvalid(1'b0), {stream});\n"
        )
    listed = ",\n\t".join(ports)
    return f"module {TOP} (\n\t{listed}\n);\n{memory}\t{CORE} core ({', '.join(pins)});\nendmodule\n"


def _pins(axis: str, name: str, lower: bool = False) -> list[str]:
    ends = {"TDATA": "data", "TVALID": "valid", "TREADY": "ready"}
    return [f".{axis}_{end.lower() if lower else end}({name}_{kind})" for end, kind in ends.items()]
