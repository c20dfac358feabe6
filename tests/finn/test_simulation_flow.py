"""simulate: a small network word for word, faults found with the layer named, and what is refused."""

from __future__ import annotations

import io
import json
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finn_helpers import export_to
from grouped_networks import GROUPED
from rich.console import Console
from simulation_helpers import Laboratory, laboratory, needs_verilator
from small_networks import TAKEN, Branches, Residual, build, chain, conv, norm, quantizer, relu
from torch import nn
from typer.testing import CliRunner

import fxfactor
from fxfactor.cli.finn import app
from fxfactor.errors import FinnError
from fxfactor.finn.commands import Commands
from fxfactor.finn.simulation import compiling
from fxfactor.finn.simulation.design import Design
from fxfactor.finn.simulation.flow import Generated, shallowest
from fxfactor.finn.simulation.running import Raw
from fxfactor.finn.simulation.tools import find_tools

pytestmark = [pytest.mark.finn, needs_verilator]

Write = Callable[..., Path]


@pytest.fixture(scope="module")
def two_layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with a network of two convolutions and a classifier, on images of 3 x 8 x 8."""
    torch.manual_seed(0)
    model = nn.Sequential(
        *(quantizer(8), conv(3, 8), norm(8), relu()),
        *(conv(8, 8, stride=2), norm(8), relu()),
        *(nn.AdaptiveAvgPool2d(1), nn.Flatten(1)),
    )
    return export_to(tmp_path_factory.mktemp("two") / "model.onnx", model, (1, 3, 8, 8))


@pytest.fixture(scope="module")
def residual(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Iterator[Laboratory]:
    """A residual network with a split and a concatenation behind it, generated and compiled."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("residual")
    model = chain(Residual(*[quantizer()] * 2), Branches(), conv(8, 8, 1), norm(8), relu())
    file = export_to(folder / "model.onnx", model, (1, 3, 8, 8))
    with laboratory(file, folder, cache, "ZCU104", 20_000) as bench:
        yield bench


def test_a_network_of_two_layers_word_for_word(two_layers: Path, cache: Path) -> None:
    images, steps = torch.randn(2, 3, 8, 8), []
    result = fxfactor.finn.simulate(two_layers, images, "Pynq-Z2", 20_000, cache=cache, progress=steps.append)
    assert result.is_right and not result.differences and not result.stopped
    assert result.frames == 3  # the images again from the first
    assert result.words > 3 * 64 * 8 and all(stream.words >= 3 * stream.words_per_frame for stream in result.streams)
    assert result.estimated_cycles <= result.cycles <= 1.1 * result.estimated_cycles
    assert result.cycles == result.unlimited_cycles
    assert result.fps == pytest.approx(2e8 / result.cycles)
    assert result.latency_cycles > result.cycles / 4
    assert result.models == ("GlobalAccPool_hls_0",)
    assert "MVAU_rtl_0" in [layer.name for layer in result.layers]
    assert all(stream.peak <= max(stream.depth, 5) for stream in result.streams)
    slowest = max(layer.estimated_cycles for layer in result.layers)
    assert result.busiest.estimated_cycles == slowest and result.busiest.waiting < 0.05
    for stream in result.streams:  # frames pass one after the other, and counts cover the time between them
        assert len(stream.began) == len(stream.ended) == 3
        passing = [cycle for frame in zip(stream.began, stream.ended, strict=True) for cycle in frame]
        assert passing == sorted(passing)
        assert stream.watched_cycles == stream.ended[-1] - stream.ended[0]
        assert stream.full_cycles + stream.empty_cycles <= stream.watched_cycles
        assert stream.ended[-1] - stream.ended[-2] == pytest.approx(result.cycles, rel=0.02)
    assert {layer.site for layer in result.layers} >= {"1", "4"}
    assert steps[-1] == "simulate 3 frames" and any(step.startswith("compile") for step in steps)
    told = json.loads(result.to_json())
    assert told["cycles"] == result.cycles and told["busiest"] == result.busiest.name and told["is_right"]
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(result)
    assert "all are right" in console.export_text()
    again = fxfactor.finn.simulate(two_layers, images, "Pynq-Z2", 20_000, cache=cache)
    assert again.compiled == 0
    assert replace(again, seconds=0.0, compiled=0) == replace(result, seconds=0.0, compiled=0)
    assert not list(cache.glob(".run-*")) and not list((cache / ".layers").glob(".run-*"))


def test_on_the_command_line(two_layers: Path, cache: Path, tmp_path: Path) -> None:
    images, output = tmp_path / "images.npy", tmp_path / "result.json"
    np.save(images, np.random.default_rng(0).normal(size=(1, 3, 8, 8)))
    arguments = ["simulate", str(two_layers), "--images", str(images), "--board", "Pynq-Z2", "--target-fps", "20000"]
    arguments += ["--cache", str(cache), "--output", str(output), "--fifo-depth", "target"]
    told = CliRunner().invoke(app, arguments)
    assert told.exit_code == 0, told.output
    assert "all are right" in told.output
    assert json.loads(output.read_text())["is_right"]


# ---- faults ----


def _flip(hexadecimal: str, bit: int) -> str:
    digits = len(hexadecimal)
    return f"{int(hexadecimal, 16) ^ (1 << bit):0{digits}x}"


def _layers(bench: Laboratory, kind: str) -> list[str]:
    return [layer.name for layer in bench.generated.design.layers if layer.kind == kind]


def test_as_generated_every_word_is_right(residual: Laboratory) -> None:
    result = residual.simulate()
    assert result.is_right, result.differences or result.stopped
    assert result.cycles == result.unlimited_cycles
    kinds = {layer.kind for layer in result.layers if layer.is_model}
    assert kinds == {"DuplicateStreams_hls", "ElementwiseAdd_hls", "StreamingSplit_hls", "StreamingConcat_hls"}


@pytest.mark.parametrize("which", range(7))
def test_one_bit_of_a_weight(residual: Laboratory, which: int) -> None:
    units = _layers(residual, "MVAU_rtl")
    layer = units[which % len(units)]
    lines = residual.generated.codes[layer].data["memblock.dat"].decode().split()
    at = 3 * which % len(lines)
    lines[at] = _flip(lines[at], which % 3)
    found = residual.simulate(residual.with_data(layer, "memblock.dat", "\n".join(lines) + "\n"))
    assert found.differences[0].layer == layer
    assert not found.is_right


@pytest.mark.parametrize("which", range(5))
def test_one_threshold(residual: Laboratory, which: int) -> None:
    """The one in the middle of a channel's, which the binary search asks first."""
    layer = _layers(residual, "Thresholding_rtl")[which]
    data = residual.generated.codes[layer].data
    name = min(sorted(data), key=lambda each: len(data[each].split()))
    lines = data[name].decode().split()
    assert int(lines[0], 16) != 1
    lines[0] = f"{1:0{len(lines[0])}x}"
    found = residual.simulate(residual.with_data(layer, name, "\n".join(lines) + "\n"))
    assert [difference.layer for difference in found.differences][:1] == [layer]


@pytest.mark.parametrize("which", range(5))
def test_two_channels_swapped(residual: Laboratory, which: int) -> None:
    """The weights of two output channels change places."""
    units = _layers(residual, "MVAU_rtl")
    layer = units[which % len(units)]
    attributes = residual.generated.design.layer(layer).attributes
    lines = residual.generated.codes[layer].data["memblock.dat"].decode().split()
    words = attributes["MW"] // attributes["SIMD"]  # of PE output channels
    assert attributes["MH"] > attributes["PE"]
    lines[: 2 * words] = lines[words : 2 * words] + lines[:words]
    found = residual.simulate(residual.with_data(layer, "memblock.dat", "\n".join(lines) + "\n"))
    first = found.differences[0]
    assert first.layer == layer and first.frame == 0
    assert first.found != first.wanted


def _rewired(bench: Laboratory, kind: str) -> tuple[str, Any]:
    """The design with the first two streams behind (or before) a layer exchanged."""
    design = bench.generated.design
    layer = design.layer(_layers(bench, kind)[0])
    if len(layer.outputs) > 1:
        changed = replace(layer, outputs=(layer.outputs[1], layer.outputs[0]))
    else:
        changed = replace(layer, inputs=(layer.inputs[1], layer.inputs[0], *layer.inputs[2:]))
    layers = tuple(changed if each is layer else each for each in design.layers)
    return layer.name, replace(design, layers=layers)


@pytest.mark.parametrize("kind", ["StreamingSplit_hls", "StreamingConcat_hls"])
def test_a_stream_reordered(residual: Laboratory, kind: str) -> None:
    layer, design = _rewired(residual, kind)
    found = residual.simulate(design=design)
    assert found.differences[0].layer == layer


def test_a_fifo_too_shallow_by_one_word(residual: Laboratory) -> None:
    """The shortcut has to hold what the convolutions beside it keep: one word less, and nothing moves any more."""
    adder = residual.generated.design.layer(_layers(residual, "ElementwiseAdd_hls")[0])
    names = [residual.generated.design.streams[index].name for index in adder.inputs]
    result = residual.simulate()
    shortcut = max(names, key=lambda name: result.depths[name])
    low, high = 2, result.depths[shortcut]  # at `low` it stops, at `high` it does not
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if residual.simulate(depths={shortcut: middle}).stopped else (low, middle)
    assert low > 5
    assert residual.simulate(depths={shortcut: high}).is_right
    found = residual.simulate(depths={shortcut: low})
    assert not found.is_right
    assert f"{shortcut} (depth {low})" in found.stopped


def test_the_shallowest_fifos_for_a_target(residual: Laboratory) -> None:
    """Fast enough, with fewer words than full speed takes; those where branches meet stay, or nothing would move."""
    full = residual.simulate()
    cycles = round(full.cycles * 1.05)
    found = replace(residual, generated=_at(residual.generated, cycles)).simulate(depths="target")
    assert found.is_right and found.cycles <= cycles
    assert sum(found.depths.values()) < sum(full.depths.values())
    design = residual.generated.design
    meeting = [design.streams[index].name for index in design.layer("ElementwiseAdd_hls_0").inputs]
    assert all(found.depths[name] == full.depths[name] for name in meeting)
    fastest = replace(residual, generated=_at(residual.generated, None)).simulate(depths="target")
    assert fastest.cycles == full.cycles


@pytest.mark.parametrize(
    ("enough", "depths"),
    [(2, [2, 900, 40, 2]), (100, [2, 900, 40, 128]), (129, [2, 900, 40, 256]), (300, [2, 900, 40, 300])],
)
def test_the_least_limit_is_taken(residual: Laboratory, enough: int, depths: list[int]) -> None:
    """Of a network that is fast enough once its last FIFO has `enough` words, and stops where it has fewer than half of them."""

    layer = residual.generated.design.layers[0]

    class FakeBench:
        design = Design(tuple(replace(layer, inputs=inputs) for inputs in ((0,), (1, 2), (3,))), ())

        def run(self, depths: list[int], *arguments: Any, **options: Any) -> Raw:
            is_enough, stopped = depths[3] >= enough, "deadlock" if 2 * depths[3] < enough else ""
            return Raw(0, () if stopped else (50, 150 if is_enough else 151), stopped, (), ())

    bench: Any = FakeBench()
    assert shallowest(bench, Commands(0.0), [2, 900, 40, 300], 100) == depths


def _at(generated: Generated, cycles: int | None) -> Generated:
    """The same hardware, wanted at so many cycles a frame; None for as few as possible."""
    job = generated.outcome.job
    target = replace(job.target, clock_ns=1.0, target_fps="max" if cycles is None else 10**9 // cycles)
    return replace(generated, outcome=replace(generated.outcome, job=replace(job, target=target)))


# ---- refusals, and nothing left behind ----


def test_what_is_not_there_is_said(two_layers: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(FinnError, match="no 'no-such-compiler' on PATH; install it"):
        fxfactor.finn.simulate(two_layers, torch.randn(1, 3, 8, 8))
    monkeypatch.delenv("CXX")
    monkeypatch.setattr("fxfactor.finn.simulation.tools.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", str(Path("/usr/bin")))
    monkeypatch.setattr("fxfactor.finn.simulation.tools.shutil.which", lambda name: name if name == "g++" else None)
    with pytest.raises(FinnError, match=r"pip install \"fxfactor\[simulate\]\""):
        fxfactor.finn.simulate(two_layers, torch.randn(1, 3, 8, 8))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"images": torch.randn(1, 3, 9, 9)}, r"images of shape \(N, 3, 8, 8\); found: \(1, 3, 9, 9\)"),
        ({"images": torch.randn(0, 3, 8, 8)}, r"found: \(0, 3, 8, 8\)"),
        ({"fifo_depths": 1}, "at least 2 words; found: fifo_depths=1"),
        ({"fifo_depths": "deep"}, "required: fifo_depths=\"target\", a number, or depths by stream; found: 'deep'"),
        ({"board": "ZCU1"}, "a board that FINN knows; found: 'ZCU1'"),
    ],
)
def test_bad_arguments_are_refused_before_finn_runs(two_layers: Path, arguments: dict[str, Any], message: str) -> None:
    given = {"images": torch.randn(1, 3, 8, 8), **arguments}
    with pytest.raises(FinnError, match=message):
        fxfactor.finn.simulate(two_layers, python="no interpreter", **given)


def test_a_stream_that_is_not_there(residual: Laboratory) -> None:
    with pytest.raises(
        FinnError, match=r"required: a stream of this network .* found: 'nowhere': 3; choose from input -> "
    ):
        residual.simulate(depths={"nowhere": 3})


def test_time_is_up_while_layers_are_compiled(residual: Laboratory, tmp_path: Path) -> None:
    """Compilers end, and no half of a layer stays."""
    compiler = compiling.Compiler(find_tools(), tmp_path, 2)
    with Commands(time.monotonic() + 0.3) as commands:
        with pytest.raises(FinnError, match="stopped while compiling the simulator; required: more time"):
            compiler.build(residual.generated.codes.values(), commands, lambda step: None)
        assert not commands.running
    assert not list(tmp_path.iterdir())


def test_the_simulator_ends_with_its_caller(tmp_path: Path) -> None:
    """A command is a process group of its own, and all of it ends when the caller leaves."""
    commands = Commands(time.monotonic() + 60)
    script = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    thread = threading.Thread(target=_run_quietly, args=(commands, [sys.executable, "-c", script], tmp_path))
    with commands:
        thread.start()
        while not commands.running:
            time.sleep(0.01)
        process = next(iter(commands.running))
    thread.join(10)
    assert not thread.is_alive() and process.returncode is not None


def _run_quietly(commands: Commands, command: list[str], folder: Path) -> None:
    with pytest.raises(FinnError, match="failed with status"):
        commands.run(command, folder, "waiting")


# ---- whole networks ----


def _grouped() -> nn.Module:
    """Three convolutions of groups: at a stride of 2, with more outputs than inputs, and depthwise."""
    return chain(
        *(conv(8, 8, groups=2), norm(8), relu(), conv(8, 16, stride=2, groups=4), norm(16), relu()),
        *(conv(16, 16, groups=16), norm(16), relu()),
        features=16 * 16,
    )


def test_a_grouped_convolution_as_one_block(write: Write, cache: Path) -> None:
    """Window generator with runs of channels, FINN's matrix unit with a weight tile for each group."""
    torch.manual_seed(1)
    file = write(_grouped())
    result = fxfactor.finn.simulate(file, torch.randn(3, 3, 8, 8), "ZCU104", 5000, grouped="block", cache=cache)
    assert result.is_right, result.differences or result.stopped or result.complaints
    assert sum(layer.kind == "MVAUGrouped_rtl" for layer in result.layers) == 3
    assert not result.models


@pytest.mark.slow
@pytest.mark.parametrize("form", ["block", "split", "branches"])
@pytest.mark.parametrize("name", GROUPED)
def test_every_grouped_network_in_every_form(name: str, form: Any, write: Write, cache: Path) -> None:
    make, shape = GROUPED[name]
    file = write(make(), (1, *shape))
    try:
        result = fxfactor.finn.simulate(file, torch.randn(3, *shape), "ZCU104", 2000, grouped=form, cache=cache)
    except FinnError as error:
        if "for which there are models" in str(error) or "weights of at least 2 bits" in str(error):
            pytest.skip(str(error))
        raise
    assert result.is_right, result.differences or result.stopped or result.complaints


@pytest.mark.slow
@pytest.mark.parametrize("name", TAKEN)
def test_every_network_that_finn_takes(name: str, write: Write, cache: Path) -> None:
    model = build(TAKEN[name])
    result = fxfactor.finn.simulate(write(model), torch.randn(3, 3, 8, 8), "ZCU104", 2000, cache=cache)
    assert result.is_right, result.differences or result.stopped
    assert result.cycles == result.unlimited_cycles
