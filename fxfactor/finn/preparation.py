"""What a FINN user needs to go on to a bitstream, on a machine that has Vivado."""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from fxfactor.errors import FinnError
from fxfactor.finn.estimation import Job, Progress
from fxfactor.finn.process.worker import VERSION
from fxfactor.finn.result import Estimate

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

ALVEO = ("U50", "U200", "U250", "U280", "U55C")


@dataclass(frozen=True)
class Prepared:
    """`folder` holds the build; `generated` counts the layers for which HLS or RTL sources were written into it."""

    folder: Path
    generated: int
    estimate: Estimate


def prepare(
    folder: str | Path,
    file: str | Path,
    board: str = "ZCU104",
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    *,
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
    FINN's step_hw_codegen writes them), estimate.json and README.md. With `verify` the sample is its first image.

    `folder` must not exist, or be empty; it appears whole or not at all. The other arguments, and what is raised, are as
    in `fxfactor.finn.estimate`.
    """
    target = Path(folder).absolute()
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise FinnError(f"required: a new or empty folder; found: {target} is in use; choose another")
    request = {"board": board, "target_fps": target_fps, "clock_ns": clock_ns, "tolerance": 1e-5, "generate": True}
    job = Job(Path(file), request, board, verify, 1, python, timeout_s, cache, progress)
    target.parent.mkdir(parents=True, exist_ok=True)
    with job.folder() as running, tempfile.TemporaryDirectory(prefix=".prepare-", dir=target.parent) as draft:
        outcome = job.run(running)
        estimate, generated = outcome.estimate(), outcome.generated or {}
        new = Path(draft) / "new"
        new.mkdir()
        onnx.save(outcome.network.model, str(new / "model.onnx"))
        shutil.copy(Path(running) / "out" / "report" / "auto_folding_config.json", new / "folding.json")
        with np.load(Path(running) / "images.npz") as images:
            np.save(new / "input.npy", images["inputs"][:1])
            np.save(new / "expected_output.npy", images["outputs"][:1].astype(np.float32))
        (new / "scales.json").write_text(json.dumps(outcome.network.notes, indent=1) + "\n")
        (new / "estimate.json").write_text(json.dumps(_summary(estimate), indent=1) + "\n")
        _copy_sources(generated, new / "generated")
        for name, text in _texts(estimate, len(generated)).items():
            (new / name).write_text(text)
        if target.exists():
            target.rmdir()
        new.rename(target)
    return Prepared(target, len(generated), estimate)


def _copy_sources(folders: Mapping[str, str], target: Path) -> None:
    for layer, folder in folders.items():
        shutil.copytree(folder, target / layer)


def _summary(estimate: Estimate) -> dict[str, Any]:
    total = estimate.total
    return {
        "board": estimate.board,
        "part": estimate.part,
        "clock_ns": estimate.clock_ns,
        "lut": total.lut,
        "bram18": total.bram18,
        "dsp": total.dsp,
        "uram": total.uram,
        "frames_per_second": estimate.fps,
        "bottleneck": estimate.bottleneck.site,
    }


def _texts(estimate: Estimate, generated: int) -> dict[str, str]:
    flow = "VITIS_ALVEO" if estimate.board in ALVEO else "VIVADO_ZYNQ"
    values = {
        "board": estimate.board,
        "part": estimate.part,
        "clock_ns": estimate.clock_ns,
        "flow": flow,
        "flow_value": flow.lower(),
        "version": VERSION,
        "generated": generated,
        "fps": f"{estimate.fps:,.0f}",
        "plus_steps": "\n".join(f"  - {step}" for step in STEPS),
        "steps": "\n".join(f'    "{name}",' for name in (UPSTREAM.get(step, step) for step in STEPS) if name),
    }
    return {name: text.format(**values) for name, text in TEMPLATES.items()}


_YAML = """\
# FINN+ {version}: finn build build_finn_plus.yaml model.onnx
output_dir: build
synth_clk_period_ns: {clock_ns}
board: {board}
shell_flow_type: {flow_value}
folding_config_file: folding.json
standalone_thresholds: true
steps:
{plus_steps}
generate_outputs:
  - estimate_reports
  - stitched_ip
  - bitfile
  - pynq_driver
  - deployment_package
verify_steps:
  - folded_hls_cppsim
  - stitched_ip_rtlsim
verify_input_npy: input.npy
verify_expected_output_npy: expected_output.npy
"""

_SCRIPT = '''\
"""FINN (Xilinx/finn): run in its container with `python build_finn.py`, from this folder."""

from finn.builder.build_dataflow import build_dataflow_cfg
from finn.builder.build_dataflow_config import (
    DataflowBuildConfig,
    DataflowOutputType,
    ShellFlowType,
    VerificationStepType,
)

STEPS = [
{steps}
]

CONFIG = DataflowBuildConfig(
    output_dir="build",
    synth_clk_period_ns={clock_ns},
    board="{board}",
    shell_flow_type=ShellFlowType.{flow},
    folding_config_file="folding.json",
    standalone_thresholds=True,
    steps=STEPS,
    generate_outputs=[
        DataflowOutputType.ESTIMATE_REPORTS,
        DataflowOutputType.STITCHED_IP,
        DataflowOutputType.BITFILE,
        DataflowOutputType.PYNQ_DRIVER,
        DataflowOutputType.DEPLOYMENT_PACKAGE,
    ],
    verify_steps=[VerificationStepType.FOLDED_HLS_CPPSIM, VerificationStepType.STITCHED_IP_RTLSIM],
    verify_input_npy="input.npy",
    verify_expected_output_npy="expected_output.npy",
)

if __name__ == "__main__":
    build_dataflow_cfg("model.onnx", CONFIG)
'''

_README = """\
# A network for {board}, ready for FINN

Written by fxfactor. Estimated {fps} frames/s at {clock_ns} ns; these are analytic lower bounds, see estimate.json.

| file | what it is |
|---|---|
| model.onnx | the network in integers: streamlined, channels last, no floating point; FINN starts at step_convert_to_hw |
| build_finn_plus.yaml | for FINN+ {version} |
| build_finn.py | for FINN (Xilinx/finn) |
| folding.json | parallelism of every layer; edit it to trade resources for speed |
| input.npy, expected_output.npy | one image in integers (1, H, W, C), and the integers that have to come out |
| scales.json | what the integers stand for |
| generated/ | HLS and RTL sources of {generated} layers, from FINN's step_hw_codegen; nothing is synthesised |

## To a bitstream

You need Vivado (and Vitis HLS), 2022.2 or newer, set up in the shell, and one of

* FINN+: `pip install finn-plus=={version} psutil`, then `finn build build_finn_plus.yaml model.onnx`
* FINN: its container, then `python build_finn.py`

Both check the build against expected_output.npy in C++ and RTL simulation.

## On the host

Input: `integers = clip(round(image / scale), lowest, highest)` with "input" of scales.json, as (1, H, W, C). Where the
network was given pixel input (LegalizePixelInput), scale is 1: the integers are the uint8 pixels themselves.

Output: `logits = integers * scale + offset` with "output" of scales.json, per channel. The argmax of the logits is the
class; the argmax of the integers is not, where scales differ.
"""

TEMPLATES = {"build_finn_plus.yaml": _YAML, "build_finn.py": _SCRIPT, "README.md": _README}
"""File name -> its text, to be formatted."""
