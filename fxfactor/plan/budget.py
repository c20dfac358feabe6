"""What a searched network may cost: one limit or several, absolute or as a share of the network in one piece."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields

from fxfactor.errors import PreconditionError

SOFTWARE = ("macs", "bops", "weight_bits")
HARDWARE = ("lut", "bram", "dsp", "cycles", "uram")
UNITS = {
    "macs": "MACs",
    "bops": "BOPs",
    "weight_bits": "bits of weights",
    "lut": "look-up tables",
    "bram": "18 kbit block RAMs",
    "dsp": "DSP slices",
    "cycles": "cycles per frame",
    "uram": "UltraRAMs",
    "share": "thousandths of the board",
}
"""Cost -> its unit. `share`: of the board's LUTs, BRAMs, DSPs and UltraRAMs, added; `fxfactor.compress` saves it."""


@dataclass(frozen=True)
class Budget:
    """Upper limits on what a network costs for one image; None where there is none.

    An int, or a float above 1, is an absolute number: MACs, BOPs (MACs · weight bits · activation bits), bits of weights,
    look-up tables, 18 kbit block RAMs, DSP slices and UltraRAMs by the estimates of `fxfactor.finn`, cycles per frame of the
    slowest layer. A float of at most 1 is a share: for macs, bops and weight_bits of the network in one piece at 32 bits, for
    lut, bram, dsp and uram of what the board has.

    >>> Budget(bops=0.05)
    Budget(bops=0.05)
    """

    macs: float | None = None
    bops: float | None = None
    weight_bits: float | None = None
    lut: float | None = None
    bram: float | None = None
    dsp: float | None = None
    cycles: float | None = None
    uram: float | None = None

    def __post_init__(self) -> None:
        for name, value in self.given().items():
            number = isinstance(value, int | float) and not isinstance(value, bool)
            if not number or not math.isfinite(value) or value <= 0:
                raise PreconditionError(
                    f"Budget({name}=…) must be a number above 0, found {value!r}; give an absolute number of "
                    f"{UNITS[name]}, or a float of at most 1 for a share"
                )
        if isinstance(self.cycles, float) and self.cycles <= 1:
            raise PreconditionError(f"Budget(cycles=…) is a number of clock cycles, not a share; found {self.cycles!r}")
        if not self.given():
            raise PreconditionError(
                f"a Budget needs at least one of {', '.join(each.name for each in fields(self))}, found none"
            )

    def given(self) -> dict[str, float]:
        """The limits that are set, by name."""
        return {each.name: value for each in fields(self) if (value := getattr(self, each.name)) is not None}

    def limits(self, whole: Mapping[str, float]) -> dict[str, float]:
        """Absolute limits, shares taken of `whole`."""
        return {
            name: value * whole[name] if isinstance(value, float) and value <= 1 else float(value)
            for name, value in self.given().items()
        }

    def __repr__(self) -> str:
        return f"Budget({', '.join(f'{name}={value!r}' for name, value in self.given().items())})"
