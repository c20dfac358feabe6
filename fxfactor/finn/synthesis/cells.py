"""From the cells that Yosys ends with to what they take of a chip."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

LUT_RAMS = {
    "RAM32X1S": 1,
    "RAM64X1S": 1,
    "RAM128X1S": 2,
    "RAM256X1S": 4,
    "RAM512X1S": 8,
    "RAM32X1D": 2,
    "RAM64X1D": 2,
    "RAM128X1D": 4,
    "RAM256X1D": 8,
    "RAM32M": 4,
    "RAM64M": 4,
    "RAM32M16": 8,
    "RAM64M8": 8,
    "RAM32X16DR8": 8,
    "RAM64X8SW": 8,
}
"""Memories in look-up tables -> how many they take (UG474, UG574)."""
_BLOCK_RAMS = {"RAMB18E1": 1, "RAMB18E2": 1, "RAMB36E1": 2, "RAMB36E2": 2}
_NOTHING = re.compile(r"CARRY[48]|MUXF[789]|GND|VCC|IBUF|OBUF|BUFG|\$scopeinfo")
"""Cells that share a slice with look-up tables, or none at all."""


@dataclass(frozen=True)
class Area:
    """What a circuit takes. `lut`: look-up tables of logic, memories (`lut_memory` of them) and shift registers.

    `bram18`: blocks of 18 kbit. A look-up table with two outputs counts once; two small ones that Vivado would put into one count
    twice.
    """

    lut: int
    lut_memory: int
    ff: int
    bram18: int
    dsp: int
    uram: int

    def __add__(self, other: Area) -> Area:
        """Sum, item by item."""
        return Area(*(getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__))


def area_of(cells: Mapping[str, int]) -> Area:
    """The sum over cells, type -> count. Raises ValueError on a type that is not known here."""
    lut = lut_memory = ff = bram18 = dsp = uram = 0
    for kind, count in cells.items():
        if re.fullmatch(r"LUT[1-6]|LUT6_2|INV|SRL16E|SRLC16E|SRLC32E", kind):
            lut += count
        elif kind in LUT_RAMS:
            lut_memory += count * LUT_RAMS[kind]
        elif re.fullmatch(r"FD[CPRS]E(_1)?", kind):
            ff += count
        elif kind in _BLOCK_RAMS:
            bram18 += count * _BLOCK_RAMS[kind]
        elif re.fullmatch(r"DSP48E[12]", kind):
            dsp += count
        elif kind == "URAM288":
            uram += count
        elif not _NOTHING.fullmatch(kind):
            raise ValueError(f"{count} cells of the kind {kind!r}")
    return Area(lut + lut_memory, lut_memory, ff, bram18, dsp, uram)
