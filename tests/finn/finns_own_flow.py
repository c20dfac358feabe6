"""FINN's own way to hardware layers, without fxfactor: what its shipped streamlining makes of a file."""

from __future__ import annotations

import importlib.util
import json
import resource
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

CPU_SECONDS = 300
FLOWS = ("step_streamline", "streamline_plus")


def why_refused(file: Path, images: Tensor, outputs: Tensor | None, folder: Path) -> dict[str, str]:
    """For both of FINN's streamlinings: why it does not get `file` into hardware; an empty string where it does."""
    arrays = {"images": images.numpy()} if outputs is None else {"images": images.numpy(), "outputs": outputs.numpy()}
    np.savez(folder / "images.npz", **arrays)
    return {flow: _run(flow, file, folder) for flow in FLOWS}


def _run(flow: str, file: Path, folder: Path) -> str:
    command = [sys.executable, __file__, flow, str(file), str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=folder, preexec_fn=_limit_cpu_time)
    if done.returncode == -signal.SIGXCPU:
        return f"did not end in {CPU_SECONDS} CPU seconds"
    return json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else done.stderr.strip().splitlines()[-1]


def _limit_cpu_time() -> None:
    """Some networks FINN streamlines for ever; how busy the machine is does not matter."""
    resource.setrlimit(resource.RLIMIT_CPU, (CPU_SECONDS, CPU_SECONDS + 5))


def _to_hardware(flow: str, file: Path, folder: Path) -> str:
    """Run the steps here; gives what is wrong, or an empty string. Raises whatever FINN raises."""
    from finn.builder.build_dataflow_config import DataflowBuildConfig
    from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as lookup
    from finn.core.onnx_exec import execute_onnx
    from finn.transformation.streamline.streamline_plus import StreamlinePlus
    from qonnx.core.modelwrapper import ModelWrapper

    def execute(model: Any, image: Any) -> Any:
        return next(iter(execute_onnx(model, {model.graph.input[0].name: image[None]}).values()))

    def streamline_plus(model: Any, config: Any) -> Any:
        from qonnx.transformation.lower_convs_to_matmul import LowerConvsToMatMul

        return model.transform(StreamlinePlus()).transform(LowerConvsToMatMul()).transform(StreamlinePlus())

    config = DataflowBuildConfig(
        output_dir=str(folder / flow),
        synth_clk_period_ns=5.0,
        board="ZCU104",
        generate_outputs=[],
        standalone_thresholds=True,
    )
    (folder / flow / "intermediate_models").mkdir(parents=True, exist_ok=True)
    model = ModelWrapper(str(file))
    step = lookup.get(flow, streamline_plus)
    for run in (lookup["step_qonnx_to_finn"], lookup["step_tidy_up"], step, lookup["step_convert_to_hw"]):
        model = run(model, config)
    with np.load(folder / "images.npz") as arrays:
        for image, wanted in zip(arrays["images"], arrays.get("outputs", []), strict=False):
            found = execute(model, image).reshape(wanted.shape)
            if not np.abs(found - wanted).max() <= 1e-5 * np.abs(wanted).max():
                return f"another result: {np.abs(found - wanted).max():.3g} of {np.abs(wanted).max():.3g}"
    model = lookup["step_create_dataflow_partition"](model, config)
    model = lookup["step_specialize_layers"](model, config)
    parent = ModelWrapper(str(folder / flow / "intermediate_models" / "dataflow_parent.onnx"))
    software = [
        node.op_type for node in parent.graph.node if node.op_type not in ("StreamingDataflowPartition", "Transpose")
    ]
    if software:
        return f"left in software: {', '.join(software)}"
    ends = {"ElementwiseMul_hls", "ElementwiseAdd_hls", "Thresholding_hls", "Thresholding_rtl"}
    floating = [
        node.op_type
        for node in model.graph.node
        if any(model.get_tensor_datatype(name) == "FLOAT32" for name in node.input[:1]) and node.op_type not in ends
    ]
    joins = [node for node in model.graph.node if node.op_type.startswith("ElementwiseMul") and _is_inside(model, node)]
    return f"floating point in hardware: {floating or [node.op_type for node in joins]}" if floating or joins else ""


def _is_inside(model: Any, node: Any) -> bool:
    """Whether more than scaling and biasing of the output comes after `node`."""
    while (following := model.find_consumer(node.output[0])) is not None:
        if not following.op_type.startswith("Elementwise"):
            return True
        node = following
    return False


if __name__ == "__main__":
    import os

    os.environ["FINN_BUILD_DIR"] = sys.argv[3]
    location = Path(__file__).parents[2] / "fxfactor" / "finn" / "process" / "worker.py"
    specification = importlib.util.spec_from_file_location("worker", location)
    assert specification is not None and specification.loader is not None
    worker = importlib.util.module_from_spec(specification)
    sys.path.pop(0)
    specification.loader.exec_module(worker)
    worker.require_finn()
    try:
        reason = _to_hardware(sys.argv[1], Path(sys.argv[2]), Path(sys.argv[3]))
    except Exception as error:
        reason = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
    print()
    print(json.dumps(reason))
