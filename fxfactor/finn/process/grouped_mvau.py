"""MVAUGrouped: a grouped convolution as one block of FINN, with FINN's own RTL unchanged.

FINN's matrix unit (MVAU) multiplies every vector of MW inputs with a matrix of MW x MH weights, which a memory of its own
streams to it over and over. Nothing in it counts how often: where G vectors make one pixel and the memory holds G matrices one
after the other, the unit computes a convolution of G groups. What has to fit is the order of the inputs. FINN's window
generator with depthwise=1 sends, for every pixel, the channels in runs of SIMD, and of each run all kernel positions: where
SIMD divides the channels of a group, the groups come one after the other, and the rows of each matrix are put in the order
(run, kernel position, channel in the run). Outputs leave in their natural order.

    FMPadding → ConvolutionInputGenerator (depthwise=1, SIMD=s) → MVAUGrouped (MW = k² · C/G, MH = C_out/G) → Thresholding

It covers all G from 1 to C, any number of output channels per group, and with parallel_window=1 (SIMD = k² · s) a whole window
in one cycle. A kernel of 1 x 1 needs no window generator: the channels of a pixel are the groups one after the other already.

This file needs finn-plus (written for 1.6.1) and nothing of fxfactor. Importing it makes FINN know the layer; as the first step
of a build, `step_register_mvau_grouped` does so in the processes that FINN starts, too.
"""

from __future__ import annotations

import copy
import json
import math
import multiprocessing
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from finn.custom_op.fpgadataflow.matrixvectoractivation import MVAU
from finn.custom_op.fpgadataflow.rtl.matrixvectoractivation_rtl import MVAU_rtl
from qonnx.core.datatype import DataType
from qonnx.custom_op.registry import getCustomOp
from qonnx.util.basic import interleave_matrix_outer_dim_from_partitions

DOMAIN = "finn.custom_op.fpgadataflow"
OF_FXFACTOR = ("grouped_mvau", "integer_requant")
"""The files with hardware layers that FINN does not have."""


class MVAUGrouped(MVAU):
    """Any grouped convolution behind its windows, as FINN's steps see it before a board is chosen.

    Inputs: windows (1, H, W, k² · C), the order of Im2Col (kernel position, channel), and weights (k² · C/G, C_out), rows in the
    order (kernel position, channel of the group), columns the output channels. Output: accumulators (1, H, W, C_out).
    Attributes besides MVAU's: Groups = G, Kernel = [kh, kw], parallel_window. MW = kh · kw · C/G, MH = C_out/G; PE divides MH,
    and SIMD divides C/G, or is kh · kw times a divisor of it where parallel_window = 1.
    """

    def get_nodeattr_types(self) -> dict[str, Any]:
        """MVAU's attributes and three more."""
        own = {
            "Groups": ("i", True, 1),
            "Kernel": ("ints", True, [1, 1]),
            "parallel_window": ("i", False, 0, {0, 1}),
        }
        return {**super().get_nodeattr_types(), **own}

    @property
    def groups(self) -> int:
        """G."""
        return int(self.get_nodeattr("Groups"))

    @property
    def positions(self) -> int:
        """Positions in the kernel, kh · kw."""
        return math.prod(self.get_nodeattr("Kernel"))

    @property
    def channels_per_group(self) -> int:
        """C/G."""
        return int(self.get_nodeattr("MW")) // self.positions

    @property
    def run(self) -> int:
        """Channels that the window generator sends at once: its SIMD."""
        simd = int(self.get_nodeattr("SIMD"))
        return simd // self.positions if self.get_nodeattr("parallel_window") else simd

    def dense(self) -> MVAU_rtl:
        """A matrix unit with as many weights, read as often: what FINN's figures and files for the memory are asked of."""
        node = copy.deepcopy(self.onnx_node)
        node.op_type, node.domain = "MVAU_rtl", f"{DOMAIN}.rtl"
        for attribute in [each for each in node.attribute if each.name in ("Groups", "Kernel", "parallel_window")]:
            node.attribute.remove(attribute)
        unit = MVAU_rtl(node)
        unit.set_nodeattr("MH", self.groups * self.get_nodeattr("MH"))
        return unit

    # ---- shapes: one pixel is G vectors ----

    def get_normal_input_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, G · MW), or the weights' (MW, G · MH)."""
        if ind:
            return self.get_nodeattr("MW"), self.groups * self.get_nodeattr("MH")
        return (*self.get_nodeattr("numInputVectors"), self.groups * self.get_nodeattr("MW"))

    def get_normal_output_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, G · MH)."""
        return (*self.get_nodeattr("numInputVectors"), self.groups * self.get_nodeattr("MH"))

    def get_folded_input_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, words, SIMD), or the weights' (pixels, words of a pixel, PE · SIMD)."""
        *vectors, folds, simd = super().get_folded_input_shape(ind)
        return (*vectors, self.groups * folds, simd)

    def get_folded_output_shape(self, ind: int = 0) -> tuple[int, ...]:
        """(…, words, PE)."""
        *vectors, folds, pe = super().get_folded_output_shape(ind)
        return (*vectors, self.groups * folds, pe)

    # ---- weights ----

    def calc_wmem(self) -> int:
        """Words in the weight memory: G matrices."""
        return self.groups * super().calc_wmem()

    def get_hw_compatible_weight_tensor(self, orig_weight_matrix: np.ndarray) -> np.ndarray:
        """(MW, G · MH) → (1, PE, words, SIMD): the matrices one after the other, rows in the order of the windows."""
        natural = np.arange(self.get_nodeattr("MW")).reshape(self.positions, -1, self.run)
        rows = natural.transpose(1, 0, 2).ravel()
        pe, simd = self.get_nodeattr("PE"), self.get_nodeattr("SIMD")
        tiles = []
        for tile in np.split(orig_weight_matrix, self.groups, axis=1):
            dealt = interleave_matrix_outer_dim_from_partitions(tile[rows].T, pe)
            tiles.append(np.flip(dealt.reshape(1, pe, -1, simd), axis=-1))
        return np.concatenate(tiles, axis=2)

    def minimize_weight_bit_width(self, model: Any, datatype_only: bool = False) -> Any:
        """The narrowest signed type of at least 2 bits, which is what the RTL multiplies. FINN's MVAU may go unsigned."""
        weights = model.get_initializer(self.onnx_node.input[1])
        if not datatype_only and weights is not None and not self.get_nodeattr("runtime_writeable_weights"):
            least, most = int(weights.min()), int(weights.max())
            bits = max(2, 1 + max(most.bit_length(), (-least - 1).bit_length() if least < 0 else 0))
            self.set_nodeattr("weightDataType", f"INT{bits}")
        return DataType[self.get_nodeattr("weightDataType")]

    # ---- execution ----

    def execute_node(self, context: dict[str, np.ndarray], graph: Any) -> None:
        """The accumulators, in Python, from windows in the order of Im2Col."""
        windows = context[self.onnx_node.input[0]]
        self._multiply(context, windows.reshape(-1, self.positions, self.groups, self.channels_per_group))

    def _multiply(self, context: dict[str, np.ndarray], windows: np.ndarray) -> None:
        """`windows`: (pixels, positions, G, C/G). Sums stay far below 2^53."""
        weights = context[self.onnx_node.input[1]].astype(np.float64)
        weights = weights.reshape(self.positions, self.channels_per_group, self.groups, -1)
        sums = np.einsum("nkgc,kcgo->ngo", windows.astype(np.float64), weights, optimize=True)
        context[self.onnx_node.output[0]] = sums.reshape(self.get_normal_output_shape()).astype(np.float32)

    # ---- cost ----

    def get_exp_cycles(self) -> int:
        """G vectors for each pixel."""
        return self.groups * super().get_exp_cycles()

    def bram_estimation(self, fpgapart: str) -> int:
        """18 kbit block RAMs of the weight memory."""
        return self.dense().bram_estimation(fpgapart)

    def uram_estimation(self, fpgapart: str) -> int:
        """UltraRAMs of the weight memory."""
        return self.dense().uram_estimation(fpgapart)

    def bram_efficiency_estimation(self, fpgapart: str) -> float:
        """Used part of these block RAMs."""
        return self.dense().bram_efficiency_estimation(fpgapart)

    def uram_efficiency_estimation(self, fpgapart: str) -> float:
        """Used part of these UltraRAMs."""
        return self.dense().uram_efficiency_estimation(fpgapart)

    def get_op_and_param_counts(self) -> dict[str, int]:
        """Multiplications per frame and weights, by their bits: a matrix G times as wide that each pixel meets once."""
        return self.dense().get_op_and_param_counts()


class MVAUGrouped_rtl(MVAUGrouped, MVAU_rtl):
    """MVAUGrouped on a board: FINN's RTL of the matrix unit, behind a window generator that sends runs of channels."""

    def execute_node(self, context: dict[str, np.ndarray], graph: Any) -> None:
        """The accumulators from a stream in the order of the hardware, in Python or in RTL simulation."""
        if self.get_nodeattr("exec_mode") == "rtlsim":
            MVAU_rtl.execute_node(self, context, graph)
            return
        runs = context[self.onnx_node.input[0]].reshape(-1, self.groups, self.channels_per_group // self.run,
                                                        self.positions, self.run)  # fmt: skip
        windows = runs.transpose(0, 3, 1, 2, 4)
        self._multiply(context, windows.reshape(-1, self.positions, self.groups, self.channels_per_group))

    def generate_hdl(self, model: Any, fpgapart: str, clk: float) -> None:
        """FINN's code for the matrix unit, its memory G times as deep. Raises ValueError where the folding does not fit."""
        require_folding(self, model)
        super().generate_hdl(model, fpgapart, clk)

    def generate_hdl_memstream(self, fpgapart: str, *arguments: Any, **options: Any) -> None:
        """The weight memory's code."""
        self.dense().generate_hdl_memstream(fpgapart, *arguments, **options)


def register() -> None:
    """Make FINN and qonnx know the layer in this process."""
    import finn.custom_op.fpgadataflow as abstract
    import finn.custom_op.fpgadataflow.rtl as rtl
    from qonnx.custom_op.registry import add_op_to_domain

    for domain, package, layer in ((DOMAIN, abstract, MVAUGrouped), (f"{DOMAIN}.rtl", rtl, MVAUGrouped_rtl)):
        package.custom_op[layer.__name__] = layer
        add_op_to_domain(domain, layer)


def step_register_mvau_grouped(model: Any, cfg: Any) -> Any:
    """The first step of a build: processes that FINN starts from here on know the layer. The model is as it was.

    FINN+ starts every process of a pool afresh ("spawn"), and it would know FINN's own layers only. "forkserver" is as safe,
    since what it forks has never run a thread of the build, and can import this file first.
    """
    multiprocessing.set_forkserver_preload([name for name in OF_FXFACTOR if name in sys.modules])
    multiprocessing.set_start_method("forkserver", force=True)
    return model


# ---- folding ----


@dataclass(frozen=True)
class Folding:
    """What can be chosen at a block: outputs at once, inputs at once, and whether a whole window comes in one word."""

    pe: int
    simd: int
    parallel_window: int

    def apply(self, block: Any, window: Any) -> None:
        """Set it at a block and at the window generator before it (None for a kernel of 1 x 1)."""
        block.set_nodeattr("PE", self.pe)
        block.set_nodeattr("SIMD", self.simd)
        block.set_nodeattr("parallel_window", self.parallel_window)
        if window is not None:
            window.set_nodeattr("SIMD", block.run)
            window.set_nodeattr("parallel_window", self.parallel_window)


def foldings(block: Any, window: Any) -> list[Folding]:
    """All that the hardware takes: PE divides C_out/G, a window word has a divisor of the C/G channels of a group."""
    runs = _divisors(block.channels_per_group)
    simds = [(run, 0) for run in runs]
    if window is not None:
        simds += [(run * block.positions, 1) for run in runs]
    return [Folding(pe, simd, parallel) for simd, parallel in simds for pe in _divisors(block.get_nodeattr("MH"))]


def _divisors(number: int) -> list[int]:
    return [each for each in range(1, number + 1) if number % each == 0]


def window_before(block: Any, model: Any) -> Any:
    """The depthwise window generator that a block reads, behind FIFOs and width converters; None where it has none."""
    node = model.find_producer(block.onnx_node.input[0])
    while node is not None and node.op_type.startswith(("StreamingFIFO", "StreamingDataWidthConverter")):
        node = model.find_producer(node.input[0])
    if node is None or not node.op_type.startswith("ConvolutionInputGenerator"):
        return None
    window: Any = getCustomOp(node)
    return window if window.get_nodeattr("depthwise") else None


def cycles(block: Any, window: Any) -> int:
    """Cycles per frame of a block and its window generator, the slower of the two."""
    return max(int(block.get_exp_cycles()), 0 if window is None else int(window.get_exp_cycles()))


def cost(block: Any, window: Any, fpgapart: str) -> tuple[int, int, int]:
    """DSPs, 18 kbit block RAMs and LUTs of a block and its window generator, as FINN estimates them."""
    parts = [block] if window is None else [block, window]
    return (
        int(block.dsp_estimation(fpgapart)),
        sum(int(part.bram_estimation(fpgapart)) for part in parts),
        sum(int(part.lut_estimation(fpgapart)) for part in parts),
    )


def fold(model: Any, target_cycles: int, fpgapart: str) -> None:
    """Fold every block to `target_cycles` per frame with the fewest DSPs, then block RAMs, then LUTs; else the fastest way.

    FINN's SetFolding knows layers by name and leaves blocks and their window generators as they are: call it before or
    after.
    """
    for node in model.graph.node:
        if node.op_type == MVAUGrouped_rtl.__name__:
            block: Any = getCustomOp(node)
            window = window_before(block, model)
            _best(block, window, target_cycles, fpgapart).apply(block, window)


def settle_reshapes(model: Any, report: Path) -> None:
    """Give reshapes a PE that divides the channels before and after them, in the model and in the folding that is reported.

    FINN's SetFolding looks at those after them only, and its next step but one ends in an assertion.
    """
    folding = json.loads(report.read_text())
    for node in model.graph.node:
        if node.op_type == "Reshape_rtl":
            reshape: Any = getCustomOp(node)
            channels = math.gcd(int(reshape.get_normal_input_shape()[-1]), int(reshape.get_normal_output_shape()[-1]))
            wanted = int(reshape.get_nodeattr("PE"))
            pe = min((each for each in _divisors(channels) if each >= wanted), default=channels)
            reshape.set_nodeattr("PE", pe)
            folding[node.name]["PE"] = pe
    report.write_text(json.dumps(folding, indent=2))


def _best(block: Any, window: Any, target_cycles: int, fpgapart: str) -> Folding:
    ranked = []
    for folding in foldings(block, window):
        folding.apply(block, window)
        taken, spent = cycles(block, window), cost(block, window, fpgapart)
        ranked.append(((max(taken, target_cycles), *spent, taken), folding))
    return min(ranked, key=lambda pair: pair[0])[1]


def require_folding(block: Any, model: Any) -> None:
    """Raise ValueError where PE, SIMD or the window generator's word cannot give the order that the weights are in."""
    name, window = block.onnx_node.name, window_before(block, model)
    if block.positions > 1 and window is None:
        raise ValueError(f"{name}: required: a ConvolutionInputGenerator with depthwise=1 before it; found: none")
    chosen = Folding(*(int(block.get_nodeattr(each)) for each in ("PE", "SIMD", "parallel_window")))
    if chosen not in foldings(block, window):
        raise ValueError(
            f"{name}: required: PE a divisor of {block.get_nodeattr('MH')}, SIMD a divisor of {block.channels_per_group} (with "
            f"parallel_window=1 times {block.positions}); found: {chosen}; change it in the folding configuration"
        )
    if window is not None:
        sent = int(window.get_nodeattr("SIMD")), int(window.get_nodeattr("parallel_window"))
        if sent != (block.run, chosen.parallel_window):
            raise ValueError(
                f"{name}: required: SIMD={block.run} and parallel_window={chosen.parallel_window} at {window.onnx_node.name}, "
                f"as at the block behind it; found: {sent[0]} and {sent[1]}; change it in the folding configuration"
            )


register()
