"""Estimates: the network in integers goes to FINN's worker, and what that sends is put together."""

from __future__ import annotations

import hashlib
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor
from torch.fx import GraphModule

from fxfactor.errors import FinnError
from fxfactor.files import private_folder
from fxfactor.finn.boards import Resources, notes
from fxfactor.finn.grouped import check_form, choose_forms, chooser, in_order
from fxfactor.finn.integer.execute import execute
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.process.cache import default_cache, publish, sweep
from fxfactor.finn.process.load import IntegerNetwork, load_images, load_integers
from fxfactor.finn.process.start import WORKER, events, explain
from fxfactor.finn.process.worker import VERSION
from fxfactor.finn.result import CONVERTERS, FIFOS, Estimate, GroupedForm, HardwareLayer, Step
from fxfactor.finn.target import Folding, Frames, Target
from fxfactor.storage.qonnx import export

UNITS = {"lut": "LUTs", "bram18": "18 kbit block RAMs", "dsp": "DSP slices", "uram": "UltraRAMs"}

FORMAT = 2
"""Part of the cache key: raise it when the worker's steps change."""

Progress = Callable[[str], None]


def estimate(
    file: str | Path,
    board: str = "ZCU104",
    target_fps: Frames = 1000,
    clock_ns: float = 5.0,
    *,
    grouped: Form | None = None,
    folding: Folding = "fxfactor",
    verify: Any = None,
    images_per_step: int = 1,
    tolerance: float = 1e-5,
    python: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """What `file`, a QONNX network, costs on `board` for `target_fps` frames per second, by FINN's estimators and ours.

    Before: a file that `fxfactor.export(qmodel, file, target="finn")` wrote. After: look-up tables, block RAMs, DSPs,
    UltraRAMs, cycles and frames per second, per layer and in total. The network is turned into integers here
    (`fxfactor.finn.integer`), then FINN's steps run in another process: conversion to hardware layers, bit widths,
    partition, specialisation for the board, folding, reports. No Vivado is needed and nothing is synthesised. Beside FINN's
    own figures stand ours, which count what FINN's leave out (`fxfactor.finn.Estimate`); both are estimates.

    `folding="fxfactor"` chooses parallelism and memory of all layers together: fast enough for `target_fps`, within what the
    board has by our figures, and the least sum of shares of it; `target_fps="max"` takes the fastest that fits.
    `folding="finn"` is FINN's own rule, layer by layer, which knows nothing of the board.

    `grouped`: how a grouped convolution is built: "block" (one matrix unit for all groups, a hardware layer of fxfactor's own
    with FINN's RTL), "split" (a matrix unit for each group behind one window generator) or "branches" (a convolution for each
    group; FINN's depthwise units for depthwise ones). None takes the cheapest for each layer on this board, by our estimates;
    `Estimate.grouped` says which and why.

    `verify=(images, outputs)`, or an .npz file with "x" and "y": the network in integers is compared with these outputs of
    PyTorch on all images (largest difference / largest output at most `tolerance`). FINN's graph is then executed after
    every step on `images_per_step` of them, and at the end on all; the integers must be the same. Give the outputs of
    `fxfactor.finn.reference(qmodel, images)`: in float32 the order of a sum can tip a value that lies next to a rounding
    threshold. Without `verify` one random image is executed at the end.

    `clock_ns` is the clock period in nanoseconds. `python` is the interpreter of an environment with finn-plus, this one
    if not given. Models are kept in `cache`, so that another target or clock on the same board repeats only folding.

    Raises FinnError where a rule is broken, no folding is fast enough or fits the board (it names the layer, or the resource
    that binds and the least it needs), FINN is missing or of another version, a step fails or changes the result,
    `timeout_s` seconds pass, or the process dies. Nothing is left behind then.
    """
    target = Target(board, clock_ns, target_fps, python)
    options: Any = {"grouped": grouped, "folding": folding}
    job = Job(Path(file), target, verify, images_per_step, tolerance, timeout_s, cache, progress, **options)
    with job.folder() as folder:
        return job.run(folder).estimate()


@dataclass
class Outcome:
    """What the worker sent, put together."""

    job: Job
    network: IntegerNetwork
    forms: tuple[GroupedForm, ...]
    steps: list[Step] = field(default_factory=list)
    software: tuple[str, ...] = ()
    floating: tuple[str, ...] = ()
    reports: dict[str, Any] = field(default_factory=dict)
    generated: dict[str, str] = field(default_factory=dict)
    finn: str = ""
    layers: list[dict[str, Any]] = field(default_factory=list)
    """What process/layer_streams.py tells of the generated layers, if the job asks for it."""
    seconds: float = 0.0

    def estimate(self) -> Estimate:
        """The result of `fxfactor.finn.estimate`."""
        reports, target = self.reports["reports"], self.job.target
        layers = _layers(self.reports, self.network)
        none, prices = Resources(0, 0, 0, 0), self.reports["prices"]
        performance = reports["estimate_network_performance"]
        return Estimate(
            board=target.board,
            part=self.reports["part"],
            clock_ns=target.clock_ns,
            target_fps=target.target_fps,
            folding=self.job.folding,
            layers=layers,
            total=sum((layer.resources for layer in layers), none),
            finn_total=sum((layer.finn for layer in layers), none),
            silent=tuple(prices["silent"]),
            notes=(*notes(target.board), *_notes(prices)),
            available=target.available,
            fps=performance["estimated_throughput_fps"],
            latency_ms=performance["estimated_latency_ns"] / 1e6,
            software=self.software,
            floating=self.floating,
            steps=tuple(self.steps),
            seconds=self.seconds,
            grouped=self.forms,
        )


@dataclass
class Job:
    """One run of the worker on one file."""

    file: Path
    target: Target
    verify: Any = None
    images_per_step: int = 1
    tolerance: float = 1e-5
    timeout_s: float = 3600.0
    cache: str | Path | None = None
    progress: Progress | None = None
    generate: bool = False
    """Whether FINN's code generation runs at the end."""
    grouped: Form | None = None
    folding: Folding = "fxfactor"
    must_fit: bool = True
    """Whether a network that fits in no folding is an error; else it is folded to the least shares."""
    describe: bool = False
    """Whether the worker then tells what a simulation of the generated layers needs."""

    def __post_init__(self) -> None:
        check_form(self.grouped)
        if self.folding not in ("fxfactor", "finn"):
            raise FinnError(f'required: folding="fxfactor" or "finn"; found: {self.folding!r}')
        if self.folding == "finn" and self.target.target_fps == "max":
            raise FinnError(
                'required: a number of frames per second with folding="finn"; found: "max"; FINN\'s rule knows nothing of '
                'the board: take folding="fxfactor"'
            )

    @property
    def store(self) -> Path:
        """The cache folder."""
        return (default_cache() if self.cache is None else Path(self.cache)).absolute()

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for this run, beside the cached models so that a finished one is moved there in one step."""
        private_folder(self.store, "models kept between calls")
        sweep(self.store)
        return tempfile.TemporaryDirectory(prefix=f".run-{os.getpid()}-", dir=self.store)

    def run(self, name: str) -> Outcome:
        """Interpret the file, run the worker in folder `name`, and put together what it sends."""
        import onnx

        started, folder = time.monotonic(), Path(name)
        network, forms = self._network()
        onnx.save(network.model, str(folder / "integers.onnx"))
        request = {
            "board": self.target.board,
            "clock_ns": self.target.clock_ns,
            "target_fps": self.target.target_fps,
            "folder": name,
            "model": str(folder / "integers.onnx"),
            "images": str(folder / "images.npz"),
            "images_per_step": self.images_per_step if self.verify else 0,
            "generate": self.generate,
            "fold_by": self.folding,
            "available": asdict(self.target.available),
            "must_fit": self.must_fit,
            "describe": self.describe,
        }
        compared = self._write_images(folder / "images.npz", network)
        kept = self.store / self._key(network)
        if kept.is_dir():
            os.utime(kept)
            request["cached"] = str(kept)
        request["keep"] = str(kept)
        (folder / "request.json").write_text(json.dumps(request))
        outcome = Outcome(self, network, forms, [compared])
        for event in events(WORKER, folder, self.target.python, self.timeout_s):
            self._receive(event, outcome, kept)
        outcome.seconds = time.monotonic() - started
        return outcome

    def _network(self) -> tuple[IntegerNetwork, tuple[GroupedForm, ...]]:
        """The network in integers, each grouped convolution in the form that is asked for, or the cheapest."""
        network = load_integers(self.file)
        if not network.grouped:
            return network, ()
        forms = choose_forms(network.grouped, self.target, self.grouped)
        try:
            return load_integers(self.file, chooser(forms)), tuple(forms.values())
        except FinnError:
            if self.grouped is not None:
                raise
        forms = in_order(network.grouped, forms)
        return load_integers(self.file, chooser(forms)), tuple(forms.values())

    def _write_images(self, path: Path, network: IntegerNetwork) -> Step:
        """Integer images and the integers that have to come out; compares those with PyTorch's outputs, if given."""
        note, started = network.notes["input"], time.monotonic()
        if self.verify is None:
            random = np.random.default_rng(0).integers(note["lowest"], note["highest"] + 1, note["shape"])
            integers = np.moveaxis(random, 1, -1).astype(np.float32)
            np.savez(path, inputs=integers, outputs=execute(network.model, integers))
            return Step("compare with PyTorch", 0.0)
        images, expected = load_images(self.verify)
        if list(images.shape[1:]) != note["shape"][1:]:
            raise FinnError(f"required: images of shape (N, *{note['shape'][1:]}); found: {images.shape}; see verify=")
        integers = network.to_integers(images)
        outputs = execute(network.model, integers)
        np.savez(path, inputs=integers, outputs=outputs)
        found = network.from_integers(outputs).reshape(len(images), -1)
        expected = expected.reshape(len(images), -1)
        if found.shape != expected.shape:
            raise FinnError(f"required: outputs of shape {found.shape}; found: {expected.shape}; see verify=")
        difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
        argmax = float((found.argmax(1) == expected.argmax(1)).mean())
        if not difference <= self.tolerance:
            raise FinnError(
                f"the network in integers differs from the outputs given by {difference:.2g} of the largest on "
                f"{len(images)} images (equal argmax on {argmax:.0%}); required: at most {self.tolerance:g}; "
                "compute the outputs of this network with fxfactor.finn.reference(qmodel, images) (float32 sums tip values "
                "that lie next to a rounding threshold), then report it as a defect of fxfactor"
            )
        return Step("compare with PyTorch", 0.0, len(images), time.monotonic() - started, difference, argmax)

    def _key(self, network: IntegerNetwork) -> str:
        digest = hashlib.sha256(network.model.SerializeToString(deterministic=True))
        digest.update(f"{FORMAT} {VERSION} {self.target.board} {self.target.python or sys.executable}".encode())
        return digest.hexdigest()[:32]

    def _receive(self, event: dict[str, Any], outcome: Outcome, kept: Path) -> None:
        kind = event["event"]
        if kind == "begin" and self.progress is not None:
            self.progress(event["step"])
        elif kind == "end":
            outcome.steps.append(
                Step(event["step"], event["seconds"], event.get("images", 0), event.get("check_seconds", 0.0))
            )
        elif kind == "partition":
            outcome.software, outcome.floating = tuple(event["software"]), tuple(event["floating"])
        elif kind == "keep":
            (Path(event["folder"]) / "partition.json").write_text(
                json.dumps({"software": outcome.software, "floating": outcome.floating})
            )
            publish(Path(event["folder"]), kept)
        elif kind == "reports":
            outcome.reports = event
            if not any(step.name == "step_create_dataflow_partition" for step in outcome.steps):
                partition = json.loads((kept / "partition.json").read_text())
                outcome.software, outcome.floating = tuple(partition["software"]), tuple(partition["floating"])
        elif kind == "generated":
            outcome.generated, outcome.finn = event["folders"], event["finn"]
        elif kind == "layers":
            outcome.layers = event["layers"]
        elif kind == "stop" and event["kind"] == "infeasible":
            raise FinnError(_infeasible(event, self.target, outcome.network))
        elif kind == "stop":
            raise FinnError(explain(event))


def _layers(reports: dict[str, Any], network: IntegerNetwork) -> tuple[HardwareLayer, ...]:
    cycles = reports["reports"]["estimate_layer_cycles"]
    resources = reports["reports"]["estimate_layer_resources"]
    sites, prices = _sites(reports["tensors"], network), reports["prices"]
    layers = []
    for node, used in resources.items():
        if node == "total":
            continue
        finns = Resources(round(used["LUT"]), round(used["BRAM_18K"]), round(used["DSP"]), round(used["URAM"]))
        ours = _rounded(prices["layers"][node])
        layers.append(HardwareLayer(node, reports["kinds"][node], sites[node], int(cycles.get(node, 0)), ours, finns))
    for stream in prices["streams"]:
        site = FIFOS if stream["kind"] == "StreamingFIFO" else CONVERTERS
        name = f"{stream['kind']} before {stream['reader']}"
        layers.append(HardwareLayer(name, stream["kind"], site, 0, _rounded(stream["costs"]), Resources(0, 0, 0, 0)))
    return tuple(layers)


def _rounded(costs: list[float]) -> Resources:
    lut, bram18, dsp, uram = map(round, costs)
    return Resources(lut, bram18, dsp, uram)


def _sites(tensors: dict[str, list[str]], network: IntegerNetwork) -> dict[str, str]:
    """Hardware layer -> the module or node of the network that it belongs to."""
    reader = {name: each[0] for each in tensors.values() for name in each[1:]}
    graph = network.model.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    found = {}
    for node, (output, *inputs) in tensors.items():
        # FINN renames the last tensor and gives new names to those it adds: the next tensor tells what they belong to
        candidates = (output, reader.get(output, graph.output[0].name), *inputs)
        found[node] = site_in(next((name for name in candidates if name in known), graph.output[0].name))
    return found


def _notes(prices: dict[str, Any]) -> tuple[str, ...]:
    """What the chosen folding asks of the user."""
    if not prices["written"]:
        return ()
    return (
        f"The weights of {', '.join(prices['written'])} lie in UltraRAM, which is empty after start: FINN's driver writes them "
        "(runtime_writeable_weights).",
    )


def _infeasible(event: dict[str, Any], target: Target, network: IntegerNetwork) -> str:
    """Why no folding does: the layer that is too slow, or the resource that binds."""
    where = f"{target.frames} on {target.board} at {1000 / target.clock_ns:.0f} MHz"
    if "layer" in event:
        site = _sites(event["tensors"], network)[event["layer"]]
        fps = 1e9 / target.clock_ns / event["fastest"]
        return (
            f"required: {where}; found: {event['layer']} ({site}) takes {event['fastest']:,} cycles per frame at least, "
            f"{fps:,.0f} frames/s; ask for fewer, or for a shorter clock period"
        )
    if event["resource"] is None:
        return f"required: a folding for {where}; found: none within all that the board has; ask for fewer frames per second"
    beside = " beside what the board has of the others" if event["beside"] else ""
    return (
        f"required: at most {event['limit']:,.0f} {UNITS[event['resource']]} for {where}; found: every folding needs at least "
        f"{event['least']:,.0f}{beside}; ask for fewer frames per second, fewer bits, a higher level or a larger board"
    )


def site_in(tensor: str) -> str:
    """The site in a tensor's name: the builder adds suffixes for what a module is made of, and numbers."""
    tensor = tensor.partition("#")[0]
    for suffix in (".windows", ".flat", ".sign"):
        tensor = tensor.removesuffix(suffix)
    return tensor


def estimate_network(qmodel: GraphModule, example: Tensor, target: Target) -> Estimate:
    """The estimates of a quantized network, nothing kept, whether or not it fits the board.

    Raises FxfactorError where FINN does not take it, or no folding is as fast as the target asks.
    """
    with tempfile.TemporaryDirectory() as name:
        file = Path(name) / "network.onnx"
        export(qmodel, file, target="finn", example_inputs=example)
        job = Job(file, target, cache=name, must_fit=False)
        with job.folder() as folder:
            return job.run(folder).estimate()
