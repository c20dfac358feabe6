"""Where a network shall run, and how fast."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from fxfactor.errors import FinnError
from fxfactor.finn.boards import BOARDS, Resources


@dataclass(frozen=True)
class Target:
    """Where a network shall run and how fast. `python`: the interpreter of an environment with finn-plus."""

    board: str
    clock_ns: float = 5.0
    target_fps: int = 1000
    python: str | Path | None = None

    def __post_init__(self) -> None:
        if self.board not in BOARDS:
            raise FinnError(
                f"required: a board that FINN knows; found: {self.board!r}; choose from {', '.join(BOARDS)}"
            )
        if not self.clock_ns > 0 or not self.target_fps > 0:
            raise FinnError(f"required: clock_ns > 0 and target_fps > 0; found: {self.clock_ns} and {self.target_fps}")

    def __str__(self) -> str:
        return f"{self.board} at {1000 / self.clock_ns:.0f} MHz and {self.target_fps:,} frames/s"

    @property
    def cycles(self) -> int:
        """Clock cycles for one frame."""
        return int(1e9 / self.clock_ns / self.target_fps)

    @property
    def available(self) -> Resources:
        """What the board has."""
        return BOARDS[self.board]
