"""prepare and the command line: what stands in the folder, and that FINN reads it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finn_helpers import outputs_in_float64
from small_networks import REFUSED, TAKEN, Residual, build, chain, conv, quantizer, relu
from torch import Tensor, nn
from typer.testing import CliRunner

import fxfactor.finn
from fxfactor.cli import main
from fxfactor.cli.finn import app
from fxfactor.errors import FinnError

Write = Callable[..., Path]


@pytest.mark.finn
def test_the_folder_holds_a_build_that_finn_reads(write: Write, tmp_path: Path, cache: Path) -> None:
    model = build(TAKEN["depthwise separable"])
    images = torch.randn(2, 3, 8, 8)
    outputs = outputs_in_float64(model, images)
    folder = tmp_path / "build"
    prepared = fxfactor.finn.prepare(folder, write(model), "Pynq-Z2", verify=(images, outputs), cache=cache)
    names = {entry.name for entry in folder.iterdir()}
    texts = {"README.md", "build_finn.py", "build_finn_plus.yaml", "folding.json", "scales.json", "estimate.json"}
    kinds = {layer.kind for layer in prepared.estimate.layers}
    ours = {"grouped_mvau.py": "MVAUGrouped_rtl", "integer_requant.py": "IntegerRequant_rtl"}
    own = {"output_queues.py"} | {file for file, kind in ours.items() if kind in kinds}
    assert names == texts | own | {"model.onnx", "input.npy", "expected_output.npy", "generated"}
    suffixes = {file.suffix for file in (folder / "generated").rglob("*") if file.is_file()}
    assert {".v", ".sv", ".dat"} <= suffixes
    assert prepared.generated == len(list((folder / "generated").iterdir())) > 10
    scale = json.loads((folder / "scales.json").read_text())["output"]
    logits = np.load(folder / "expected_output.npy") * scale["scale"] + scale["offset"]
    assert abs(logits - outputs[:1].numpy()).max() < 1e-6
    assert np.load(folder / "input.npy").shape == (1, 8, 8, 3)
    compile((folder / "build_finn.py").read_text(), "build_finn.py", "exec")
    assert str(Path.home()) not in (folder / "README.md").read_text()
    _read_with_finn(folder)
    with pytest.raises(FinnError, match="required: a new or empty folder"):
        fxfactor.finn.prepare(folder, write(model), cache=cache)


def _read_with_finn(folder: Path) -> None:
    """FINN parses the YAML, and knows every step in it."""
    import subprocess

    code = (
        "import os, sys; os.environ.setdefault('XILINX_VIVADO', '/nonexistent/Vivado/2024.2')\n"
        "import finn.xsi; finn.xsi.SimEngine = object\n"
        "from finn.builder.build_dataflow_config import DataflowBuildConfig\n"
        "from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as known\n"
        "config = DataflowBuildConfig.from_yaml(open('build_finn_plus.yaml').read())\n"
        "from importlib import import_module\n"
        "def is_there(step):\n"
        "    module, _, name = step.rpartition('.')\n"
        "    return hasattr(import_module(module), name) if module else step in known\n"
        "unknown = [step for step in config.steps if not is_there(step)]\n"
        "assert not unknown, unknown\nassert config.board == 'Pynq-Z2', config.board\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=folder, capture_output=True, text=True, env=_environment(folder)
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.finn
def test_a_build_with_blocks_ships_their_layer(write: Write, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "build"
    prepared = fxfactor.finn.prepare(
        folder, write(build(TAKEN["grouped"])), grouped="block", requant=False, cache=cache
    )
    assert [layer.form for layer in prepared.estimate.grouped] == ["block"]
    assert "grouped_mvau.py" in (folder / "README.md").read_text()
    assert (folder / "generated" / "MVAUGrouped_rtl_0" / "memblock.dat").is_file()
    assert json.loads((folder / "folding.json").read_text())["MVAUGrouped_rtl_0"]["PE"] >= 1
    code = (folder / "build_finn.py").read_text()
    compile(code, "build_finn.py", "exec")
    assert "STEPS = [\n    step_register_mvau_grouped,\n" in code
    memory = (folder / "generated" / "MVAUGrouped_rtl_0" / "MVAUGrouped_rtl_0_memstream_wrapper.v").read_text()
    assert 'INIT_FILE = "generated/MVAUGrouped_rtl_0/memblock.dat"' in memory
    done = _in_python(folder, _BUILD)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.finn
@pytest.mark.parametrize("sizes", [(3, 5), pytest.param((4, 4), marks=pytest.mark.slow)])
def test_a_build_with_unequal_splits_ships_the_correction(
    sizes: tuple[int, int], write: Write, tmp_path: Path, cache: Path
) -> None:
    model = build(lambda: chain(Unequal(sizes), conv(8, 8, 1), relu()))
    prepared = fxfactor.finn.prepare(tmp_path / "build", write(model), target_fps=100_000, cache=cache)
    assert any("StreamingSplit" in layer.kind for layer in prepared.estimate.layers)
    needed = len(set(sizes)) > 1
    assert (tmp_path / "build" / "unequal_splits.py").is_file() == needed
    steps = [(tmp_path / "build" / name).read_text() for name in ("build_finn_plus.yaml", "build_finn.py", "README.md")]
    assert ["step_take_unequal_splits" in text for text in steps] == [needed] * 3
    queues = "step_take_longer_output_queues"
    assert (tmp_path / "build" / "output_queues.py").is_file() and all(queues in text for text in steps)
    done = _in_python(tmp_path / "build", _INSERT_FIFOS)
    assert done.returncode == 0, done.stderr[-2000:]


class Unequal(nn.Module):
    """Channels split into parts of these sizes, which change places."""

    def __init__(self, sizes: tuple[int, int]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        first, last = x.split(self.sizes, 1)
        return torch.cat([last, first], 1)


_FOLDED = """
import json, os
os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
import finn.xsi
finn.xsi.SimEngine = object
from finn.builder.build_dataflow import resolve_build_steps
from finn.builder.build_dataflow_config import DataflowBuildConfig
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp

def folded():
    config = DataflowBuildConfig.from_yaml(open("build_finn_plus.yaml").read())
    config.output_dir = os.path.abspath("build")
    config.verify_steps = []  # these compile HLS
    os.makedirs("build/intermediate_models")
    model = ModelWrapper("model.onnx")
    for step in resolve_build_steps(config):
        if step.__name__ == "step_generate_estimate_reports":
            break
        model = step(model, config)
    return model, config
"""
"""FINN's steps from the folder alone, up to its estimates."""

_INSERT_FIFOS = (
    _FOLDED
    + """
from math import prod
from finn.transformation.fpgadataflow.insert_dwc import InsertDWC
from finn.transformation.fpgadataflow.insert_fifo import InsertFIFO

if __name__ == "__main__":
    model, config = folded()
    model = model.transform(InsertDWC()).transform(InsertFIFO(create_shallow_fifos=True))
    for node in model.graph.node:
        if node.op_type.startswith("StreamingFIFO"):
            writer, reader = model.find_producer(node.input[0]), model.find_consumer(node.output[0])
            for other, name, ask in ((writer, node.input[0], "output"), (reader, node.output[0], "input")):
                if other is not None:
                    index = list(getattr(other, ask)).index(name)
                    layer, fifo = getCustomOp(other), getCustomOp(node)
                    shapes = getattr(layer, f"get_folded_{ask}_shape")(index), fifo.get_folded_output_shape()
                    assert prod(shapes[0]) == prod(shapes[1]) and shapes[0][-1] == shapes[1][-1], shapes
        elif node.op_type.startswith("StreamingSplit"):
            assert all(model.find_consumer(name).op_type == "StreamingFIFO" for name in node.output)
"""
)
"""FINN's steps from the folder alone, up to FIFOs, each of which has the shape of what stands before and behind it."""


@pytest.mark.finn
def test_fifos_are_as_deep_as_was_simulated(write: Write, tmp_path: Path, cache: Path) -> None:
    """FINN+'s own step puts each depth between the layers that the stream is named after; a stream too few is refused."""
    file = write(build(lambda: chain(Residual(*[quantizer()] * 2), conv(8, 8, 1), relu())))
    options: dict[str, Any] = {"board": "Pynq-Z2", "target_fps": 20_000, "cache": cache}
    depths = {name: 5 + index for index, name in enumerate(_streams(file, options))}
    with pytest.raises(FinnError, match="found: 1 streams that differ, 'a -> b' in fifo_depths only") as refused:
        fxfactor.finn.prepare(tmp_path / "wrong", file, **options, fifo_depths={**depths, "a -> b": 2})
    assert "simulate the same file" in str(refused.value) and not (tmp_path / "wrong").exists()
    with pytest.raises(FinnError, match=f"required: depths of at least 2 words; found: '{next(iter(depths))}': 1"):
        fxfactor.finn.prepare(tmp_path / "wrong", file, **options, fifo_depths={**depths, next(iter(depths)): 1})
    _require_prices_with(file, options, dict.fromkeys(depths, 2))
    simulation = tmp_path / "simulation.json"
    simulation.write_text(json.dumps({"streams": [{"name": name, "depth": depth} for name, depth in depths.items()]}))
    arguments = ["prepare", str(tmp_path / "build"), str(file), "--board", "Pynq-Z2", "--target-fps", "20000"]
    done = CliRunner().invoke(app, [*arguments, "--fifo-depths", str(simulation), "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    assert "fifo_depths.json" in (tmp_path / "build" / "README.md").read_text()
    asked = _in_python(tmp_path / "build", _SET_FIFOS)
    assert asked.returncode == 0, asked.stderr[-2000:]
    assert json.loads((tmp_path / "build" / "found.json").read_text()) == depths


def _require_prices_with(file: Path, options: dict[str, Any], depths: dict[str, int]) -> None:
    """`estimate` counts each FIFO as deep as it is told: a deep one adds block RAM to the row of its stream alone."""
    shallow = fxfactor.finn.estimate(file, **options, fifo_depths=depths)
    direct = [name for name in depths if not name.startswith(("input", "Streaming")) and not name.endswith("output")]
    converted = [name for name in direct if "-> StreamingDataWidthConverter" in name]
    for name in (next(each for each in direct if each not in converted), *converted[:1]):
        deep = fxfactor.finn.estimate(file, **options, fifo_depths={**depths, name: 4096})
        (changed,) = [new for old, new in zip(shallow.layers, deep.layers, strict=True) if old != new]
        assert changed.resources.bram18 > 0 and any("fifo_depths" in note for note in deep.notes)
        assert name in converted or changed.name == f"StreamingFIFO before {name.partition(' -> ')[2]}"
    missing = next(name for name in depths if not name.startswith("input"))
    with pytest.raises(
        FinnError, match=f"found: nothing for what {missing.partition(' ')[0]} writes; simulate the same"
    ):
        fxfactor.finn.estimate(
            file, **options, fifo_depths={name: depth for name, depth in depths.items() if name != missing}
        )


def _streams(file: Path, options: dict[str, Any]) -> list[str]:
    """The streams of the hardware, as a simulation names them."""
    from fxfactor.finn.estimation import Job
    from fxfactor.finn.simulation.design import fifos_on_streams
    from fxfactor.finn.target import Target

    target = Target(options["board"], target_fps=options["target_fps"])
    job = Job(file, target, cache=options["cache"], generate=True, describe=True)
    with job.folder() as folder:
        return list(fifos_on_streams(job.run(folder).layers))


_SET_FIFOS = (
    _FOLDED
    + """
from finn.builder import build_dataflow_steps

def unchanged(model, config, **options):
    return model

if __name__ == "__main__":
    model, config = folded()
    build_dataflow_steps.step_hw_codegen = build_dataflow_steps.step_hw_ipgen = unchanged  # the latter needs Vivado
    model = build_dataflow_steps.step_set_fifo_depths(model, config)
    found = {}
    for node in model.get_nodes_by_op_type("StreamingFIFO_rtl"):
        writer, reader = model.find_producer(node.input[0]), model.find_consumer(node.output[0])
        output = list(writer.output).index(node.input[0]) if writer else 0
        name = f"{writer.name if writer else 'input'}{f':{output}' if output else ''} -> {reader.name if reader else 'output'}"
        found[name] = getCustomOp(node).get_nodeattr("depth")
    json.dump(found, open("found.json", "w"))
"""
)
"""FINN's steps from the folder alone, up to FIFOs: the depth of each, by what stands before and behind it."""


@pytest.mark.finn
def test_sources_name_no_folder_of_this_machine(write: Write, tmp_path: Path, cache: Path) -> None:
    import finn

    file = write(build(TAKEN["average pool 2x2"]))
    fxfactor.finn.prepare(tmp_path / "build", file, grouped="block", cache=cache)
    places = [str(cache), str(tmp_path), next(iter(finn.__path__))]
    for source in (tmp_path / "build" / "generated").rglob("*"):
        if source.is_file() and source.suffix != ".npy":
            text = source.read_text()
            assert not [place for place in places if place in text], source
    scripts = [script.read_text() for script in (tmp_path / "build" / "generated").rglob("*.tcl")]
    assert any('"generated/' in text and "$::env(FINN_FOLDER)/" in text for text in scripts)


_BUILD = """
import multiprocessing, os
os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
import finn.xsi
finn.xsi.SimEngine = object
from finn.builder.build_dataflow import resolve_build_steps
from finn.builder.build_dataflow_config import DataflowBuildConfig
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
from qonnx.transformation.base import NodeLocalTransformation

class Ask(NodeLocalTransformation):
    def applyNodeLocal(self, node):
        if node.op_type == "MVAUGrouped":
            getCustomOp(node).get_normal_output_shape()
        return node, False

if __name__ == "__main__":
    multiprocessing.set_start_method("spawn", force=True)  # as FINN+ does
    config = DataflowBuildConfig.from_yaml(open("build_finn_plus.yaml").read())
    first = resolve_build_steps(config)[0]
    model = first(ModelWrapper("model.onnx"), config)
    assert "MVAUGrouped" in [node.op_type for node in model.graph.node]
    model.transform(Ask(num_workers=2))
"""
"""Read the build as FINN+ does, take its first step, and ask for the layer in processes of a pool."""


def _in_python(folder: Path, code: str) -> Any:
    import subprocess

    script = folder.parent / "asked.py"
    script.write_text(code)
    environment = {
        **_environment(folder),
        "PYTHONPATH": str(folder),
    }  # FINN+ adds the configuration's folder to its path
    return subprocess.run([sys.executable, str(script)], cwd=folder, capture_output=True, text=True, env=environment)


def _environment(folder: Path) -> dict[str, str]:
    import os

    return {**os.environ, "FINN_BUILD_DIR": str(folder.parent)}


def test_nothing_is_left_of_a_folder_that_failed(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FinnError, match="required: a Python interpreter"):
        fxfactor.finn.prepare(
            tmp_path / "a" / "b", write(build(TAKEN["chain"])), python="/no/python", cache=tmp_path / "c"
        )
    assert not list((tmp_path / "a").iterdir())
    assert not list((tmp_path / "c").iterdir())


def test_the_command_line_checks(write: Write) -> None:
    good = CliRunner().invoke(app, ["check", str(write(build(TAKEN["chain"])))])
    assert good.exit_code == 0
    assert "nothing found" in " ".join(good.output.split())
    bad = CliRunner().invoke(app, ["check", str(write(build(REFUSED["9 bits"][0])))])
    assert bad.exit_code == 1
    assert "9 bits" in bad.output.replace("\n", "")


@pytest.mark.finn
def test_the_command_line_estimates_and_prepares(write: Write, tmp_path: Path, cache: Path) -> None:
    file = str(write(build(TAKEN["chain"])))
    shown = CliRunner().invoke(app, ["estimate", file, "--board", "Pynq-Z2", "--cache", str(cache)])
    assert shown.exit_code == 0, shown.output
    assert "board has" in shown.output
    done = CliRunner().invoke(app, ["prepare", str(tmp_path / "build"), file, "--cache", str(cache)])
    assert done.exit_code == 0, done.output
    assert (tmp_path / "build" / "README.md").is_file()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["check", "none.onnx"], "none.onnx"),
        (["estimate", "none.onnx", "--board", "nothing"], "required: a board that FINN knows; found: 'nothing'"),
        (["prepare", ".", "none.onnx"], "required: a new or empty folder"),
    ],
)
def test_an_error_is_exit_code_1_with_its_explanation(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in-use").touch()
    with pytest.raises(SystemExit) as stopped:
        main(["finn", *arguments])
    assert stopped.value.code == 1
    assert message in capsys.readouterr().err.replace("\n", "")
