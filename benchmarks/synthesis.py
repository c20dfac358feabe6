"""Counts by Yosys of the RTL that FINN generates, beside our estimates and FINN's: fxfactor.finn.synthesize.

    python benchmarks/synthesis.py collect layers.json    # ResNet-20 at levels × bits × speeds: every different layer once
    python benchmarks/synthesis.py fit layers.json        # fit our prices to all of them but a tenth, which is held out
    python benchmarks/synthesis.py table layers.json      # Yosys, ours and FINN's for that tenth, and by kind for all others

`collect` takes half an hour of CPU time the first time; counts are kept (--cache), and it goes on from them. `fit` prints what
stands as FITTED in fxfactor/finn/process/folding/formulas.py; `collect` again, in some minutes, has the prices by it, and `table`
shows them. Needs finn-plus, psutil, pyosys and torchvision.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import math
import os
import re
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from hardware import network
from scipy.optimize import nnls

import fxfactor
from fxfactor.finn.commands import Commands
from fxfactor.finn.estimation import Job
from fxfactor.finn.process.folding import formulas
from fxfactor.finn.simulation.flow import Generated
from fxfactor.finn.synthesis.counting import Counter, family_of, find_yosys
from fxfactor.finn.synthesis.flow import AREAS
from fxfactor.finn.target import Target

RUNS: tuple[tuple[Any, int, int], ...] = (
    (3, 4, 2000), (0, 4, 2000), (3, 4, 10_000), (0, 4, 10_000), ("depthwise", 4, 2000), (3, 8, 2000), (0, 8, 5000),
    (3, 2, 10_000), ("depthwise", 8, 10_000), (0, 2, 2000), (1, 3, 5000), (2, 6, 10_000),
)  # fmt: skip
"""Level, bits, frames per second."""
BOARD, BLOCK = "ZCU104", "DSP48E2"
LEAST = 40
"""Look-up tables: errors of smaller layers count as parts of this."""


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
    qmodel = fxfactor.transform(model, level=level, bits=bits, calibration=[images], recover="none")
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


Entry = dict[str, Any]
HELD_OUT = 0.1
"""Part of all layers that ever may be counted which no fit sees."""


def split(entries: list[Entry]) -> tuple[list[Entry], list[Entry]]:
    """Layers to fit to, and those held out: a layer is always on the same side, whatever others are counted with it."""
    known: list[Entry] = []
    held: list[Entry] = []
    for entry in entries:
        place = int.from_bytes(hashlib.sha256(entry["key"].encode()).digest()[:4]) / 2**32
        (held if place < HELD_OUT else known).append(entry)
    return known, held


def told(entry: Entry) -> tuple[str, tuple[float, ...], float] | None:
    """What is fitted, its parts, and the look-up tables that they have to sum up to; None for what is not fitted."""
    kind, attributes, luts = entry["kind"], entry["attributes"], float(entry["yosys"]["lut"])
    if kind == "StreamingDataWidthConverter_rtl":
        return "width converter", formulas.converter_parts(attributes["inWidth"], attributes["outWidth"]), luts
    if kind == "ConvolutionInputGenerator_rtl":
        simd, parallel = attributes["SIMD"], bool(attributes["parallel_window"])
        folds = attributes["IFMChannels"] // simd
        *_, words, elements = entry["outputs"][0]["folded"]
        pixels = words * elements // attributes["IFMChannels"]
        width, kernel = entry["inputs"][0]["bits"], math.isqrt(pixels)  # kernels are square here
        memory = entry["prices"]["finn"][0] - 300  # FINN's figure is a constant and its memory
        if parallel:
            memory = formulas.line_luts(kernel, (entry["inputs"][0]["folded"][2] - kernel) * folds, width)
        parts = formulas.window_parts(pixels, folds, simd, parallel, memory, width)
        return "window generator", parts, luts
    if kind == "FMPadding_rtl":
        return "padding", (1.0, entry["inputs"][0]["bits"]), luts
    if kind == "Thresholding_rtl" and not entry["yosys"]["bram18"]:
        leaving, entering = entry["outputs"][0], entry["inputs"][0]["element_bits"]
        pe, channels, bits = attributes["PE"], attributes["NumChannels"], leaving["element_bits"]
        width = bits_of(attributes["weightDataType"])
        memory = pe * sum(formulas.rom_luts(width, channels // pe * 2**stage) for stage in range(bits))
        return "thresholds", formulas.threshold_parts(pe, bits, entering, leaving["signed"], memory), luts
    if kind == "IntegerRequant_rtl" and not entry["yosys"]["bram18"]:
        leaving, entering, pe = entry["outputs"][0], entry["inputs"][0], attributes["PE"]
        product = entering["element_bits"] + (not entering["signed"]) + attributes["ScaleBits"] + 1
        bias, shift = attributes["BiasBits"], attributes["Shift"]
        slices = round(entry["prices"]["ours"][2] / pe)  # Yosys takes more of them for wide numbers
        parameters = pe * (attributes["ScaleBits"] + bias) * math.ceil(attributes["NumChannels"] / pe / 64)
        shape = leaving["element_bits"], shift, leaving["signed"]
        return "multiplication", formulas.requant_parts(pe, product, bias, *shape, slices, parameters), luts
    if kind in ("MVAU_rtl", "MVAUGrouped_rtl"):
        return matrix_unit(entry, luts)
    return None


def matrix_unit(entry: Entry, luts: float) -> tuple[str, tuple[float, ...], float] | None:
    attributes = entry["attributes"]
    pe, simd, rows, columns = (attributes[name] for name in ("PE", "SIMD", "MW", "MH"))
    weights, inputs = bits_of(attributes["weightDataType"]), entry["inputs"][0]["element_bits"]
    sums = entry["outputs"][0]["element_bits"]
    counts = {
        lanes: formulas.matrix_unit_dsps(pe, simd, lanes, BLOCK, weights, inputs)
        for lanes in (formulas.dsp_lanes(BLOCK, weights, inputs, narrow) for narrow in (True, False))
    }
    lanes = next(lanes for lanes, count in counts.items() if count == entry["yosys"]["dsp"])
    width, depth = pe * simd * weights, rows * columns // (pe * simd) * attributes.get("Groups", 1)
    exact = pe * sums + formulas.weight_queue_luts(width)
    exact += formulas.rom_luts(width, depth) if attributes["ram_style"] == "distributed" else 0
    exact += 0 if pe == columns else formulas.replay_memory(rows // simd, simd * inputs)[0]
    return "matrix unit", formulas.matrix_unit_parts(pe, simd, lanes, weights, inputs, sums), luts - exact


def bits_of(datatype: str) -> int:
    return int(re.sub(r"\D", "", datatype))


def fit(entries: list[Entry]) -> dict[str, tuple[float, ...]]:
    """Prices, none below 0, whose sum over the parts is nearest to the counts, each in shares of the layer's own."""
    known, _ = split(entries)
    cases: dict[str, list[tuple[tuple[float, ...], float, float]]] = {}
    for entry in known:
        if (found := told(entry)) is not None:
            cases.setdefault(found[0], []).append((found[1], found[2], max(entry["yosys"]["lut"], LEAST)))
    prices = {}
    for what, rows in sorted(cases.items()):
        parts, wanted, scale = (np.array(column, dtype=float) for column in zip(*rows, strict=True))
        found, _ = nnls(parts / scale[:, None], wanted / scale)
        prices[what] = tuple(float(f"{price:.3g}") for price in found)
        error = (parts @ np.array(prices[what]) - wanted) / scale
        print(f"{what:16} {len(rows):4} layers, largest error {abs(error).max():.1%}, mean {abs(error).mean():.1%}")
    return prices


def show(entries: list[Entry]) -> None:
    """Tables in Markdown; without layers that are wires alone (Reshape)."""
    entries = [entry for entry in entries if entry["yosys"]["lut"]]
    known, held = split(entries)
    print("| layer (not used for the fit) | words | Yosys | ours | FINN's |\n|---|---|---|---|---|")
    errors = []
    for entry in sorted(held, key=lambda entry: (entry["kind"], entry["yosys"]["lut"])):
        ours, finns = entry["prices"]["ours"], entry["prices"]["finn"]
        errors.append(ours[0] / entry["yosys"]["lut"] - 1)
        words = " → ".join(str(entry[side][0]["bits"]) for side in ("inputs", "outputs"))
        name = f"{entry['kind']}, {entry['site']}, {entry['run']}"
        print(
            f"| {name} | {words} | {entry['yosys']['lut']:,} | {ours[0]:,.0f} ({errors[-1]:+.0%}) | {finns[0]:,.0f} |"
        )
    print(f"\nlargest error {max(map(abs, errors)):.1%}, mean {sum(map(abs, errors)) / len(errors):.1%}\n")
    print("| kind | different layers | Yosys | ours | FINN's | largest error of ours |\n|---|---|---|---|---|---|")
    for kind in sorted({entry["kind"] for entry in entries}):
        rows = [entry for entry in known if entry["kind"] == kind]
        counted = sum(entry["yosys"]["lut"] for entry in rows)
        ours, finns = (sum(entry["prices"][whose][0] for entry in rows) for whose in ("ours", "finn"))
        worst = max((entry["prices"]["ours"][0] / entry["yosys"]["lut"] - 1 for entry in rows), key=abs)
        print(
            f"| {kind} | {len(rows)} | {counted:,} | {ours:,.0f} ({ours / counted - 1:+.0%}) | {finns:,.0f} | {worst:+.0%} |"
        )


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
    elif options.what == "fit":
        print(json.dumps(fit(json.loads(options.file.read_text())), indent=1))
    else:
        show(json.loads(options.file.read_text()))


if __name__ == "__main__":
    main()
