"""What a FINN user needs to go on to a bitstream, on a machine that has Vivado."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import numpy_helper

from fxfactor.arguments import checked
from fxfactor.errors import FinnError
from fxfactor.files import new_folder
from fxfactor.finn.estimation import Job, Progress
from fxfactor.finn.integer.builder import GROUPED, REQUANT
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.process.start import SAME_HARDWARE, SIMULATE_THE_SAME, WORKER
from fxfactor.finn.process.worker import VERSION
from fxfactor.finn.result import Estimate
from fxfactor.finn.simulation.design import fifos_on_streams
from fxfactor.finn.target import Folding, Frames, Limits, Target

STEPS = (
    "step_convert_to_hw",
    "step_minimize_bit_width_initial",
    "step_create_dataflow_partition",
    "step_specialize_layers",
    "step_apply_folding_config",
    "step_minimize_bit_width",
    "step_generate_estimate_reports",
    "step_hw_codegen",
    "step_hw_ipgen",
    "step_set_fifo_depths",
    "step_create_stitched_ip",
    "step_measure_rtlsim_performance",
    "step_out_of_context_synthesis",
    "step_synthesize_bitfile",
    "step_make_driver",
    "step_deployment_package",
)
"""The steps of FINN+ from the network in integers to the bitstream; what comes before is done."""

UPSTREAM = {"step_minimize_bit_width_initial": None}
"""Step of FINN+ -> what it is called in FINN (Xilinx/finn), None where FINN has no such step."""

OWN_LAYERS = {
    GROUPED: ("grouped_mvau", "step_register_mvau_grouped", "the hardware layer MVAUGrouped: a grouped convolution as one block, "
              "with FINN's own RTL"),
    REQUANT: ("integer_requant", "step_register_integer_requant", "the hardware layer IntegerRequant: a quantizer as one "
              "multiplication, exactly"),
}  # fmt: skip
"""Hardware layer of our own -> its file, which needs nothing of fxfactor, the step that FINN starts with, and what it is."""

SPLITS = ("unequal_splits", "step_take_unequal_splits", "a correction of FINN+: FIFOs behind splits into unequal parts")
"""The same for what InsertFIFO of FINN+ 1.6.1 cannot do."""

QUEUES = (
    "output_queues",
    "step_take_longer_output_queues",
    "a correction of FINN: matrix units whose output queue is too short",
)
"""The same for what the RTL of FINN loses where a unit gives an output in every cycle and has to wait; for every build."""

FINN_FOLDER = "$::env(FINN_FOLDER)"
"""How a Tcl script is told where FINN lies."""

SOURCES = (".v", ".sv", ".vh", ".cpp", ".h", ".hpp", ".tcl", ".sh", ".txt", ".json")
"""Files of code generation that are text and may name folders."""

FIFO_DEPTHS = "fifo_depths.json"
"""Depth of every FIFO, in the form that FINN+ reads (its ApplyFIFODepthsFromFile), where they are given."""

TEMPLATES = ("build_finn_plus.yaml", "build_finn.py", "README.md")
"""Files of the build, as templates/NAME.txt."""

ALVEO = ("U50", "U200", "U250", "U280", "U55C")


@dataclass(frozen=True)
class Prepared:
    """`folder` holds the build; `generated` counts the layers for which HLS or RTL sources were written into it."""

    folder: Path
    generated: int
    estimate: Estimate


@partial(checked, error=FinnError)
def prepare(
    folder: str | Path,
    file: str | Path,
    board: str = "ZCU104",
    target_fps: Frames = 1000,
    clock_ns: float = 5.0,
    *,
    limits: Limits | None = None,
    grouped: Form | None = None,
    requant: bool | None = None,
    folding: Folding = "fxfactor",
    fifo_depths: Mapping[str, int] | None = None,
    verify: Any = None,
    python: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Prepared:
    """Write into `folder` what FINN or FINN+ builds a bitstream for `board` from, and run FINN's code generation.

    Before: a QONNX file. After, in `folder`: model.onnx (the network in integers), build_finn_plus.yaml and build_finn.py
    (build configurations that start from it), folding.json, input.npy and expected_output.npy (one image in integers and
    what has to come out), scales.json (what the integers stand for), generated/ (HLS and RTL sources of every layer, as
    FINN's step_hw_codegen writes them), estimate.json and README.md; grouped_mvau.py and integer_requant.py, hardware layers of
    our own, where a grouped convolution is one block or a quantizer one multiplication; output_queues.py, a correction of
    FINN's matrix unit, and unequal_splits.py, another, where
    channels are split into unequal parts. With `verify` the sample is its first image.

    `fifo_depths`: stream -> words that its FIFO holds, for all streams: `Simulation.depths` of `fxfactor.finn.simulate` for the
    same file, board and target. FINN+ takes them (fifo_depths.json) in place of its own search, which needs Vivado.

    `folder` must not exist, or be empty; it appears whole or not at all. The other arguments, and what is raised, are as
    in `fxfactor.finn.estimate`.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FinnError(f"required: a new or empty folder; found: {target} is in use; choose another")
    wanted = Target(board, clock_ns, target_fps, python, limits)
    job = Job(
        Path(file),
        wanted,
        verify,
        timeout_s=timeout_s,
        cache=cache,
        progress=progress,
        generate=True,
        describe=fifo_depths is not None,
        grouped=grouped,
        requant=requant,
        folding=folding,
        fifo_depths=fifo_depths,
    )
    target.parent.mkdir(parents=True, exist_ok=True)
    with job.folder() as running, new_folder(target, "preparing the build", marker="build_finn.py") as new:
        outcome = job.run(running)
        estimate, own = outcome.estimate(), _own_files(outcome.network.model)
        onnx.save(outcome.network.model, str(new / "model.onnx"))
        shutil.copy(Path(running) / "out" / "report" / "auto_folding_config.json", new / "folding.json")
        with np.load(Path(running) / "images.npz") as images:
            np.save(new / "input.npy", images["inputs"][:1])
            for index in range(len(images.files) - 1):
                name = f"expected_output{index or ''}.npy"
                np.save(new / name, images[f"outputs{index}"][:1].astype(np.float32))
        (new / "scales.json").write_text(json.dumps(outcome.network.notes, indent=1) + "\n")
        (new / "estimate.json").write_text(estimate.to_json())
        if fifo_depths is not None:
            (new / FIFO_DEPTHS).write_text(json.dumps(_fifo_config(outcome.layers, fifo_depths), indent=1) + "\n")
        _copy_sources(outcome.generated, outcome.finn, new / "generated")
        for module, _, _ in own:
            file_name = f"{module}.py"
            shutil.copy(WORKER.with_name(file_name), new / file_name)
        for name, text in _texts(estimate, len(outcome.generated), own, fifo_depths is not None).items():
            (new / name).write_text(text)
    return Prepared(target, len(outcome.generated), estimate)


def _own_files(model: onnx.ModelProto) -> list[tuple[str, str, str]]:
    """Of OWN_LAYERS, QUEUES and SPLITS, what a network in integers needs."""
    kinds = {node.op_type for node in model.graph.node}
    splits = [node for node in model.graph.node if node.op_type == "Split"]
    sizes = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    own = [*(needed for layer, needed in OWN_LAYERS.items() if layer in kinds), QUEUES]
    return [*own, SPLITS] if any(len(np.unique(sizes[node.input[1]])) > 1 for node in splits) else own


def _fifo_config(layers: list[dict[str, Any]], depths: Mapping[str, int]) -> dict[str, dict[str, Any]]:
    """What FINN+ reads. Raises FinnError where the streams are not those of this build."""
    fifos = fifos_on_streams(layers)
    wrong = sorted(set(fifos) ^ set(depths))
    if wrong:
        where = "in this build only" if wrong[0] in fifos else "in fifo_depths only"
        raise FinnError(
            f"{SAME_HARDWARE}; found: {len(wrong)} streams that differ, {wrong[0]!r} {where}; {SIMULATE_THE_SAME}"
        )
    if shallow := [name for name, depth in depths.items() if depth < 2]:
        raise FinnError(f"required: depths of at least 2 words; found: {shallow[0]!r}: {depths[shallow[0]]}; give more")
    found = {name: 2 for names in fifos.values() for name in names}
    found |= {names[0]: depths[stream] for stream, names in fifos.items() if names}
    return {
        "fifo_depths": found,
        "impl_style": dict.fromkeys(found, "rtl"),
        "ram_style": dict.fromkeys(found, "auto"),
    }


def _copy_sources(folders: Mapping[str, str], finn: str, target: Path) -> None:
    """Copy the layers' folders; where sources name them or FINN's own folder, say where these are on any machine."""
    for layer, folder in folders.items():
        shutil.copytree(folder, target / layer)
    places = {folder: f"generated/{layer}" for layer, folder in folders.items()} | {finn: FINN_FOLDER}
    for file in target.rglob("*"):
        if file.suffix in SOURCES:
            text = file.read_text()
            for place, name in places.items():
                text = text.replace(place, name)
            file.write_text(text)


def _texts(estimate: Estimate, generated: int, own: Sequence[tuple[str, str, str]], has_depths: bool) -> dict[str, str]:
    rows = [f"| {module}.py | {what} |\n" for module, _, what in own]
    if has_depths:
        rows.append(
            f"| {FIFO_DEPTHS} | depth of every FIFO, as simulated by fxfactor; FINN (Xilinx/finn) finds its own |\n"
        )
    flow = "VITIS_ALVEO" if estimate.board in ALVEO else "VIVADO_ZYNQ"
    values = {
        "board": estimate.board,
        "part": estimate.part,
        "clock_ns": estimate.clock_ns,
        "flow": flow,
        "flow_value": flow.lower(),
        "version": VERSION,
        "generated": generated,
        "fifos": f"auto_fifo_depths: false\nfifo_config_file: {FIFO_DEPTHS}\n" if has_depths else "",
        "fps": f"{estimate.fps:,.0f}",
        "notes": "".join(f"\n{note}\n" for note in estimate.notes),
        "plus_steps": "\n".join(f"  - {step}" for step in (*(f"{file}.{step}" for file, step, _ in own), *STEPS)),
        "import": "".join(f"from {file} import {step}\n" for file, step, _ in own),
        "first": "".join(f"    {step},\n" for _, step, _ in own),
        "row": "".join(rows),
        "blocks": _told(own) if own else "",
        "steps": "\n".join(f'    "{name}",' for name in (UPSTREAM.get(step, step) for step in STEPS) if name),
    }
    templates = {name: files("fxfactor.finn") / "templates" / f"{name}.txt" for name in TEMPLATES}
    return {name: template.read_text(encoding="utf-8").format(**values) for name, template in templates.items()}


def _told(own: Sequence[tuple[str, str, str]]) -> str:
    """What the README says of files of our own."""
    names, steps = (
        " and ".join(each) for each in ([f"{module}.py" for module, _, _ in own], [step for _, step, _ in own])
    )
    without = {GROUPED: 'grouped="split"', REQUANT: "requant=False"}
    given = [setting for layer, setting in without.items() if OWN_LAYERS[layer] in own]
    stock = f"; {' and '.join(given)} of fxfactor.finn.prepare makes a network of FINN's own layers" if given else ""
    return _OWN.format(
        files=names, imports=", ".join(module for module, _, _ in own), steps=steps, without=stock, version=VERSION
    )


_OWN = """
Made by fxfactor, since FINN does not have it or has it wrong: {files}. Both builds import it in their first steps, {steps}, from
this folder: keep it beside them. In a script of your own, `import {imports}` before FINN reads model.onnx, and begin
with those steps, since FINN+ starts processes that have to know the layers too. It was written for FINN+ {version} and not
tried with FINN (Xilinx/finn){without}.
"""
