"""Results of simulation and synthesis, as small as they can be, for the page."""

from __future__ import annotations

from pathlib import Path

from fxfactor.compression.result import Compressed, Row
from fxfactor.finn.boards import Resources
from fxfactor.finn.simulation.result import SimulatedLayer, SimulatedStream, Simulation
from fxfactor.finn.synthesis.cells import Area
from fxfactor.finn.synthesis.result import Synthesis, SynthesizedLayer


def stream(writer: str, reader: str, began: tuple[int, ...], ended: tuple[int, ...], wrong: int = 0) -> SimulatedStream:
    return SimulatedStream(
        name=f"{writer} -> {reader}", writer=writer, reader=reader, bits=32, words=192, words_per_frame=64, depth=4, peak=3,
        began=began, ended=ended, watched_cycles=max(ended, default=0) - min(ended, default=0), full_cycles=0, empty_cycles=0,
        wrong=wrong, left=0, needed=4,
    )  # fmt: skip


def layer(
    name: str, site: str, waits: tuple[int, int], *, watched: int = 200, is_model: bool = False
) -> SimulatedLayer:
    return SimulatedLayer(name, name.split("_")[0], site, is_model, 100, watched, *waits)


SIMULATION = Simulation(
    board="ZCU104", part="xczu7ev-ffvc1156-2-e", clock_ns=5.0, frames=3, cycles=1000, unlimited_cycles=1000, estimated_cycles=990,
    latency_cycles=1500,
    layers=(
        layer("SWG_rtl_0", "stem", (150, 0)), layer("MVAU_rtl_0", "stem", (3, 1)), layer("Pool_hls_0", "<pool>", (0, 190), is_model=True),
    ),
    streams=(
        stream("input", "SWG_rtl_0", (0, 100, 200), (99, 199, 299)),
        stream("SWG_rtl_0", "MVAU_rtl_0", (5, 105, 205), (104, 204, 304)),
        stream("MVAU_rtl_0", "Pool_hls_0", (10, 110, 210), (110, 210, 310)),
        stream("Pool_hls_0", "output", (115, 215, 315), (115, 215, 315)),
    ),
    differences=(), complaints=(), stopped="", compiled=1, seconds=2.0,
)  # fmt: skip

SYNTHESIS = Synthesis(
    board="ZCU104", part="xczu7ev-ffvc1156-2-e", clock_ns=5.0, yosys="0.70", counted=2, seconds=3.0,
    layers=(
        SynthesizedLayer("SWG_rtl_0", "SWG_rtl", "stem", Area(1200, 0, 300, 1, 2, 0), Resources(1000, 1, 2, 0), Resources(900, 1, 0, 0)),
        SynthesizedLayer("MVAU_rtl_0", "MVAU_rtl", "stem", Area(34, 0, 30, 0, 0, 0), Resources(40, 0, 0, 0), Resources(50, 0, 0, 0)),
        SynthesizedLayer("Pool_hls_0", "Pool_hls", "<pool>", None, Resources(7, 0, 0, 0), Resources(7, 0, 0, 0)),
    ),
)  # fmt: skip

CANDIDATES = (
    Row("whole 1", True, 1, 0.93, 0.5, 5000, 60, 50, 0, 2000.0, fits=True, kept=True),
    Row("factorized 1", False, 1, 0.9375, 0.25, 4000, 3, 20, 0, 2500.0, fits=True, kept=True),
    Row("<factorized> 2", False, 1, 0.88, 0.125, 3000, 2, 10, 0, 2500.0, fits=True, kept=True),
    Row("whole 2", True, 0, 0.94, 1.5, 50_000, 600, 500, 0, 2000.0),
    Row("whole 3", True, 0, 0.95, message="no folding is as fast"),
)
COMPRESSED = Compressed(CANDIDATES, CANDIDATES[1], Path("somewhere"), "ZCU104 at 2,000 frames/s", 0.945, {})
