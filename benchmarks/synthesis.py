"""Counts by Yosys of the RTL that FINN generates, beside our estimates and FINN's: fxfactor.finn.synthesize.

    python benchmarks/synthesis.py collect layers.json    # ResNet-20 at levels × bits × speeds: every different layer once
    python benchmarks/synthesis.py fit layers.json        # fit our prices to them, 30 layers of each kind held out
    python benchmarks/synthesis.py table layers.json      # Yosys, ours and FINN's for 30 layers, for docs/synthesis.md

`collect` takes half an hour of CPU time the first time; counts are kept (--cache), and it goes on from them. `fit` prints the
coefficients that stand in fxfactor/finn/process/folding/formulas.py. Needs finn-plus, psutil, pyosys and torchvision.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from hardware import network

import fxfactor
from fxfactor.finn.commands import Commands
from fxfactor.finn.estimation import Job
from fxfactor.finn.simulation.flow import Generated
from fxfactor.finn.synthesis.counting import Counter, family_of, find_yosys
from fxfactor.finn.synthesis.flow import AREAS
from fxfactor.finn.target import Target

RUNS: tuple[tuple[Any, int, int], ...] = (
    (3, 4, 2000), (0, 4, 2000), (3, 4, 10_000), (0, 4, 10_000), ("depthwise", 4, 2000), (3, 8, 2000), (0, 8, 5000),
    (3, 2, 10_000), ("depthwise", 8, 10_000), (0, 2, 2000), (1, 3, 5000), (2, 6, 10_000),
)  # fmt: skip
"""Level, bits, frames per second."""
BOARD = "ZCU104"


def collect(cache: Path) -> Iterator[dict[str, Any]]:
    """Every different layer in RTL, with what is known of it before synthesis and what Yosys counts."""
    seen = set()
    for level, bits, fps in RUNS:
        for entry in layers_of(level, bits, fps, cache):
            if entry["key"] not in seen:
                seen.add(entry["key"])
                yield entry


def layers_of(level: Any, bits: int, fps: int, cache: Path) -> Iterator[dict[str, Any]]:
    """The layers of one network on BOARD."""
    torch.manual_seed(0)
    model, _ = network("resnet20 untrained", 32)
    images = torch.randn(8, 3, 32, 32)
    qmodel = fxfactor.transform(model, level=level, bits=bits, calibration=[images])
    with tempfile.TemporaryDirectory() as place:
        file = Path(place) / "model.onnx"
        fxfactor.export(qmodel, file, target="finn", example_inputs=images[:1])
        job = Job(file, Target(BOARD, target_fps=fps), cache=cache, generate=True, describe=True)
        with job.folder() as folder, Commands(time.monotonic() + 1e5) as commands:
            generated = Generated.of(job.run(folder))
            part = generated.outcome.reports["part"]
            counter = Counter(find_yosys(), family_of(part), True, cache / AREAS, os.cpu_count() or 1)
            areas, counted = counter.areas(generated.codes.values(), commands, lambda step: None)
    print(f"level {level}, {bits} bits, {fps} frames/s: {len(generated.codes)} layers, {counted} counted", flush=True)
    for layer in generated.design.layers:
        code = generated.codes.get(layer.name)
        if code is not None:
            yield {
                "key": code.key,
                "kind": layer.kind,
                "run": f"level {level}, {bits} bits, {fps:,} frames/s",
                "name": layer.name,
                "site": generated.sites[layer.name],
                "attributes": {name: value for name, value in layer.attributes.items() if not isinstance(value, list)},
                "inputs": [vars(port) for port in layer.in_ports],
                "outputs": [vars(port) for port in layer.out_ports],
                "prices": layer.told["prices"],
                "yosys": vars(areas[code.key]),
            }


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=("collect", "fit", "table"))
    parser.add_argument("file", type=Path)
    parser.add_argument("--cache", type=Path, default=Path("build/synthesis-cache"))
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    if options.what == "collect":
        options.file.write_text(json.dumps(list(collect(options.cache.absolute())), default=str))


if __name__ == "__main__":
    main()
