"""Where a network shall run, and how fast."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Literal

from fxfactor.errors import FinnError
from fxfactor.finn.boards import BOARDS, Resources

Folding = Literal["fxfactor", "finn"]
"""Whose rule folds: ours, all layers together within the board, or FINN's own, layer by layer."""
Frames = int | Literal["max"]
"""Frames per second, or the most that fit the board."""


Limits = Mapping[str, int]
"""The most that may be used, by name: lut, bram18, dsp, uram. What is not named is limited by the board alone."""


@dataclass(frozen=True)
class Target:
    """Where a network shall run and how fast. `python`: the interpreter of an environment with finn-plus.

    `limits`: what may be used of the board, where other logic shall have a place on it or a design shall be compared with
    another one.
    """

    board: str
    clock_ns: float = 5.0
    target_fps: Frames = 1000
    python: str | Path | None = None
    limits: Limits | None = None

    def __post_init__(self) -> None:
        if self.board not in BOARDS:
            raise FinnError(
                f"required: a board that FINN knows; found: {self.board!r}; choose from {', '.join(BOARDS)}"
            )
        if not self.clock_ns > 0 or not (self.target_fps == "max" or _is_positive(self.target_fps)):
            raise FinnError(
                f'required: clock_ns > 0 and target_fps > 0 or "max"; found: {self.clock_ns} and {self.target_fps!r}'
            )
        names = [each.name for each in fields(Resources)]
        for name, count in (self.limits or {}).items():
            if name not in names or isinstance(count, bool) or not isinstance(count, int) or count < 0:
                raise FinnError(
                    f"required: limits, a whole number ≥ 0 for any of {', '.join(names)}; found: {name}={count!r}"
                )

    def __str__(self) -> str:
        return f"{self.board} at {1000 / self.clock_ns:.0f} MHz and {self.frames}"

    @property
    def frames(self) -> str:
        """How fast, in words."""
        return "as many frames/s as fit" if self.target_fps == "max" else f"{self.target_fps:,} frames/s"

    @property
    def cycles(self) -> int:
        """Clock cycles for one frame. Raises FinnError where `target_fps` is no number."""
        if self.target_fps == "max":
            raise FinnError('required: target_fps, a number of frames per second; found: "max"; give a number here')
        return int(1e9 / self.clock_ns / self.target_fps)

    @property
    def available(self) -> Resources:
        """What may be used: what the board has, and of it no more than `limits`."""
        there = asdict(BOARDS[self.board])
        return Resources(**{name: min(count, (self.limits or {}).get(name, count)) for name, count in there.items()})


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and number > 0
