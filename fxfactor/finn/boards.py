"""What the boards that FINN knows by name have, for the share that an estimate takes of them.

Numbers from AMD's product tables (DS190 Zynq-7000, DS891 Zynq UltraScale+, DS889 RFSoC, DS987 Kria, DS962 Alveo, Versal
product selection guide). BRAM is counted in blocks of 18 kbit, as FINN counts it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Resources:
    """Look-up tables, 18 kbit block RAMs, DSP slices and UltraRAMs."""

    lut: int
    bram18: int
    dsp: int
    uram: int

    def __add__(self, other: Resources) -> Resources:
        """Sum, item by item."""
        return Resources(self.lut + other.lut, self.bram18 + other.bram18, self.dsp + other.dsp, self.uram + other.uram)


_ZYNQ_7020 = Resources(53_200, 280, 220, 0)
_ZU3EG = Resources(70_560, 432, 360, 0)
_ZU28DR = Resources(425_280, 2_160, 4_272, 80)

BOARDS: dict[str, Resources] = {
    "ZCU104": Resources(230_400, 624, 1_728, 96),
    "KV260_SOM": Resources(117_120, 288, 1_248, 64),
    "AUP-ZU3_8GB": _ZU3EG,
    "Pynq-Z2": _ZYNQ_7020,
    "Pynq-Z1": _ZYNQ_7020,
    "Ultra96": _ZU3EG,
    "Ultra96-V2": _ZU3EG,
    "ZCU102": Resources(274_080, 1_824, 2_520, 0),
    "ZCU111": _ZU28DR,
    "RFSoC2x2": _ZU28DR,
    "RFSoC4x2": _ZU28DR,
    "U50": Resources(871_680, 2_688, 5_952, 640),
    "U200": Resources(1_182_240, 4_320, 6_840, 960),
    "U250": Resources(1_728_000, 5_376, 12_288, 1_280),
    "U280": Resources(1_303_680, 4_032, 9_024, 960),
    "U55C": Resources(1_303_680, 4_032, 9_024, 960),
    "VCK190": Resources(899_840, 1_934, 1_968, 463),
    "VEK280": Resources(520_704, 1_200, 1_312, 264),
}
"""Board name, as FINN writes it -> what it has. First the boards to start with, then the small one."""

VERSAL = ("VCK190", "VEK280")
"""Boards with a Versal, whose DSP58 no open tool knows."""

RETIRING = ("Pynq-Z2", "Pynq-Z1")
"""Boards with a Zynq-7000, which FINN 1.0 soft-retires."""


def notes(board: str) -> tuple[str, ...]:
    """What to know about a board before choosing it."""
    if board not in RETIRING:
        return ()
    return (
        f"{board} has a Zynq-7000, which FINN 1.0 soft-retires: it still builds, but is no longer tested. For new work "
        "take ZCU104, KV260_SOM or AUP-ZU3_8GB.",
    )
