"""One run of the simulator: the description it reads, and what it found."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from fxfactor.finn.commands import Commands
from fxfactor.finn.simulation.compiling import Built
from fxfactor.finn.simulation.design import Design
from fxfactor.finn.simulation.models import parameters_of
from fxfactor.finn.simulation.rtl import Code
from fxfactor.finn.simulation.words import expected_words

UNLIMITED = 0
"""As a depth: the FIFO takes whatever comes."""

SPARE_CYCLES = 20_000
"""A network in which no word moves for so long, and twice the slowest layer's cycles, will not move again."""


MOST_COMPLAINTS = 10


@dataclass(frozen=True)
class Raw:
    """What the simulator wrote; cycles count from the first after reset. `finished`: when each frame had left."""

    first_input: int
    finished: tuple[int, ...]
    stopped: str
    streams: tuple[dict[str, Any], ...]
    complaints: tuple[str, ...]
    """What checks in the RTL itself said, each once."""


@dataclass(frozen=True)
class Bench:
    """A compiled design with its data and expected words in `folder`, ready for runs of up to `frames` frames."""

    design: Design
    codes: dict[str, Code]
    built: Built
    folder: Path
    frames: int

    @classmethod
    def set_up(
        cls,
        design: Design,
        codes: dict[str, Code],
        built: Built,
        model: onnx.ModelProto,
        images: NDArray[Any],
        folder: Path,
    ) -> Bench:
        """Write the layers' data, the models' parameters, and the words of all streams for integer images (N, H, W, C)."""
        write_data(design, codes, folder)
        expected_words(design, model, images, lambda index, words: words.tofile(folder / "words" / str(index)))
        return cls(design, codes, built, folder, len(images))

    def run(
        self,
        depths: Sequence[int],
        commands: Commands,
        frames: int | None = None,
        pace: int = 0,
        what: str = "simulating",
    ) -> Raw:
        """Simulate the first `frames` frames, all by default. `depths`: words of each stream's FIFO.

        With `pace` the input's words come evenly spread, a frame in `pace` cycles; else as fast as they are taken.
        """
        description, result = self.folder / "network", self.folder / "result.json"
        description.write_text(self._describe(depths, self.frames if frames is None else frames, pace))
        result.unlink(missing_ok=True)
        said = commands.run([self.built.simulator, description, result, str(os.getpid())], self.folder, what)
        complaints = dict.fromkeys(
            line.partition("%")[2] for line in said.splitlines() if "%Warning" in line or "%Error" in line
        )
        found = json.loads(result.read_text())
        return Raw(
            found["first_input"],
            tuple(found["finished"]),
            found["stopped"],
            tuple(found["streams"]),
            tuple(complaints)[:MOST_COMPLAINTS],
        )

    def _describe(self, depths: Sequence[int], frames: int, pace: int) -> str:
        design = self.design
        patience = 2 * max(layer.cycles for layer in design.layers) + SPARE_CYCLES
        ends = [_counted(side) for side in (design.sources, design.sinks)]
        lines = [f"{frames} {pace} {patience}", *ends, f"{len(design.streams)}"]
        for index, (stream, depth) in enumerate(zip(design.streams, depths, strict=True)):
            port = stream.port
            words = self.folder / "words" / str(index)
            lines.append(f"s{index} {port.words} {port.limbs} {port.bits} {depth} {words}")
        lines.append(f"{len(design.layers)}")
        for layer in design.layers:
            place = self.folder / "data" / layer.name
            code = self.codes.get(layer.name)
            kind = f"rtl {self.built.libraries[code.key]} {place}" if code else f"model {place / 'parameters'}"
            lines.append(f"{layer.name} {kind} {_counted(layer.inputs)} {_counted(layer.outputs)}")
        return "\n".join(lines) + "\n"


def _counted(numbers: Sequence[int]) -> str:
    return " ".join(map(str, (len(numbers), *numbers)))


def write_data(design: Design, codes: dict[str, Code], folder: Path) -> None:
    """Write what each layer reads at the start into `folder`/data, and make `folder`/words."""
    (folder / "data").mkdir()
    (folder / "words").mkdir()
    for layer in design.layers:
        place = folder / "data" / layer.name
        place.mkdir()
        if layer.name in codes:
            for name, content in codes[layer.name].data.items():
                (place / name).write_bytes(content)
        else:
            (place / "parameters").write_text(parameters_of(layer))


def unlimited(design: Design) -> list[int]:
    """Depths without a limit."""
    return [UNLIMITED] * len(design.streams)


def least_depth(peak: int) -> int:
    """The depth that holds `peak` words, in FINN's numbers: at least 2."""
    return max(2, peak)


def interval_of(finished: Sequence[int]) -> int:
    """Cycles between the last two frames."""
    return int(np.diff(finished[-2:])[0])
