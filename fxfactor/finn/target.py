"""Where a network shall run, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from fxfactor.errors import FinnError
from fxfactor.finn.boards import BOARDS, Resources

Folding = Literal["fxfactor", "finn"]
"""Whose rule folds: ours, all layers together within the board, or FINN's own, layer by layer."""
Frames = int | Literal["max"]
"""Frames per second, or the most that fit the board."""


@dataclass(frozen=True)
class Target:
    """Where a network shall run and how fast. `python`: the interpreter of an environment with finn-plus."""

    board: str
    clock_ns: float = 5.0
    target_fps: Frames = 1000
    python: str | Path | None = None

    def __post_init__(self) -> None:
        if self.board not in BOARDS:
            raise FinnError(
                f"required: a board that FINN knows; found: {self.board!r}; choose from {', '.join(BOARDS)}"
            )
        if not self.clock_ns > 0 or not (self.target_fps == "max" or _is_positive(self.target_fps)):
            raise FinnError(
                f'required: clock_ns > 0 and target_fps > 0 or "max"; found: {self.clock_ns} and {self.target_fps!r}'
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
        """What the board has."""
        return BOARDS[self.board]


def _is_positive(number: object) -> bool:
    return isinstance(number, int | float) and number > 0
