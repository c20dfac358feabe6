"""From a QONNX file to what the RTL that FINN makes of it takes, by Yosys: `synthesize`."""

from __future__ import annotations

import os
import time
from functools import partial
from pathlib import Path

from fxfactor.arguments import checked
from fxfactor.errors import FinnError
from fxfactor.finn.boards import VERSAL, Resources
from fxfactor.finn.commands import Commands
from fxfactor.finn.estimation import Job, Progress
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.simulation.design import Layer
from fxfactor.finn.simulation.flow import Generated
from fxfactor.finn.synthesis.cells import Area
from fxfactor.finn.synthesis.counting import Counter, family_of, find_yosys
from fxfactor.finn.synthesis.result import Synthesis, SynthesizedLayer
from fxfactor.finn.target import Folding, Frames, Limits, Target

AREAS = ".areas"
"""Folder of counts in the cache; the dot keeps it apart from the models kept there."""


@partial(checked, error=FinnError)
def synthesize(
    file: str | Path,
    board: str = "ZCU104",
    target_fps: Frames = 1000,
    clock_ns: float = 5.0,
    *,
    limits: Limits | None = None,
    grouped: Form | None = None,
    requant: bool | None = None,
    folding: Folding = "fxfactor",
    python: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Synthesis:
    """Count what the RTL takes that FINN generates for `file`: a second opinion on `fxfactor.finn.estimate`, without Vivado.

    Before: a file that `fxfactor.export(qmodel, file, target="finn")` wrote. After: a `Synthesis`: look-up tables, flip-flops,
    block RAMs, DSP slices and UltraRAMs of every layer in RTL by Yosys for the board's family, beside our estimate and FINN's
    own. FINN's steps run as in `fxfactor.finn.prepare`, up to its code generation; then each layer is synthesised by itself, with
    its weight memory. Equal layers are counted once, and counts are kept in `cache`: weights and thresholds are replaced by
    random numbers as wide, so that a count does not depend on them. What is not counted: layers that FINN has in HLS only
    (`result.not_counted`), FIFOs, the shell, and what placing and routing change. Yosys is not Vivado: it packs less
    tightly, and takes flip-flops where Vivado takes shift registers.

    The arguments are as in `fxfactor.finn.estimate`. Raises FinnError where a rule is broken, FINN or Yosys is missing, the
    board is a Versal one, or `timeout_s` seconds pass. Nothing is left behind then but what the cache keeps.
    """
    if board in VERSAL:
        raise FinnError(
            f"required: a board with Zynq-7000 or UltraScale+; found: {board}, a Versal, whose DSP slices Yosys does not know; "
            "choose one like ZCU104"
        )
    started = time.monotonic()
    target, yosys = Target(board, clock_ns, target_fps, python, limits), find_yosys()
    say = progress or (lambda step: None)
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
        generated = Generated.of(job.run(folder))
        part = generated.outcome.reports["part"]
        jobs = os.cpu_count() or 1
        counter = Counter(yosys, family_of(part), target.available.uram > 0, job.store / AREAS, jobs)
        areas, counted = counter.areas(generated.codes.values(), commands, say)
    layers = tuple(_layer(layer, generated, areas) for layer in generated.design.layers)
    return Synthesis(board, part, clock_ns, yosys.release, layers, counted, time.monotonic() - started)


def _layer(layer: Layer, generated: Generated, areas: dict[str, Area]) -> SynthesizedLayer:
    code, prices = generated.codes.get(layer.name), layer.told["prices"]
    return SynthesizedLayer(
        name=layer.name,
        kind=layer.kind,
        site=generated.sites[layer.name],
        yosys=None if code is None else areas[code.key],
        ours=Resources(*map(round, prices["ours"])),
        finn=Resources(*map(round, prices["finn"])),
    )
