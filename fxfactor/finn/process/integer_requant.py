"""IntegerRequant: thresholds at equal distances as one multiplication, `clip((scale * x + bias) >> shift)`, exactly.

FINN's own Requant has scales and biases in floating point, which its hardware rounds: a result may be off by one. Here they
are integers, chosen so that every result is that of the thresholds. For each of PE channels at once there is a multiplier (a
DSP slice, two where the numbers are wide) and an adder; the parameters of all channels lie in a read-only memory.

This file needs finn-plus (written for 1.6.1) and nothing of fxfactor. Importing it makes FINN know the layer; as the first step
of a build, `step_register_integer_requant` does so in the processes that FINN starts, too.
"""

from __future__ import annotations

import multiprocessing
import sys
from pathlib import Path
from typing import Any

import numpy as np
from finn.custom_op.fpgadataflow.hwcustomop import HWCustomOp
from finn.custom_op.fpgadataflow.rtlbackend import RTLBackend
from finn.util.basic import get_dsp_block, make_build_dir
from qonnx.core.datatype import DataType
from qonnx.util.basic import roundup_to_integer_multiple

DOMAIN = "finn.custom_op.fpgadataflow"
OF_FXFACTOR = ("grouped_mvau", "integer_requant")
"""The files with hardware layers that FINN does not have."""
PARAMETERS = "parameters.dat"

LARGER = {"DSP48E1": 25, "DSP48E2": 27, "DSP58": 27}
SMALLER = {"DSP48E1": 18, "DSP48E2": 18, "DSP58": 24}
"""Bits, with signs, of the two numbers that a DSP slice multiplies."""


class IntegerRequant(HWCustomOp):
    """A quantizer of channels that lie at equal steps, as FINN's steps see it before a board is chosen.

    Input: integers (1, H, W, C) or (1, C). Output: `clip((Scales * x + Biases) >> Shift, Lowest, Highest)` of the same shape.
    Scales (>= 0, at most ScaleBits bits) and Biases (BiasBits bits with their signs) are for each channel. PE divides
    NumChannels; `rom_style` is where the parameters lie, "distributed" (look-up tables) or "block" (block RAM).
    """

    def get_nodeattr_types(self) -> dict[str, Any]:
        """FINN's attributes of every hardware layer, and those above."""
        own = {
            "PE": ("i", False, 1),
            "NumChannels": ("i", True, 0),
            "inputDataType": ("s", True, ""),
            "outputDataType": ("s", True, ""),
            "numInputVectors": ("ints", False, [1]),
            "Scales": ("ints", False, []),
            "Biases": ("ints", False, []),
            "Shift": ("i", True, 0),
            "Lowest": ("i", True, 0),
            "Highest": ("i", True, 0),
            "ScaleBits": ("i", True, 1),
            "BiasBits": ("i", True, 1),
            "rom_style": ("s", False, "distributed", {"distributed", "block"}),
        }
        return {**super().get_nodeattr_types(), **own}

    # ---- types and shapes ----

    def infer_node_datatype(self, model: Any) -> None:
        """Take the input's type, which FINN makes narrower, and give the output its own."""
        self.set_nodeattr("inputDataType", model.get_tensor_datatype(self.onnx_node.input[0]).name)
        model.set_tensor_datatype(self.onnx_node.output[0], self.get_output_datatype())

    def verify_node(self) -> list[str]:
        """Nothing to report."""
        return []

    def get_input_datatype(self, ind: int = 0) -> Any:
        """FINN's type of the integers that come in."""
        return DataType[self.get_nodeattr("inputDataType")]

    def get_output_datatype(self, ind: int = 0) -> Any:
        """FINN's type of the levels."""
        return DataType[self.get_nodeattr("outputDataType")]

    def get_normal_input_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, C)."""
        return (*self.get_nodeattr("numInputVectors"), self.get_nodeattr("NumChannels"))

    def get_normal_output_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, C)."""
        return self.get_normal_input_shape()

    def get_folded_input_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, C / PE, PE)."""
        pe = self.get_nodeattr("PE")
        return (*self.get_nodeattr("numInputVectors"), self.get_nodeattr("NumChannels") // pe, pe)

    def get_folded_output_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, C / PE, PE)."""
        return self.get_folded_input_shape()

    def get_instream_width(self, ind: int = 0) -> int:
        """Bits of a word that comes in."""
        return self.get_nodeattr("PE") * self.get_input_datatype().bitwidth() if ind == 0 else 0

    def get_outstream_width(self, ind: int = 0) -> int:
        """Bits of a word that goes out."""
        return self.get_nodeattr("PE") * self.get_output_datatype().bitwidth()

    def get_exp_cycles(self) -> int:
        """One word per cycle."""
        return int(np.prod(self.get_folded_output_shape()[:-1]))

    # ---- execution ----

    def execute_node(self, context: dict[str, np.ndarray], graph: Any) -> None:
        """The levels, in Python."""
        integers = context[self.onnx_node.input[0]].astype(np.int64)
        scales, biases = (np.asarray(self.get_nodeattr(name), np.int64) for name in ("Scales", "Biases"))
        levels = (scales * integers + biases) >> self.get_nodeattr("Shift")
        context[self.onnx_node.output[0]] = np.clip(
            levels, self.get_nodeattr("Lowest"), self.get_nodeattr("Highest")
        ).astype(np.float32)

    # ---- cost: FINN has no figures for it, so these are those of its parts that are certain ----

    def multiplied(self) -> tuple[int, int]:
        """Bits, with signs, of an input and of a scale."""
        entering = self.get_input_datatype()
        return entering.bitwidth() + (not entering.signed()), self.get_nodeattr("ScaleBits") + 1

    def memory(self) -> tuple[int, int]:
        """Bits of a word of parameters, and words."""
        pe = self.get_nodeattr("PE")
        return (
            pe * (self.get_nodeattr("ScaleBits") + self.get_nodeattr("BiasBits")),
            self.get_nodeattr("NumChannels") // pe,
        )

    def dsp_estimation(self, fpgapart: str) -> int:
        """DSP slices: for each channel at once one, two where neither number fits the smaller side of the multiplier."""
        block, (least, most) = get_dsp_block(fpgapart), sorted(self.multiplied())
        across = -(-(most - 1) // (LARGER[block] - 1)) * -(-(least - 1) // (SMALLER[block] - 1))
        along = -(-(most - 1) // (SMALLER[block] - 1)) * -(-(least - 1) // (LARGER[block] - 1))
        return int(self.get_nodeattr("PE")) * min(across, along)

    def bram_estimation(self, fpgapart: str) -> int:
        """18 kbit block RAMs of the parameters, in the shape of 36 × 512."""
        width, words = self.memory()
        return -(-width // 36) * -(-words // 512) if self.get_nodeattr("rom_style") == "block" else 0

    def lut_estimation(self, fpgapart: str) -> int:
        """Look-up tables of the parameters, 64 bits each."""
        width, words = self.memory()
        return 0 if self.get_nodeattr("rom_style") == "block" or words == 1 else width * -(-words // 64)


class IntegerRequant_rtl(IntegerRequant, RTLBackend):
    """IntegerRequant on a board, in Verilog."""

    def get_nodeattr_types(self) -> dict[str, Any]:
        """Those of the layer and those of all layers in RTL."""
        return {**IntegerRequant.get_nodeattr_types(self), **RTLBackend.get_nodeattr_types(self)}

    def execute_node(self, context: dict[str, np.ndarray], graph: Any) -> None:
        """The levels, in Python or in RTL simulation."""
        if self.get_nodeattr("exec_mode") == "rtlsim":
            RTLBackend.execute_node(self, context, graph)
        else:
            IntegerRequant.execute_node(self, context, graph)

    def generate_hdl(self, model: Any, fpgapart: str, clk: float) -> None:
        """Write the Verilog and the parameters. Raises ValueError where numbers do not fit into the bits that are said."""
        folder = self.get_nodeattr("code_gen_dir_ipgen") or make_build_dir("integer_requant_")
        top, words = self.get_verilog_top_module_name(), Path(folder) / PARAMETERS
        words.write_text("".join(f"{word:x}\n" for word in self.parameter_words()))
        entering, leaving = self.get_input_datatype(), self.get_output_datatype()
        values = {
            "TOP": top,
            "K": entering.bitwidth(),
            "SIGNED": int(entering.signed()),
            "N": leaving.bitwidth(),
            "PE": self.get_nodeattr("PE"),
            "WORDS": self.memory()[1],
            "S": self.get_nodeattr("ScaleBits"),
            "B": self.get_nodeattr("BiasBits"),
            "SHIFT": self.get_nodeattr("Shift"),
            "LOWEST": self.get_nodeattr("Lowest"),
            "HIGHEST": self.get_nodeattr("Highest"),
            "STYLE": self.get_nodeattr("rom_style"),
            "FILE": words,
            "IN": roundup_to_integer_multiple(self.get_instream_width(), 8),
            "OUT": roundup_to_integer_multiple(self.get_outstream_width(), 8),
        }
        text = VERILOG
        for name, value in values.items():
            text = text.replace(f"${name}$", str(value))
        (Path(folder) / f"{top}.v").write_text(text)
        for name, value in (
            ("gen_top_module", top),
            ("code_gen_dir_ipgen", folder),
            ("ipgen_path", folder),
            ("ip_path", folder),
        ):
            self.set_nodeattr(name, value)

    def parameter_words(self) -> list[int]:
        """A word for each fold of channels: of PE channels scale and bias, the first channel in the lowest bits."""
        scales, biases = self.get_nodeattr("Scales"), self.get_nodeattr("Biases")
        scale_bits, bias_bits = self.get_nodeattr("ScaleBits"), self.get_nodeattr("BiasBits")
        lanes = []
        for channel, (scale, bias) in enumerate(zip(scales, biases, strict=True)):
            fits = 0 <= scale < 1 << scale_bits and -1 << (bias_bits - 1) <= bias < 1 << (bias_bits - 1)
            if not fits:
                raise ValueError(
                    f"{self.onnx_node.name}: required: scales from 0 of {scale_bits} bits, biases of {bias_bits}; found: "
                    f"{scale} and {bias} at channel {channel}; raise ScaleBits or BiasBits"
                )
            lanes.append(int(scale) | (int(bias) & ((1 << bias_bits) - 1)) << scale_bits)
        pe, width = self.get_nodeattr("PE"), scale_bits + bias_bits
        return [
            sum(lane << (index * width) for index, lane in enumerate(lanes[start : start + pe]))
            for start in range(0, len(lanes), pe)
        ]

    def get_rtl_file_list(self, abspath: bool = False) -> list[str]:
        """The one file."""
        name = f"{self.get_nodeattr('gen_top_module') or self.get_verilog_top_module_name()}.v"
        return [str(Path(self.get_nodeattr("code_gen_dir_ipgen")) / name) if abspath else name]

    def code_generation_ipi(self) -> list[str]:
        """Tcl that places the layer in Vivado's block design."""
        sources = [f"add_files -norecurse {file}" for file in self.get_rtl_file_list(abspath=True)]
        top = self.get_nodeattr("gen_top_module")
        return [*sources, f"create_bd_cell -type module -reference {top} {self.onnx_node.name}"]


def register() -> None:
    """Make FINN and qonnx know the layer in this process."""
    import finn.custom_op.fpgadataflow as abstract
    import finn.custom_op.fpgadataflow.rtl as rtl
    from qonnx.custom_op.registry import add_op_to_domain

    for domain, package, layer in ((DOMAIN, abstract, IntegerRequant), (f"{DOMAIN}.rtl", rtl, IntegerRequant_rtl)):
        package.custom_op[layer.__name__] = layer
        add_op_to_domain(domain, layer)


def step_register_integer_requant(model: Any, cfg: Any) -> Any:
    """The first step of a build: processes that FINN starts from here on know the layer. The model is as it was.

    See step_register_mvau_grouped in grouped_mvau.py; the files with layers of fxfactor are imported in either.
    """
    multiprocessing.set_forkserver_preload([name for name in OF_FXFACTOR if name in sys.modules])
    multiprocessing.set_start_method("forkserver", force=True)
    return model


def fold(model: Any, target_cycles: int) -> None:
    """Fold every layer to `target_cycles` per frame with the fewest channels at once. FINN's SetFolding does not know them."""
    from qonnx.custom_op.registry import getCustomOp

    for node in model.graph.node:
        if node.op_type == IntegerRequant_rtl.__name__:
            layer: Any = getCustomOp(node)
            channels = layer.get_nodeattr("NumChannels")
            for pe in (each for each in range(1, channels + 1) if channels % each == 0):
                layer.set_nodeattr("PE", pe)
                if layer.get_exp_cycles() <= target_cycles:
                    break


VERILOG = """\
// clip((scale * x + bias) >> SHIFT, LOWEST, HIGHEST) of PE channels at once; the parameters of all channels come round and
// round. In four stages, which move together: input and parameters, product, sum, result.

module $TOP$ (
\t(* X_INTERFACE_PARAMETER = "ASSOCIATED_BUSIF in0_V:out0_V, ASSOCIATED_RESET ap_rst_n" *)
\t(* X_INTERFACE_INFO = "xilinx.com:signal:clock:1.0 ap_clk CLK" *)
\tinput wire ap_clk,
\t(* X_INTERFACE_PARAMETER = "POLARITY ACTIVE_LOW" *)
\tinput wire ap_rst_n,

\toutput wire in0_V_TREADY,
\tinput wire in0_V_TVALID,
\tinput wire [$IN$-1:0] in0_V_TDATA,

\tinput wire out0_V_TREADY,
\toutput wire out0_V_TVALID,
\toutput wire [$OUT$-1:0] out0_V_TDATA
);
\tlocalparam K = $K$;  // bits of an input
\tlocalparam X = K + 1 - $SIGNED$;  // with a sign
\tlocalparam S = $S$;  // of a scale, which has no sign
\tlocalparam B = $B$;  // of a bias
\tlocalparam N = $N$;  // of a result
\tlocalparam PE = $PE$;
\tlocalparam WORDS = $WORDS$;
\tlocalparam SHIFT = $SHIFT$;
\tlocalparam P = X + S + 1;  // of a product, in which the scale has a sign
\tlocalparam M = P > B? P : B;
\tlocalparam Q = (M > N? M : N) + 1;  // of a sum
\tlocalparam signed [Q-1:0] LOWEST = $LOWEST$;
\tlocalparam signed [Q-1:0] HIGHEST = $HIGHEST$;
\tlocalparam A = WORDS > 1? $clog2(WORDS) : 1;

\t// the word of parameters that goes with the next input lies ready
\t(* rom_style = "$STYLE$" *) reg [PE*(S+B)-1:0] parameters [0:WORDS-1];
\tinitial $readmemh("$FILE$", parameters);
\treg [PE*(S+B)-1:0] word;
\treg [A-1:0] next = 0;
\treg loaded = 0;

\treg [4:1] valid = 0;
\twire move = !valid[4] || out0_V_TREADY;
\twire take = move && loaded && in0_V_TVALID;
\tassign in0_V_TREADY = move && loaded;
\tassign out0_V_TVALID = valid[4];

\talways @(posedge ap_clk) begin
\t\tif(!ap_rst_n) begin
\t\t\tvalid <= 0;
\t\t\tloaded <= 0;
\t\t\tnext <= 0;
\t\tend
\t\telse begin
\t\t\tif(move)  valid <= { valid[3:1], take };
\t\t\tif(take || !loaded) begin
\t\t\t\tloaded <= 1;
\t\t\t\tnext <= next == WORDS-1? 0 : next + 1;
\t\t\tend
\t\tend
\tend
\talways @(posedge ap_clk)
\t\tif(take || !loaded)  word <= parameters[next];

\tgenvar lane;
\tgenerate
\t\tfor(lane = 0; lane < PE; lane = lane + 1) begin : lanes
\t\t\treg signed [X-1:0] x1;
\t\t\treg signed [S:0] s1;
\t\t\treg signed [B-1:0] b1, b2;
\t\t\treg signed [P-1:0] p2;
\t\t\treg signed [Q-1:0] q3;
\t\t\treg [N-1:0] y4;
\t\t\twire signed [Q-1:0] level = q3 >>> SHIFT;
\t\t\talways @(posedge ap_clk)
\t\t\t\tif(move) begin
\t\t\t\t\tx1 <= { { (X-K+1){ $SIGNED$ && in0_V_TDATA[lane*K+K-1] } }, in0_V_TDATA[lane*K +: K] };
\t\t\t\t\ts1 <= { 1'b0, word[lane*(S+B) +: S] };
\t\t\t\t\tb1 <= word[lane*(S+B)+S +: B];
\t\t\t\t\tp2 <= x1 * s1;
\t\t\t\t\tb2 <= b1;
\t\t\t\t\tq3 <= p2 + b2;
\t\t\t\t\ty4 <= level < LOWEST? LOWEST[N-1:0] : level > HIGHEST? HIGHEST[N-1:0] : level[N-1:0];
\t\t\t\tend
\t\t\tassign out0_V_TDATA[lane*N +: N] = y4;
\t\tend
\t\tif($OUT$ > PE*N)  assign out0_V_TDATA[$OUT$-1 : PE*N] = 0;
\tendgenerate
endmodule
"""
"""What `generate_hdl` fills in. Plain Verilog, since Vivado packages no module in SystemVerilog."""

register()
