"""Estimates: the network in integers goes to FINN's worker, and what that sends is put together."""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.fx import GraphModule

from fxfactor.arguments import checked
from fxfactor.errors import FinnError, InfeasibleError
from fxfactor.files import private_folder
from fxfactor.finn.boards import Resources, notes
from fxfactor.finn.grouped import check_form
from fxfactor.finn.integer.execute import execute_all
from fxfactor.finn.integer.forms import Choices, Form
from fxfactor.finn.process.cache import default_cache, publish, sweep
from fxfactor.finn.process.load import IntegerNetwork, channels_last, load_images, load_integers
from fxfactor.finn.process.start import WORKER, events, explain
from fxfactor.finn.process.worker import VERSION
from fxfactor.finn.result import CONVERTERS, FIFOS, Estimate, GroupedForm, HardwareLayer, Step
from fxfactor.finn.target import Folding, Frames, Limits, Target
from fxfactor.finn.ways import Ways, choose_ways, in_order, spare
from fxfactor.storage.qonnx import export

UNITS = {"lut": "LUTs", "bram18": "18 kbit block RAMs", "dsp": "DSP slices", "uram": "UltraRAMs"}

FORMAT = 2
"""Part of the cache key: raise it when the worker's steps change."""

SPEEDS = (64, 16, 4, 1)
"""Cycles per pixel of the largest layer with a choice: for the fastest network, what is cheapest at these is tried."""

_MOST_SPARED = 3
"""How often more of what is short is spared, before a network counts as too large."""

SIMULATED_FIFOS = "FIFOs are as deep as the simulation whose depths were given has them (fifo_depths)."

Progress = Callable[[str], None]


@partial(checked, error=FinnError)
def estimate(
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
    `limits`: the most of it that may be used, such as `{"lut": 65_000, "dsp": 636}` (`bram18`, `uram`), where the board is
    shared with other logic.

    `grouped`: how a grouped convolution is built: "block" (one matrix unit for all groups, a hardware layer of fxfactor's own
    with FINN's RTL), "split" (a matrix unit for each group behind one window generator) or "branches" (a convolution for each
    group; FINN's depthwise units for depthwise ones). None takes the cheapest for each layer on this board, by our estimates;
    `Estimate.grouped` says which and why. `requant`: whether a quantizer is one multiplication (a hardware layer of fxfactor's
    own) in place of thresholds, where that gives the same integers exactly: None decides by cost for each, False never, True
    wherever it can be. With `target_fps="max"` what is cheapest at several speeds is tried, and the fastest network is taken. At
    a given speed, where the cheapest take too much of one resource, so many are built in another way as spare it.

    `fifo_depths`: words in each FIFO, stream -> depth: `Simulation.depths` of `fxfactor.finn.simulate` for the same hardware.
    They are in our figures then. Without it FIFOs have 2 words, and where branches meet what the slower branch is behind with;
    layers that are busy nearly all the time need more to reach `fps`.

    `verify=(images, outputs)`, or an .npz file with "x" and "y": the network in integers is compared with these outputs of
    PyTorch on all images (largest difference / largest output at most `tolerance`). FINN's graph is then executed after
    every step on `images_per_step` of them, and at the end on all; the integers must be the same. Give the outputs of
    `fxfactor.finn.reference(qmodel, images)`: in float32 the order of a sum can tip a value that lies next to a rounding
    threshold. Of a network with several outputs give a tuple of them. Without `verify` one random image is executed at the end.

    `clock_ns` is the clock period in nanoseconds. `python` is the interpreter of an environment with finn-plus, this one
    if not given. Models are kept in `cache`, so that another target or clock on the same board repeats only folding.

    Raises InfeasibleError where no folding is fast enough or fits the board (it names the layer, or the resource that binds and
    the least it needs), FinnError where a rule is broken, FINN is missing or of another version, a step fails or changes the
    result, `timeout_s` seconds pass, or the process dies. Nothing is left behind then.
    """
    target = Target(board, clock_ns, target_fps, python, limits)
    options: Any = {"grouped": grouped, "requant": requant, "folding": folding, "fifo_depths": fifo_depths}
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
            notes=(
                *notes(target.board),
                *_notes(prices),
                *(() if self.job.fifo_depths is None else (SIMULATED_FIFOS,)),
            ),
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
    requant: bool | None = None
    """Whether quantizers are multiplications where they can be; None decides by cost."""
    ways: Ways | None = None
    """How grouped convolutions and quantizers are built, where that is settled."""
    folding: Folding = "fxfactor"
    must_fit: bool = True
    """Whether a network that fits in no folding is an error; else it is folded to the least shares."""
    describe: bool = False
    """Whether the worker then tells what a simulation of the generated layers needs."""
    fifo_depths: Mapping[str, int] | None = None
    """Words in each FIFO by a simulation, stream -> depth."""

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
        """Interpret the file, run the worker in folder `name`, and put together what it sends.

        Where the network does not fit the board with what is cheapest for each layer, so many layers and quantizers are built in
        another way as spare what is short, if it fits then.
        """
        try:
            outcome = self._run(name)
        except InfeasibleError as error:
            ways = self._sparing(error.resource, error.missing)
            if ways is None:
                raise
        else:
            ways = self._sparing(*_most_over(outcome.estimate()))
            if ways is None:
                return outcome
        for each in Path(name).iterdir():
            shutil.rmtree(each) if each.is_dir() else each.unlink()
        return replace(self, ways=ways)._run(name)

    def _sparing(self, resource: str | None, missing: float) -> Ways | None:
        """Ways in which the network fits, where the cheapest take so much too much of a resource; None where none are known."""
        if resource is None or self.ways is not None or self.target.target_fps == "max" or self.folding == "finn":
            return None
        network = load_integers(self.file, Choices(look=self.requant is not False))
        amount = 0.0
        for _ in range(_MOST_SPARED):
            amount += missing
            layers, staircases = network.grouped, network.staircases
            ways = spare(layers, staircases, self.target, self.grouped, self.requant, resource, amount)
            if ways is None:
                return None
            trial = replace(
                self, ways=ways, must_fit=True, verify=None, generate=False, describe=False, fifo_depths=None
            )
            try:
                with trial.folder() as folder:
                    trial._run(folder)
                return ways
            except InfeasibleError as error:
                if error.resource != resource:
                    return None
                missing = error.missing
        return None

    def _run(self, name: str) -> Outcome:
        import onnx

        started, folder = time.monotonic(), Path(name)
        given = load_integers(self.file, Choices(look=self.requant is not False))
        compared = self._write_images(folder / "images.npz", given)
        network, forms = self._built(given)
        if network.notes != given.notes:  # the channels leave in another order
            compared = self._write_images(folder / "images.npz", network)
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
            "fifo_depths": None if self.fifo_depths is None else dict(self.fifo_depths),
        }
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

    def _built(self, network: IntegerNetwork) -> tuple[IntegerNetwork, tuple[GroupedForm, ...]]:
        """The network with grouped convolutions and quantizers as is asked for, or in the best way."""
        if not network.grouped and not network.staircases:
            return network, ()
        ways = self._ways(network)
        try:
            return load_integers(self.file, ways.choices), tuple(ways.forms.values())
        except FinnError:
            if self.grouped is not None or not network.grouped:
                raise
        ways = in_order(network.grouped, ways)
        return load_integers(self.file, ways.choices), tuple(ways.forms.values())

    def _ways(self, network: IntegerNetwork) -> Ways:
        """The ways that are settled, or asked for, or cheapest; of those cheapest at several speeds the fastest."""
        if self.ways is not None:
            return self.ways

        def chosen(target: Target) -> Ways:
            return choose_ways(network.grouped, network.staircases, target, self.grouped, self.requant)

        is_open = (network.grouped and self.grouped is None) or (network.staircases and self.requant is None)
        if self.target.target_fps != "max" or not is_open:
            return chosen(self.target)
        tried: dict[tuple[object, ...], Ways] = {}
        sizes = [*(layer.size for layer in network.grouped), *(each.size for each in network.staircases)]
        pixels = max(map(math.prod, sizes))
        for cycles in SPEEDS:
            fps = max(1, round(1e9 / self.target.clock_ns / (cycles * pixels)))
            ways = chosen(replace(self.target, target_fps=fps))
            tried.setdefault(ways.key, ways)
        return next(iter(tried.values())) if len(tried) == 1 else max(tried.values(), key=self._speed)

    def _speed(self, ways: Ways) -> tuple[float, float]:
        """Frames per second in these ways, of equals that with fewer shares of the board; 0 where nothing fits."""
        job = replace(self, ways=ways, verify=None, generate=False, describe=False, fifo_depths=None)
        try:
            with job.folder() as folder:
                found = job.run(folder).estimate()
        except InfeasibleError:
            return 0.0, 0.0
        assert found.shares is not None
        return found.fps, -sum(found.shares.values())

    def _write_images(self, path: Path, network: IntegerNetwork) -> Step:
        """Integer images and the integers that have to come out; compares those with PyTorch's outputs, if given."""
        note, started = network.notes["input"], time.monotonic()
        if self.verify is None:
            random = np.random.default_rng(0).integers(note["lowest"], note["highest"] + 1, note["shape"])
            integers = channels_last(random)
            _save_images(path, integers, execute_all(network.model, integers))
            return Step("compare with PyTorch", 0.0)
        images, expected = load_images(self.verify, len(network.notes["outputs"]))
        if list(images.shape[1:]) != note["shape"][1:]:
            raise FinnError(f"required: images of shape (N, *{note['shape'][1:]}); found: {images.shape}; see verify=")
        integers = network.to_integers(images)
        outputs = execute_all(network.model, integers)
        _save_images(path, integers, outputs)
        differences, equal = zip(
            *(_compared(network.from_integers(each, index), expected[index]) for index, each in enumerate(outputs)),
            strict=True,
        )
        difference, argmax = max(differences), min(equal)
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
            error = InfeasibleError(_infeasible(event, self.target, outcome.network))
            if event.get("resource") is not None:
                error.resource, error.missing = event["resource"], event["least"] - event["limit"]
            raise error
        elif kind == "stop":
            raise FinnError(explain(event))


def _most_over(found: Estimate) -> tuple[str | None, float]:
    """The resource of which the largest share too much is taken, and how much that is; None where all fits."""
    shares = {name: share for name, share in (found.shares or {}).items() if share > 1}
    if not shares:
        return None, 0.0
    name = max(shares, key=shares.__getitem__)
    return name, getattr(found.total, name) - getattr(found.available, name)


def _save_images(path: Path, images: NDArray[Any], outputs: list[NDArray[Any]]) -> None:
    arrays: dict[str, Any] = {f"outputs{index}": each for index, each in enumerate(outputs)}
    np.savez(path, inputs=images, **arrays)


def _compared(found: NDArray[Any], expected: NDArray[Any]) -> tuple[float, float]:
    """Largest difference as a part of the largest output, and the part of images with equal argmax."""
    found, expected = found.reshape(len(found), -1), expected.reshape(len(expected), -1)
    if found.shape != expected.shape:
        raise FinnError(f"required: outputs of shape {found.shape}; found: {expected.shape}; see verify=")
    difference = float(np.abs(found - expected).max() / max(np.abs(expected).max(), 1e-30))
    return difference, float((found.argmax(1) == expected.argmax(1)).mean())


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
