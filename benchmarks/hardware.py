"""From file to FINN's estimates: time and memory beside FINN's own flow, and what levels and bits cost in hardware.

    python benchmarks/hardware.py time                    # ResNet-18, 224 × 224: fxfactor.finn.estimate beside StreamlinePlus
    python benchmarks/hardware.py table --network resnet20 mobilenet_v2     # level × bits × board, for docs/finn.md
    python benchmarks/hardware.py forms                   # one convolution, whole and grouped in each form, for docs/finn.md
    python benchmarks/hardware.py folding    # ResNet-20 on one board: our folding beside FINN's, our figures beside FINN's

Both ways of `time` start from the same file and end with FINN's estimate reports; each runs in a process of its own, whose
memory is the sum over it and what it starts, sampled ten times a second. FINN's own way takes its steps as they are, with
the streamlining of its ResNet examples (StreamlinePlus), and checks nothing on the way; `fxfactor.finn.estimate` executes
the graph at the end. Needs finn-plus, psutil and torchvision; the
trained ResNet-20: see data.py.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import statistics
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data import find
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision import models

import fxfactor
from fxfactor.cli.options import parse_limits

BOARDS = ("ZCU104", "KV260_SOM", "Pynq-Z2")
RESOURCES = ("lut", "bram18", "dsp", "uram")
LEVELS: tuple[Any, ...] = (0, 1, 3, "depthwise")
TARGETS = {"resnet20": 2000, "mobilenet_v2": 32}
"""Frames per second that the table asks for."""
console = Console(width=160)


def network(name: str, size: int) -> tuple[nn.Module, torch.Tensor]:
    """A network and one input. ResNet-20 is the trained one; the others are random, with batch norms that differ by channel."""
    if name == "resnet20":
        return find().cifar_resnet(20).eval(), torch.randn(1, 3, 32, 32)
    if name == "resnet20 untrained":
        return _resnet20().eval(), torch.randn(1, 3, 32, 32)
    model = models.get_model(name, weights=None).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model, torch.randn(1, 3, size, size)


class _Block(nn.Module):
    """Two convolutions and what goes around them."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        stride = outputs // inputs
        self.first = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()
        )
        self.second = nn.Sequential(nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs))
        around = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        self.around = around if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(self.second(self.first(x)) + self.around(x))


def _resnet20() -> nn.Module:
    """ResNet-20 for CIFAR (He et al. 2016) with 1 × 1 convolutions around the blocks that stride; not trained."""
    blocks = [_Block(a, b) for a, b in ((16, 16),) * 3 + ((16, 32),) + ((32, 32),) * 2 + ((32, 64),) + ((64, 64),) * 2]
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU(), *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
    return model


def written(model: nn.Module, images: torch.Tensor, level: Any, bits: int, folder: Path, width: float = 1) -> Path:
    """The exported file."""
    file = folder / f"{level}-{bits}-{width}.onnx"
    qmodel = fxfactor.transform(model, level=level, bits=bits, width=width, example_inputs=images)
    fxfactor.export(qmodel, file, target="finn", example_inputs=images)
    return file


# ---- time and memory ----


def run_ours(file: Path, folder: Path, board: str, target_fps: int) -> None:
    """From the file to the estimates, without anything cached."""
    result = fxfactor.finn.estimate(file, board=board, target_fps=target_fps, cache=folder / "cache")
    print(f"{result.fps:.1f} fps, {result.total.lut:,} LUT, {result.total.bram18:,} BRAM18")


def run_finns(file: Path, folder: Path, board: str, target_fps: int) -> None:
    """FINN's own steps, with the streamlining that it ships for networks with forks and joins."""
    import os

    from fxfactor.finn.process.worker import require_finn

    os.environ["FINN_BUILD_DIR"] = str(folder)
    require_finn()
    from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType, ShellFlowType
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as steps
    from finn.builder.custom_step_library.resnet import step_resnet_streamline
    from qonnx.core.modelwrapper import ModelWrapper

    config = DataflowBuildConfig(
        output_dir=str(folder / "out"), board=board, synth_clk_period_ns=5.0, target_fps=target_fps,
        shell_flow_type=ShellFlowType.VIVADO_ZYNQ, generate_outputs=[DataflowOutputType.ESTIMATE_REPORTS],
        standalone_thresholds=True,
    )  # fmt: skip
    (folder / "out" / "intermediate_models").mkdir(parents=True)
    model = ModelWrapper(str(file))
    for step in (
        "step_qonnx_to_finn", "step_tidy_up", "streamline", "step_convert_to_hw", "step_minimize_bit_width_initial",
        "step_create_dataflow_partition", "step_specialize_layers", "step_target_fps_parallelization",
        "step_apply_folding_config", "step_minimize_bit_width", "step_generate_estimate_reports",
    ):  # fmt: skip
        started = time.monotonic()
        model = steps.get(step, step_resnet_streamline)(model, config)
        print(f"{step}: {time.monotonic() - started:.1f} s", file=sys.stderr)
    report = folder / "out" / "report"
    performance = json.loads((report / "estimate_network_performance.json").read_text())
    total = json.loads((report / "estimate_layer_resources.json").read_text())["total"]
    fps = performance["estimated_throughput_fps"]
    print(f"{fps:.1f} fps, {total['LUT']:,.0f} LUT, {total['BRAM_18K']:,.0f} BRAM18")


def watched(command: list[str]) -> dict[str, Any]:
    """Run a command: seconds, CPU seconds, peak memory in GiB of it and what it starts, and the last line it printed."""
    import psutil

    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as log:
        started = time.monotonic()
        process = psutil.Popen(command, stdout=out, stderr=log)
        peak, cpu = 0, {}
        while process.poll() is None:
            try:
                tree = [process, *process.children(recursive=True)]
                peak = max(peak, sum(one.memory_info().rss for one in tree))
                cpu.update({one.pid: sum(one.cpu_times()[:2]) for one in tree})
            except psutil.NoSuchProcess:
                pass
            time.sleep(0.1)
        seconds = time.monotonic() - started
        out.seek(0)
        log.seek(0)
        measured = {"seconds": seconds, "cpu": sum(cpu.values()), "gib": peak / 2**30}
        if process.returncode:
            return {**measured, "result": log.read().strip().splitlines()[-1]}
        return {**measured, "result": out.read().strip().splitlines()[-1]}


def compare_times(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        model, images = network("resnet18", 224)
        level, bits = options.level[0], options.bits[0]
        file = written(model, images, level, bits, folder)
        table = Table(title=f"ResNet-18, 224 × 224, level {level}, {bits} bits: file to estimates")
        for column in ("way", "seconds", "CPU seconds", "peak GiB", "estimate"):
            table.add_column(column, justify="left" if column in ("way", "estimate") else "right")
        cpu: dict[str, list[float]] = {}
        for repeat in range(options.repeats):
            for way in ("fxfactor.finn.estimate", "FINN's steps, StreamlinePlus"):
                work = folder / f"{repeat}{len(way)}"
                work.mkdir()
                row = watched([sys.executable, __file__, "one", way, str(file), str(work)])
                cpu.setdefault(way, []).append(row["cpu"])
                table.add_row(way, f"{row['seconds']:.0f}", f"{row['cpu']:.0f}", f"{row['gib']:.1f}", row["result"])
        ours, theirs = cpu.values()
        ratios = sorted(b / a for a, b in zip(ours, theirs, strict=True))
        spread = f"{statistics.median(ratios):.1f} ({ratios[0]:.1f} … {ratios[-1]:.1f})"
        table.caption = f"CPU time, theirs to ours: {spread}"
        console.print(table)


# ---- level × bits × board ----


def costs(name: str, options: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """A row of the table for every level, bit width, board and target: our figures, FINN's own in brackets."""
    model, images = network(name, 224)
    for level, bits in itertools.product(options.level, options.bits):
        file = written(model, images, level, bits, folder)
        for board, target in itertools.product(options.boards, options.fps or (TARGETS[name],)):
            row = [str(level), str(bits), board, str(target)]
            try:
                found = fxfactor.finn.estimate(file, board, target, requant=options.requant, cache=folder / "cache")
            except fxfactor.InfeasibleError as error:
                yield [*row, why_not(error), *[""] * len(RESOURCES)]
                continue
            cells = [f"{getattr(found.total, key):,} ({getattr(found.finn_total, key):,})" for key in RESOURCES]
            yield [*row, f"{found.fps:,.0f}", *cells]


def why_not(error: fxfactor.InfeasibleError) -> str:
    """The part of the message that says what binds."""
    required, _, found = str(error).partition("; found: ")
    return f"{required.removeprefix('required: ').partition(' for ')[0]}; {found.partition(';')[0]}"


def show_costs(options: argparse.Namespace) -> None:
    columns = ["level", "bits", "board", "asked for", "frames/s", "LUT", "BRAM18", "DSP", "URAM"]
    for name in options.network:
        print(f"\n{name}, 200 MHz\n")
        print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
        with tempfile.TemporaryDirectory() as folder:
            for row in costs(name, options, Path(folder)):
                print(f"| {' | '.join(row)} |", flush=True)


# ---- the forms of a grouped convolution ----


def sum_bits(fan_in: int, outputs: int, bits: int, *, signed: bool) -> int:
    """Bits of sums that FINN gives them: what normally distributed weights of these bits can reach."""
    weights = torch.randn(outputs, fan_in, generator=torch.Generator().manual_seed(0))
    most = 2 ** (bits - 1) - 1
    integers = torch.round(weights / weights.abs().amax(1, keepdim=True) * most)
    rising, falling = integers.clamp_min(0).sum(1), integers.clamp_max(0).sum(1)
    low, high = (-(2 ** (bits - 1)), most) if signed else (0, 2**bits - 1)
    reach = torch.maximum(rising * high + falling * low + 1, -(rising * low + falling * high)).max()
    return math.ceil(math.log2(float(reach))) + 1


def layers_of(form: str, groups: int, width: int, bits: int) -> list[Any]:
    """Chains of hardware layers for 64 → 64, 3 × 3, on 16 × 16: whole, or spatial and pointwise with a quantizer between."""
    from fxfactor.finn.layer_costs import Geometry, chains, datatype, thresholds

    size, activations = (16, 16), datatype(bits, signed=False)
    whole = Geometry(64, 64, 1, size, (3, 3), (1, 1), (1, 1, 1, 1))
    if form == "dense":
        sums = sum_bits(whole.fan_in, 64, bits, signed=False)
        return [*chains(whole, bits, activations, sums), thresholds(64, size, sums, bits, signed=False)]
    spatial = replace(whole, out_channels=64 * width, groups=groups)
    middle = sum_bits(spatial.fan_in, 64 * width, bits, signed=False)
    pointwise = Geometry(64 * width, 64, 1, size)
    last = sum_bits(64 * width, 64, bits, signed=True)
    return [
        *chains(spatial, bits, activations, middle, form),  # type: ignore[arg-type]
        thresholds(64 * width, size, middle, bits, signed=True),
        *chains(pointwise, bits, datatype(bits), last),
        thresholds(64, size, last, bits, signed=False),
    ]


FORMS_TRIED = (
    ("dense", 1, 1),
    *((form, groups, 1) for groups in (4, 8) for form in ("branches", "split", "block")),
    *((form, 8, 2) for form in ("branches", "split", "block")),
    *((form, 64, width) for width in (1, 2) for form in ("branches", "block")),
)
"""Form, groups, and outputs of the spatial factor as a multiple of 64."""


def show_forms(options: argparse.Namespace) -> None:
    """LUT, BRAM18 and DSP of each form at two speeds: our figures, in brackets FINN's own for the same folding."""
    from fxfactor.finn.layer_costs import price, total
    from fxfactor.finn.target import Target

    limits = (100_000, 20_000)
    print(f"64 → 64, 3 × 3, on 16 × 16, ZCU104 with limits {options.limit}; LUT / BRAM18 / DSP (FINN's), cycles\n")
    print("| bits | form | groups | width | " + " | ".join(f"≤ {limit:,} cycles" for limit in limits) + " |")
    print("|---|---|---|---|---|---|")
    for bits in options.bits:
        rows = {row: layers_of(*row, bits) for row in FORMS_TRIED}
        cells: dict[Any, list[str]] = {row: [] for row in rows}
        for limit in limits:
            target = Target("ZCU104", target_fps=round(200_000_000 / limit), limits=options.limit)
            prices = price([chain for wanted in rows.values() for chain in wanted], target)
            for row, wanted in rows.items():
                found = total(wanted, prices)
                ours, finns = (
                    " / ".join(f"{found[whose + name]:,.0f}" for name in ("lut", "bram", "dsp"))
                    for whose in ("", "finn_")
                )
                cells[row].append(f"{ours} ({finns}), {found['cycles']:,.0f}")
        for (form, groups, width), found in cells.items():
            print(f"| {bits} | {form} | {groups} | {width} | {' | '.join(found)} |", flush=True)


# ---- our folding beside FINN's ----


def foldings(options: argparse.Namespace, folder: Path) -> Iterator[list[str]]:
    """A row for every level, width, target and rule: our figures, then FINN's own for the same folding."""
    model, images = network("resnet20 untrained", 32)
    for level in options.level:
        for width in options.width if level else (1,):
            try:
                file = written(model, images, level, options.bits[0], folder, width)
            except fxfactor.FxfactorError as error:
                yield [str(level), f"{width:g}", "", "", f"refused: {str(error).splitlines()[0][:100]}", *[""] * 8]
                continue
            for target, rule in itertools.product(options.fps or (2000, 10000), ("finn", "fxfactor")):
                if (target, rule) != ("max", "finn"):
                    yield [str(level), f"{width:g}", str(target), rule, *_figures(file, options, target, rule, folder)]


def _figures(file: Path, options: argparse.Namespace, target: Any, rule: Any, folder: Path) -> list[str]:
    place: dict[str, Any] = {
        "clock_ns": options.clock_ns,
        "limits": options.limit,
        "requant": options.requant,
        "cache": folder / "cache",
    }
    try:
        found = fxfactor.finn.estimate(file, options.board, target, folding=rule, **place)
    except fxfactor.InfeasibleError as error:
        return [why_not(error), *[""] * 8]
    ours, finns = ([f"{getattr(each, name):,}" for name in RESOURCES] for each in (found.total, found.finn_total))
    return [f"{found.fps:,.0f}", *ours, *finns]


def show_foldings(options: argparse.Namespace) -> None:
    where = f"{options.board}, {1000 / options.clock_ns:.0f} MHz, limits {options.limit}"
    print(f"\nResNet-20, 32 × 32, {options.bits[0]} bits, {where}\n")
    names = ("LUT", "BRAM18", "DSP", "URAM")
    columns = ["level", "width", "asked for", "folding", "frames/s", *names, *(f"FINN's {name}" for name in names)]
    print(f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for row in foldings(options, Path(folder)):
            print(f"| {' | '.join(row)} |", flush=True)


def main() -> None:
    if sys.argv[1:2] == ["one"]:
        way, file, folder = sys.argv[2:]
        run = run_ours if way.startswith("fxfactor") else run_finns
        run(Path(file), Path(folder), "ZCU104", 30)
        return
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("what", choices=("time", "table", "forms", "folding"))
    parser.add_argument("--network", nargs="+", choices=tuple(TARGETS), default=list(TARGETS))
    parser.add_argument("--level", nargs="+", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--bits", nargs="+", type=int)
    parser.add_argument("--width", nargs="+", type=float, default=[1, 2], help="of the factors, for folding")
    parser.add_argument(
        "--fps",
        nargs="+",
        type=lambda text: int(text) if text.isdigit() else text,
        help="or max; for table and folding",
    )
    parser.add_argument("--boards", nargs="+", default=BOARDS, help="for table")
    parser.add_argument("--board", default="ZCU104", help="for folding")
    parser.add_argument("--clock-ns", type=float, default=5.0, help="for folding")
    parser.add_argument(
        "--limit", nargs="+", metavar="NAME=N", help="for folding and forms: the most of the board that may be used"
    )
    parser.add_argument(
        "--requant",
        action=argparse.BooleanOptionalAction,
        help="for folding and table: quantizers as multiplications wherever they can be, or never; by cost if not given",
    )
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    levels = {"time": [0], "folding": [0, 1, 2, 3, "depthwise"]}
    options.level = options.level or levels.get(options.what, list(LEVELS))
    options.bits = options.bits or {"table": [2, 4, 8], "forms": [4, 2]}.get(options.what, [4])
    options.limit = parse_limits(options.limit)
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    shown = {"time": compare_times, "table": show_costs, "forms": show_forms, "folding": show_foldings}
    shown[options.what](options)


if __name__ == "__main__":
    main()
