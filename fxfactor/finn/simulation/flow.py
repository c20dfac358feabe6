"""From a QONNX file to a simulation of the hardware that FINN makes of it: `simulate`."""

from __future__ import annotations

import bisect
import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from fxfactor.arguments import checked
from fxfactor.errors import FinnError
from fxfactor.finn.commands import Commands
from fxfactor.finn.estimation import Job, Outcome, Progress, site_in
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.process.load import IntegerNetwork, as_array, load_integers
from fxfactor.finn.simulation.compiling import Built, Compiler
from fxfactor.finn.simulation.design import Design, Layer, design_of
from fxfactor.finn.simulation.result import Difference, SimulatedLayer, SimulatedStream, Simulation
from fxfactor.finn.simulation.rtl import Code, code_of
from fxfactor.finn.simulation.running import Bench, Raw, interval_of, least_depth, unlimited
from fxfactor.finn.simulation.tools import Tools, find_tools
from fxfactor.finn.simulation.words import elements_of
from fxfactor.finn.target import Folding, Frames, Limits, Target

LEAST_FRAMES = 3
"""The first fills the pipeline, the time between the others is the time of a frame."""

LAYERS = ".layers"
"""Folder of compiled layers in the cache; the dot keeps it apart from the models kept there."""

Depths = Mapping[str, int] | int | Literal["target"] | None


@partial(checked, error=FinnError)
def simulate(
    file: str | Path,
    images: Any,
    board: str = "ZCU104",
    target_fps: Frames = 1000,
    clock_ns: float = 5.0,
    *,
    fifo_depths: Depths = None,
    limits: Limits | None = None,
    grouped: Form | None = None,
    requant: bool | None = None,
    folding: Folding = "fxfactor",
    python: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Simulation:
    """Simulate, clock by clock, the hardware that FINN generates for `file`, and compare every word with the network.

    Before: a file that `fxfactor.export(qmodel, file, target="finn")` wrote, and `images` (N, C, H, W), a tensor or an array.
    After: a `Simulation`: whether every word in every stream was right, cycles per frame, latency, where the pipeline waits,
    and how full the FIFOs get. FINN's steps run as in `fxfactor.finn.prepare`, up to its code generation. Its RTL is compiled
    by Verilator; layers that FINN has in HLS only are models of ours, and are named as such. Each layer is compiled once and
    kept in `cache`, whatever its weights. At least three frames are simulated: fewer images are repeated.

    `fifo_depths`: words that each FIFO holds. Without it they are found: the network is simulated with FIFOs without limit and
    its input evenly spread over a frame, and every FIFO gets as many words as it held then at most, which keeps up the full
    speed. "target" takes the shallowest that `target_fps` allows: none deeper than a limit, but for those where branches
    meet. A mapping gives depths for some streams by name ("MVAU_rtl_0 -> Thresholding_rtl_0"); a number is for all of them.

    `grouped`, `requant`, `folding` and the other arguments are as in `fxfactor.finn.estimate`. A wrong word is no error: see
    `Simulation.is_right` and `Simulation.differences`. Raises FinnError where a rule is broken, FINN, Verilator or a
    C++ compiler is missing, a layer has neither RTL nor a model, or `timeout_s` seconds pass. Nothing is left behind
    then but what the cache keeps.
    """
    started = time.monotonic()
    target, tools = Target(board, clock_ns, target_fps, python, limits), find_tools()
    _require_depth(fifo_depths)
    integers = _integer_images(images, load_integers(file))
    job = Job(
        Path(file),
        target,
        timeout_s=timeout_s,
        cache=cache,
        progress=progress,
        generate=True,
        describe=True,
        grouped=grouped,
        requant=requant,
        folding=folding,
    )
    with job.folder() as folder, Commands(started + timeout_s) as commands:
        outcome = job.run(folder)
        generated = Generated.of(outcome)
        say = progress or (lambda step: None)
        built = compile_layers(generated, tools, job.store, commands, say)
        bench_folder = Path(folder) / "simulation"
        bench_folder.mkdir()
        bench = Bench.set_up(generated.design, generated.codes, built, outcome.network.model, integers, bench_folder)
        return measure(bench, generated, commands, fifo_depths, say, started)


@dataclass(frozen=True)
class Generated:
    """FINN's hardware as it is simulated: `codes` by the names of the layers in RTL, `sites` by those of all."""

    outcome: Outcome
    design: Design
    codes: dict[str, Code]
    sites: dict[str, str]

    @classmethod
    def of(cls, outcome: Outcome) -> Generated:
        """From what FINN's worker sent and the folder that it generated code in, which must still be there."""
        design = design_of(outcome.layers)
        library = Path(outcome.finn) / "finn-rtllib"
        codes = {layer.name: code_of(layer, library) for layer in design.layers if layer.is_rtl}
        return cls(outcome, design, codes, _sites(outcome, design))


def _sites(outcome: Outcome, design: Design) -> dict[str, str]:
    """Layer -> the module or node it belongs to: the one whose tensor it computes, or the first one behind it that does."""
    graph = outcome.network.model.graph
    known = {name for node in graph.node for name in node.output}
    sites: dict[str, str] = {}
    for layer in reversed(design.layers):
        first = design.streams[layer.outputs[0]]
        if first.tensor in known:
            sites[layer.name] = site_in(str(first.tensor))
        else:
            sites[layer.name] = sites.get(first.reader) or site_in(graph.output[0].name)
    return sites


def _integer_images(images: Any, network: IntegerNetwork) -> NDArray[Any]:
    """Images (N, C, H, W) as integers (at least 3, H, W, C). Raises FinnError where the shape is not the network's."""
    array = as_array(images, "images")
    shape = tuple(network.notes["input"]["shape"][1:])
    if array.shape[1:] != shape or not len(array):
        raise FinnError(
            f"required: images of shape (N, {', '.join(map(str, shape))}); found: {array.shape}; see images="
        )
    integers = network.to_integers(array.astype(np.float32))
    return integers[np.arange(max(LEAST_FRAMES, len(integers))) % len(integers)]


def compile_layers(generated: Generated, tools: Tools, store: Path, commands: Commands, progress: Progress) -> Built:
    """The simulator and all layers in RTL, from the cache `store` where they are there."""
    compiler = Compiler(tools, store / LAYERS, os.cpu_count() or 1)
    return compiler.build(generated.codes.values(), commands, progress)


def measure(
    bench: Bench, generated: Generated, commands: Commands, fifo_depths: Depths, progress: Progress, started: float
) -> Simulation:
    """Find the depths of the FIFOs, then simulate all frames with them."""
    design = bench.design
    progress("simulate with FIFOs without limit")
    free = bench.run(unlimited(design), commands, LEAST_FRAMES, what="simulating with FIFOs without limit")
    needed: list[int] | None = None
    pace = 0 if free.stopped else interval_of(free.finished)
    if not free.stopped and not isinstance(fifo_depths, int):
        progress("find the depths of FIFOs")
        paced = bench.run(unlimited(design), commands, LEAST_FRAMES, pace=pace, what="finding the depths of FIFOs")
        needed = [least_depth(stream["peak"]) for stream in paced.streams]
    if fifo_depths == "target" and needed is not None:
        depths = shallowest(bench, commands, needed, max(pace, _target_cycles(generated.outcome.job.target)))
    else:
        depths = _depths(design, needed, fifo_depths)
    progress(f"simulate {bench.frames} frames")
    raw = bench.run(depths, commands, what=f"simulating {bench.frames} frames")
    return _result(bench, generated, raw, depths, needed, pace, time.monotonic() - started)


def shallowest(bench: Bench, commands: Commands, needed: list[int], cycles: int) -> list[int]:
    """`needed` cut to the least limit with which a frame takes at most `cycles`; streams to where branches meet stay as they are.

    Tried are 2 and powers of two from 16 on, by halving, since no deeper FIFO makes a network slower.
    """
    meeting = {index for layer in bench.design.layers if len(layer.inputs) > 1 for index in layer.inputs}

    def cut(limit: int) -> list[int]:
        return [depth if index in meeting else min(depth, limit) for index, depth in enumerate(needed)]

    def is_enough(limit: int) -> bool:
        run = bench.run(cut(limit), commands, LEAST_FRAMES, what=f"simulating with FIFOs of at most {limit} words")
        return not run.stopped and interval_of(run.finished) <= cycles

    deepest = max(depth for index, depth in enumerate(needed) if index not in meeting)
    limits = [2, *(2**power for power in range(4, deepest.bit_length()) if 2**power < deepest)]
    found = bisect.bisect_left(limits, True, key=is_enough)
    return cut([*limits, deepest][found])


def _target_cycles(target: Target) -> int:
    """Cycles that a frame may take; 0 where as few as possible are wanted."""
    return 0 if target.target_fps == "max" else int(1e9 / target.clock_ns / target.target_fps)


def _require_depth(wanted: Depths) -> None:
    if isinstance(wanted, str) and wanted != "target":
        raise FinnError(f'required: fifo_depths="target", a number, or depths by stream; found: {wanted!r}')
    if isinstance(wanted, int) and wanted < 2:
        raise FinnError(f"required: FIFOs of at least 2 words; found: fifo_depths={wanted}; give a larger number")


def _depths(design: Design, needed: list[int] | None, wanted: Depths) -> list[int]:
    if isinstance(wanted, int):
        return [wanted] * len(design.streams)
    depths = unlimited(design) if needed is None else list(needed)
    names = {stream.name: index for index, stream in enumerate(design.streams)}
    for name, depth in wanted.items() if isinstance(wanted, Mapping) else ():
        if name not in names or depth < 2:
            raise FinnError(
                f"required: a stream of this network and a depth of at least 2; found: {name!r}: {depth}; choose from "
                f"{', '.join(names)}"
            )
        depths[names[name]] = depth
    return depths


def _result(
    bench: Bench,
    generated: Generated,
    raw: Raw,
    depths: list[int],
    needed: list[int] | None,
    pace: int,
    seconds: float,
) -> Simulation:
    design, target = bench.design, generated.outcome.job.target
    finished = raw.finished
    return Simulation(
        board=target.board,
        part=generated.outcome.reports["part"],
        clock_ns=target.clock_ns,
        frames=len(finished),
        cycles=interval_of(finished) if len(finished) > 1 else 0,
        unlimited_cycles=pace,
        latency_cycles=finished[0] - raw.first_input + 1 if finished else 0,
        estimated_cycles=max(layer.cycles for layer in design.layers),
        layers=tuple(_layer(layer, generated.sites[layer.name], raw) for layer in design.layers),
        streams=tuple(_stream(bench, raw, index, depths, needed) for index in range(len(design.streams))),
        differences=_differences(bench, generated, raw),
        complaints=raw.complaints,
        stopped=_why_stopped(bench, raw, depths),
        compiled=bench.built.compiled,
        seconds=seconds,
    )


def _layer(layer: Layer, site: str, raw: Raw) -> SimulatedLayer:
    return SimulatedLayer(
        name=layer.name,
        kind=layer.kind,
        site=site,
        is_model=not layer.is_rtl,
        estimated_cycles=layer.cycles,
        watched_cycles=max(raw.streams[index]["watched"] for index in (*layer.inputs, *layer.outputs)),
        waits_for_input=max(raw.streams[index]["empty"] for index in layer.inputs),
        waits_for_output=max(raw.streams[index]["held"] for index in layer.outputs),
    )


def _stream(bench: Bench, raw: Raw, index: int, depths: list[int], needed: list[int] | None) -> SimulatedStream:
    stream, found = bench.design.streams[index], raw.streams[index]
    return SimulatedStream(
        name=stream.name,
        writer=stream.writer,
        reader=stream.reader,
        bits=stream.port.bits,
        words=found["words"],
        words_per_frame=stream.port.words,
        depth=depths[index],
        peak=found["peak"],
        began=tuple(cycle - raw.first_input for cycle in found["began"]),
        ended=tuple(cycle - raw.first_input for cycle in found["ended"]),
        watched_cycles=found["watched"],
        full_cycles=found["held"],
        empty_cycles=found["empty"],
        wrong=found["wrong"],
        left=found["left"],
        needed=None if needed is None else needed[index],
    )


def _differences(bench: Bench, generated: Generated, raw: Raw) -> tuple[Difference, ...]:
    """The first difference of each stream that has one, in the order of execution: the first layer is the one to look at."""
    differences = []
    order = [index for layer in bench.design.layers for index in layer.outputs]
    for index in order:
        found, stream = raw.streams[index], bench.design.streams[index]
        if found["wrong"]:
            port, at = stream.port, found["first_wrong"]
            expected = np.fromfile(bench.folder / "words" / str(index), np.uint32).reshape(-1, port.limbs)
            wanted = tuple(elements_of(expected[at % len(expected)].tolist(), port))
            differences.append(
                Difference(
                    layer=stream.writer,
                    site=generated.sites[stream.writer],
                    stream=stream.name,
                    frame=at // port.words,
                    word=at % port.words,
                    found=tuple(elements_of(found["found"], port)),
                    wanted=wanted,
                    wrong=found["wrong"],
                )
            )
    return tuple(differences)


def _why_stopped(bench: Bench, raw: Raw, depths: list[int]) -> str:
    if not raw.stopped:
        return ""
    if raw.stopped != "deadlock":
        return f"{raw.stopped} ended the simulation itself"
    full = [
        f"{stream.name} (depth {depth})"
        for stream, found, depth in zip(bench.design.streams, raw.streams, depths, strict=True)
        if depth and found["left"] >= depth
    ]
    return f"no word moved any more, after {len(raw.finished)} frames; full FIFOs: {', '.join(full) or 'none'}"
