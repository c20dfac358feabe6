"""Runs FINN's build steps on a network in integers; a script of its own, started by `fxfactor.finn.estimation`.

It needs finn-plus and what finn-plus needs, nothing of fxfactor, so that it can run in another environment. It reads a
request (JSON file), writes what happens as JSON lines to a file descriptor, and leaves nothing behind outside of the
folder that the request names. FINN's own printing goes to the log that the runner keeps.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
import threading
import time
from pathlib import Path
from typing import Any

VERSION = "1.6.1"
"""The release of finn-plus whose steps this was written for and tried with."""

STEPS_TO_PARTITION = ("step_convert_to_hw", "step_minimize_bit_width_initial", "step_create_dataflow_partition")
STEPS_TO_BOARD = ("step_specialize_layers",)
STEPS_TO_FOLDING = ("step_target_fps_parallelization", "step_apply_folding_config", "step_minimize_bit_width")
REPORTS = ("estimate_layer_cycles", "estimate_layer_resources", "estimate_network_performance")


class Stop(Exception):
    """Ends the run with an event that says why."""

    def __init__(self, kind: str, **facts: Any) -> None:
        super().__init__(kind)
        self.event = {"event": "stop", "kind": kind, **facts}


class Channel:
    """Writes events as JSON lines to the file descriptor that the runner reads."""

    def __init__(self, descriptor: int) -> None:
        self.file = os.fdopen(descriptor, "w", buffering=1)

    def send(self, event: dict[str, Any]) -> None:
        """One event, at once; ends the process quietly where the runner has gone."""
        try:
            self.file.write(json.dumps(event) + "\n")
        except BrokenPipeError:
            os._exit(1)


def end_with_parent() -> None:
    """Kill this process and what it started as soon as the one that started it is gone, even by SIGKILL.

    It holds the other end of standard input, and nothing is ever written there.
    """

    def wait() -> None:
        os.read(0, 1)
        os.killpg(0, signal.SIGKILL)

    threading.Thread(target=wait, daemon=True).start()


def require_finn() -> None:
    """Import FINN without Vivado. Raises Stop where it is missing or another release."""
    from importlib.metadata import PackageNotFoundError, version

    try:
        found = version("finn-plus")
    except PackageNotFoundError as error:
        raise Stop("missing", found="no package finn-plus") from error
    if found != VERSION:
        raise Stop("version", found=found)
    # The path is only read for the version in it; nothing of Vivado is run.
    os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
    try:
        import finn.xsi

        finn.xsi.SimEngine = object  # looked up on import, and it insists on a Vivado simulator
        import_steps()
    except ModuleNotFoundError as error:
        raise Stop("missing", found=f"no module {error.name}") from error


def import_steps() -> None:
    """Import FINN's build steps without what we never use of it; where that does not work, start again and import all.

    FINN's release is fixed, those of the packages that it needs are not: one of them may come to use what was left out.
    """
    from importlib import import_module

    whole = "FXFACTOR_WHOLE_FINN"
    os.environ.pop("FINN_QOR_MODEL_DIR", None)  # for a report by regression models, which nobody here reads
    with contextlib.nullcontext() if whole in os.environ else load("stand_ins").stand_ins():
        try:
            import_module("finn.builder.build_dataflow_steps")
        except Exception:  # whatever an import of others raises
            if whole in os.environ:
                raise
            os.environ[whole] = "1"
            sys.stdout.flush()
            os.execv(sys.executable, sys.orig_argv)


def load(name: str) -> Any:
    """The module of that name beside this file, by its path: this process need not have fxfactor."""
    from importlib.util import module_from_spec, spec_from_file_location

    spec = spec_from_file_location(name, Path(__file__).with_name(f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


def load_folding() -> Any:
    """The package `folding`, which lies beside this file, by its path: its module that folds and prices models."""
    from importlib import import_module
    from importlib.util import module_from_spec, spec_from_file_location

    if "fxfactor_folding" not in sys.modules:
        folder = Path(__file__).with_name("folding")
        spec = spec_from_file_location(
            "fxfactor_folding", folder / "__init__.py", submodule_search_locations=[str(folder)]
        )
        assert spec is not None
        assert spec.loader is not None
        sys.modules["fxfactor_folding"] = module_from_spec(spec)
        spec.loader.exec_module(sys.modules["fxfactor_folding"])
    return import_module("fxfactor_folding.steps")


class Run:
    """One request: the model on its way through the steps, and the check after each of them."""

    def __init__(self, request: dict[str, Any], channel: Channel) -> None:
        import numpy as np

        self.request, self.channel = request, channel
        self.folder = Path(request["folder"])
        self.parent: Path | None = None
        with np.load(request["images"]) as arrays:
            self.images = arrays["inputs"]
            self.reference = [arrays[f"outputs{index}"] for index in range(len(arrays.files) - 1)]

    def config(self) -> Any:
        """FINN's build configuration for this request."""
        from finn.builder.build_dataflow_config import DataflowBuildConfig, DataflowOutputType, ShellFlowType

        request = self.request
        return DataflowBuildConfig(
            output_dir=str(self.folder / "out"),
            board=request.get("board"),
            fpga_part=request.get("part"),
            synth_clk_period_ns=request["clock_ns"],
            target_fps=None if request["target_fps"] == "max" else request["target_fps"],
            folding_config_file=request.get("folding"),
            shell_flow_type=ShellFlowType.VIVADO_ZYNQ,
            generate_outputs=[DataflowOutputType.ESTIMATE_REPORTS],
            standalone_thresholds=True,
        )

    def run(self) -> None:
        """All steps, from the furthest cached model on."""
        from qonnx.core.modelwrapper import ModelWrapper

        config, grouped_mvau, integer_requant = self.config(), load("grouped_mvau"), load("integer_requant")
        (self.folder / "out" / "intermediate_models").mkdir(parents=True, exist_ok=True)
        cached = self.request.get("cached")
        if cached is None:
            model = ModelWrapper(self.request["model"])
            self.check("integers", model)
            for step in STEPS_TO_PARTITION:
                model = self.step(step, model, config)
            self.look_at_partition(model)
            for step in STEPS_TO_BOARD:
                model = self.step(step, model, config)
            self.keep(model)
        else:
            model, self.parent = ModelWrapper(f"{cached}/board.onnx"), Path(cached) / "parent.onnx"
            self.check("integers", ModelWrapper(self.request["model"]))
        if self.request["fold_by"] == "fxfactor":
            config = self.fold(model, config)
        else:
            grouped_mvau.fold(model, config._resolve_cycles_per_frame(), config._resolve_fpga_part())
            integer_requant.fold(model, config._resolve_cycles_per_frame())
        for step in STEPS_TO_FOLDING[self.request["fold_by"] == "fxfactor" :]:
            model = self.step(step, model, config, every_image=step == STEPS_TO_FOLDING[-1])
            if step == STEPS_TO_FOLDING[0]:
                grouped_mvau.settle_reshapes(model, self.folder / "out" / "report" / "auto_folding_config.json")
        model = self.step("step_generate_estimate_reports", model, config, check=False)
        self.send_reports(model)
        if self.request.get("generate"):
            self.generate(model, config)

    def fold(self, model: Any, config: Any) -> Any:
        """Choose the folding of all layers together; the configuration by which FINN's own step applies it."""
        folding = load_folding()
        self.channel.send({"event": "begin", "step": "folding"})
        started, file = time.monotonic(), self.folder / "out" / "report" / "auto_folding_config.json"
        try:
            done = folding.write(model, config, self.request, file)
        except folding.Infeasible as error:
            tensors = {node.name: list(node.output) + list(node.input) for node in model.graph.node}
            raise Stop("infeasible", step="folding", tensors=tensors, **error.facts) from error
        self.channel.send({"event": "end", "step": "folding", "seconds": time.monotonic() - started})
        self.channel.send({"event": "folded", **done})
        self.request["folding"] = str(file)
        return self.config()

    def step(self, name: str, model: Any, config: Any, check: bool = True, every_image: bool = False) -> Any:
        """Run one of FINN's steps, report it, and compare what the model computes now."""
        from finn.builder.build_dataflow_steps import build_dataflow_step_lookup

        self.channel.send({"event": "begin", "step": name})
        started = time.monotonic()
        try:
            model = build_dataflow_step_lookup[name](model, config)
        except MemoryError:
            raise
        except Exception as error:  # FINN raises anything, down to numpy's errors and bare assertions
            raise Stop("refused", step=name, found=f"{type(error).__name__}: {error}") from error
        seconds = time.monotonic() - started
        if name == "step_create_dataflow_partition":
            self.parent = self.folder / "out" / "intermediate_models" / "dataflow_parent.onnx"
        if check:
            self.check(name, model, seconds, every_image)
        else:
            self.channel.send({"event": "end", "step": name, "seconds": seconds})
        return model

    def check(self, step: str, model: Any, seconds: float = 0.0, every_image: bool = False) -> None:
        """Execute the model on some images and stop where an integer differs from what it has to be."""
        event: dict[str, Any] = {"event": "end", "step": step, "seconds": seconds}
        count = len(self.images) if every_image else min(len(self.images), self.request["images_per_step"])
        if count:
            started = time.monotonic()
            found = self.execute(model, self.images[:count])
            wrong = sum(
                int((there.reshape(count, -1) != wanted[:count].reshape(count, -1)).sum())
                for there, wanted in zip(found, self.reference, strict=True)
            )
            if wrong:
                raise Stop("differs", step=step, images=count, different_integers=wrong)
            event.update(images=count, check_seconds=time.monotonic() - started)
        self.channel.send(event)

    def execute(self, model: Any, images: Any) -> list[Any]:
        """What the model computes, each output, one image at a time, as FINN's own verification does it."""
        import numpy as np
        from finn.core.onnx_exec import execute_onnx
        from finn.util.verification import despecialize_model
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.custom_op.registry import getCustomOp

        if self.parent is not None:
            child = self.folder / "child.onnx"
            despecialize_model(model).save(str(child))
            model = ModelWrapper(str(self.parent))
            partition = model.get_nodes_by_op_type("StreamingDataflowPartition")[0]
            getCustomOp(partition).set_nodeattr("model", str(child))
        name = model.graph.input[0].name
        outputs = []
        for image in images:
            result = execute_onnx(model, {name: image[None].astype(np.float32)})
            outputs.append([result[output.name] for output in model.graph.output])
        return [np.concatenate(each) for each in zip(*outputs, strict=True)]

    def look_at_partition(self, model: Any) -> None:
        """What stayed in software, and where floating point is left in hardware."""
        from qonnx.core.modelwrapper import ModelWrapper

        parent = ModelWrapper(str(self.parent))
        software = [node.op_type for node in parent.graph.node if node.op_type != "StreamingDataflowPartition"]
        floating = [
            node.name
            for node in model.graph.node
            if any(model.get_tensor_datatype(name) == "FLOAT32" for name in (*node.input, *node.output))
        ]
        self.channel.send({"event": "partition", "software": software, "floating": floating})

    def keep(self, model: Any) -> None:
        """Save the model for the board, so that another target starts from here."""
        target = self.request.get("keep")
        if target is None or self.parent is None:
            return
        import shutil

        folder = self.folder / "keep"
        folder.mkdir()
        model.save(str(folder / "board.onnx"))
        shutil.copy(self.parent, folder / "parent.onnx")
        self.channel.send({"event": "keep", "folder": str(folder)})

    def send_reports(self, model: Any) -> None:
        """FINN's estimates, with the tensor that each hardware layer computes: it carries the module's name."""
        report = self.folder / "out" / "report"
        reports = {name: json.loads((report / f"{name}.json").read_text()) for name in REPORTS}
        tensors = {node.name: list(node.output) + list(node.input) for node in model.graph.node}
        kinds = {node.name: node.op_type for node in model.graph.node}
        part = self.config()._resolve_fpga_part()
        folding = load_folding()
        try:
            prices = folding.price(model, part, self.request)
        except folding.UnknownStream as error:
            raise Stop("stream", found=str(error)) from error
        event = {"event": "reports", "reports": reports, "tensors": tensors, "kinds": kinds, "part": part}
        self.channel.send({**event, "prices": prices})

    def generate(self, model: Any, config: Any) -> None:
        """FINN's code generation: HLS and RTL sources of every layer, nothing synthesised."""
        from finn.transformation.fpgadataflow.insert_dwc import InsertDWC
        from finn.transformation.fpgadataflow.insert_fifo import InsertFIFO
        from finn.transformation.fpgadataflow.specialize_layers import SpecializeLayers
        from qonnx.core.modelwrapper import ModelWrapper
        from qonnx.transformation.general import GiveReadableTensorNames, GiveUniqueNodeNames

        part, layer_streams = config._resolve_fpga_part(), load("layer_streams")
        load("unequal_splits")
        load("output_queues")
        for transformation in (
            InsertDWC(),
            InsertFIFO(create_shallow_fifos=True),
            SpecializeLayers(part),
            GiveUniqueNodeNames(),
        ):
            model = model.transform(transformation)
        partition = ModelWrapper(str(self.parent)).get_nodes_by_op_type("StreamingDataflowPartition")[0]
        names = layer_streams.tensor_names(model, list(partition.output))
        model = model.transform(GiveReadableTensorNames())
        model = self.step("step_hw_codegen", model, config, check=False)
        folders = {}
        for node in model.graph.node:
            for attribute in node.attribute:
                if attribute.name in ("code_gen_dir_ipgen", "code_gen_dir_cppsim") and attribute.s:
                    folders[node.name] = attribute.s.decode()
        model.save(str(self.folder / "generated.onnx"))
        import finn

        self.channel.send({"event": "generated", "folders": folders, "finn": next(iter(finn.__path__))})
        if self.request.get("describe"):
            layers = layer_streams.describe(model, names, self.folder / "constants")
            for layer, node in zip(layers, model.graph.node, strict=True):
                layer["prices"] = load_folding().prices_of(node, model, part)
            self.channel.send({"event": "layers", "layers": layers})


def main(arguments: list[str]) -> int:
    """`worker.py REQUEST DESCRIPTOR`: run the request, report to the descriptor; the exit status is 0 if it ended well."""
    end_with_parent()
    request = json.loads(Path(arguments[0]).read_text())
    channel = Channel(int(arguments[1]))
    os.environ["FINN_BUILD_DIR"] = str(Path(request["folder"]) / "build")
    Path(os.environ["FINN_BUILD_DIR"]).mkdir(parents=True, exist_ok=True)
    try:
        require_finn()
        channel.send({"event": "end", "step": "import", "seconds": 0.0})
        load("fast_lookups").use_fast_lookups()
        Run(request, channel).run()
    except Stop as stop:
        channel.send(stop.event)
        return 1
    except MemoryError:
        channel.send({"event": "stop", "kind": "memory"})
        return 1
    channel.send({"event": "done"})
    return 0


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its module names must not stand in for others
    sys.exit(main(sys.argv[1:]))
