"""Models against FINN: layers in HLS against FINN's Python on random data, the FIFO against FINN's RTL cycle by cycle."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from simulation_helpers import needs_verilator

from fxfactor.errors import FinnError
from fxfactor.finn.commands import Commands
from fxfactor.finn.process import layer_streams
from fxfactor.finn.simulation.compiling import Built, Compiler
from fxfactor.finn.simulation.design import design_of
from fxfactor.finn.simulation.models import parameters_of
from fxfactor.finn.simulation.rtl import TOP, Code
from fxfactor.finn.simulation.running import Bench, unlimited, write_data
from fxfactor.finn.simulation.tools import find_tools
from fxfactor.finn.simulation.words import words

pytestmark = [pytest.mark.finn, needs_verilator]

HERE = Path(__file__).parent
CASES = [
    "duplicate",
    "add",
    "add, wide words",
    "subtract",
    "multiply",
    "add a constant per channel",
    "multiply by constants everywhere",
    "split",
    "concatenate",
    "upsampling",
    "upsampling, one way",
    "pixels spread",
    "pixels spread, one way",
    "global sum",
    "largest of a window",
    "sum of a window",
    "vector unit",
    "vector unit, parallel window",
    "matrix unit",
    "matrix unit, unfolded",
]


@pytest.fixture(scope="module")
def by_finn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what FINN's Python gives for every case."""
    folder = tmp_path_factory.mktemp("layers")
    command = [sys.executable, str(HERE / "finns_own_layers.py"), str(folder), layer_streams.__file__]
    environment = {**os.environ, "FINN_BUILD_DIR": str(folder)}
    result = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert result.returncode == 0, result.stderr[-2000:]
    assert {file.stem for file in folder.glob("*.npz")} == set(CASES)
    return folder


@pytest.fixture(scope="module")
def compiler(cache: Path) -> Compiler:
    return Compiler(find_tools(), cache / ".layers", 2)


@pytest.fixture(scope="module")
def simulator(compiler: Compiler) -> Built:
    with Commands(time.monotonic() + 600) as commands:
        return compiler.build([], commands, lambda step: None)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("depth", [0, 2])
def test_a_model_computes_what_finns_python_does(
    name: str, depth: int, by_finn: Path, simulator: Built, tmp_path: Path
) -> None:
    told = json.loads((by_finn / f"{name}.json").read_text())
    design = design_of(told)
    write_data(design, {}, tmp_path)
    with np.load(by_finn / f"{name}.npz") as arrays:
        inputs = [arrays[f"in{at}"] for at in range(len(design.sources))]
        outputs = [arrays[f"out{at}"] for at in range(len(design.sinks))]
    for stream, value in zip((*design.sources, *design.sinks), (*inputs, *outputs), strict=True):
        words(value, design.streams[stream].port).tofile(tmp_path / "words" / str(stream))
    bench = Bench(design, {}, simulator, tmp_path, len(inputs[0]))
    depths = [depth] * len(design.streams) if depth else unlimited(design)
    with Commands(time.monotonic() + 60) as commands:
        raw = bench.run(depths, commands)
    assert not raw.stopped
    assert [stream["wrong"] for stream in raw.streams] == [0] * len(design.streams)
    for stream, value in zip(design.sinks, outputs, strict=True):
        port = design.streams[stream].port
        assert raw.streams[stream]["words"] == value.size // port.elements
        assert len(np.unique(value)) > 2  # a model that gives nothing but zeros would be seen
    cycles = raw.finished[-1] - raw.finished[-2]
    assert cycles == max(design.layers[0].cycles, *(design.streams[at].port.words for at in design.sources))


def _endless(by_finn: Path, simulator: Built, folder: Path) -> Bench:
    """A network whose input comes so slowly that a simulation takes years."""
    told = json.loads((by_finn / "duplicate.json").read_text())
    told[0]["cycles"] = 10**15
    design = design_of(told)
    write_data(design, {}, folder)
    for index, stream in enumerate(design.streams):
        np.zeros((3 * stream.port.words, stream.port.limbs), np.uint32).tofile(folder / "words" / str(index))
    return Bench(design, {}, simulator, folder, 3)


def test_a_simulation_that_takes_too_long_is_stopped_and_ends_with_its_caller(
    by_finn: Path, simulator: Built, tmp_path: Path
) -> None:
    bench = _endless(by_finn, simulator, tmp_path)
    with (
        Commands(time.monotonic() + 0.5) as commands,
        pytest.raises(FinnError, match=r"stopped while simulating; .*timeout_s="),
    ):
        bench.run(unlimited(bench.design), commands, pace=10**15)
    # a caller that is killed can end nothing: the simulator sees that it is gone
    code = (
        "import os, subprocess, sys\n"
        "command = [*sys.argv[1:], str(os.getpid())]\n"
        "process = subprocess.Popen(command, stdout=subprocess.DEVNULL, start_new_session=True)\n"
        "print(process.pid, flush=True)\n"
        "sys.stdin.read(1)\n"
        "os.kill(os.getpid(), 9)\n"
    )
    command = [
        sys.executable,
        "-c",
        code,
        str(simulator.simulator),
        str(tmp_path / "network"),
        str(tmp_path / "result.json"),
    ]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as caller:
        assert caller.stdout is not None
        assert caller.stdin is not None
        process = int(caller.stdout.readline())
        assert _runs(process)
        caller.stdin.close()
        caller.wait()
    while _runs(process):
        time.sleep(0.05)


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_layers_without_a_model_are_refused(by_finn: Path) -> None:
    told = json.loads((by_finn / "add.json").read_text())
    told[0]["kind"] = "Lookup_hls"
    with pytest.raises(FinnError, match=r"for which there are models; found: layer \(Lookup_hls\)"):
        parameters_of(design_of(told).layers[0])
    told[0]["kind"] = "ElementwiseDiv_hls"
    with pytest.raises(FinnError, match=r"Add, Sub or Mul, .* found: layer \(ElementwiseDiv_hls\)"):
        parameters_of(design_of(told).layers[0])


WRAPPER = """module {top} (
  input logic clk, input logic rst_n,
  input logic [39:0] in0_data, input logic in0_valid, output logic in0_ready,
  output logic [39:0] out0_data, output logic out0_valid, input logic out0_ready
);
  fifo #(.DEPTH({depth}), .DATA_WIDTH(40), .RAM_STYLE("{style}")) core (.clk(clk), .rst(!rst_n),
    .idat(in0_data), .ivld(in0_valid), .irdy(in0_ready), .odat(out0_data), .ovld(out0_valid), .ordy(out0_ready));
endmodule
"""


@pytest.mark.parametrize(
    ("depth", "style"),
    [
        *((depth, "auto") for depth in (2, 4, 5, 6, 17, 33)),
        (34, "distributed"),
        (100, "distributed"),
        (257, "distributed"),
    ],
)
def test_a_fifo_is_finns_cycle_by_cycle(depth: int, style: str, compiler: Compiler, tmp_path: Path) -> None:
    """10,000 cycles of random traffic: ready, valid and the word are the same in every one of them."""
    spec = find_spec("finn")
    assert spec is not None and spec.submodule_search_locations
    source = Path(spec.submodule_search_locations[0]) / "finn-rtllib" / "fifo" / "hdl" / "fifo.sv"
    # Verilator does not evaluate the function that sizes block RAM, which is not used at these depths
    text, count = re.subn(r"= INIT_ABITS\(\);", "= '{ lo: 9, hi: 0 };", source.read_text())
    assert count == 1
    files = {"fifo.sv": text, f"{TOP}.sv": WRAPPER.format(top=TOP, depth=depth, style=style)}
    code = Code(files, {}, (40,), (40,))
    with Commands(time.monotonic() + 600) as commands:
        built = compiler.build([code], commands, lambda step: None)
        program = tmp_path / "compare"
        native = built.simulator.parent
        commands.run(
            [find_tools().compiler, "-std=c++17", f"-I{native}", HERE / "compare_fifo.cpp", "-o", program, "-ldl"],
            tmp_path,
            "compiling the comparison",
        )
        said = commands.run([program, built.libraries[code.key], str(depth)], tmp_path, "comparing")
    assert said.split()[0] == "same"
    assert int(said.split()[1]) > 2000  # words that passed
    assert int(said.split()[2]) >= max(depth, 5)  # so many it held once
