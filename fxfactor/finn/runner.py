"""Runs FINN in a process of its own: progress, time-out, cached models, and errors that say what to do."""

from __future__ import annotations

import hashlib
import json
import os
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from fxfactor.errors import FinnError
from fxfactor.finn.boards import BOARDS, Resources
from fxfactor.finn.executing import execute
from fxfactor.finn.loading import IntegerNetwork, load_images, load_integers
from fxfactor.finn.report import Estimate, HardwareLayer, Step
from fxfactor.finn.worker import VERSION

WORKER = Path(__file__).with_name("worker.py")
FORMAT = 1
"""Part of the cache key: raise it when the worker's steps change."""
KEPT = 8
"""Cached networks; the one used longest ago goes first."""
INSTALL = f"install it with `pip install finn-plus=={VERSION} psutil`, or name another interpreter with python="

Progress = Callable[[str], None]


def default_cache() -> Path:
    """Where models are kept between calls: fxfactor/finn in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "fxfactor" / "finn"


def estimate(
    file: str | Path,
    board: str = "ZCU104",
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    *,
    verify: Any = None,
    images_per_step: int = 1,
    tolerance: float = 1e-5,
    python: str | Path | None = None,
    timeout_s: float = 3600.0,
    cache: str | Path | None = None,
    progress: Progress | None = None,
) -> Estimate:
    """What `file`, a QONNX network, costs on `board` for `target_fps` frames per second, as FINN estimates it.

    Before: a file that `fxfactor.export(qmodel, file, target="finn")` wrote. After: look-up tables, block RAMs, DSPs,
    UltraRAMs, cycles and frames per second, per layer and in total. The network is turned into integers here
    (`fxfactor.finn.integer`), then FINN's steps run in another process: conversion to hardware layers, bit widths,
    partition, specialisation for the board, folding, reports. No Vivado is needed and nothing is synthesised, so the
    figures are FINN's analytic lower bounds.

    `verify=(images, outputs)`, or an .npz file with "x" and "y": the network in integers is compared with these outputs of
    PyTorch on all images (largest difference / largest output at most `tolerance`). FINN's graph is then executed after
    every step on `images_per_step` of them, and at the end on all; the integers must be the same. Give the outputs of
    `fxfactor.finn.reference(qmodel, images)`: in float32 the order of a sum can tip a value that lies next to a rounding
    threshold. Without `verify` one random image is executed at the end.

    `clock_ns` is the clock period in nanoseconds. `python` is the interpreter of an environment with finn-plus, this one
    if not given. Models are kept in `cache`, so that another target or clock on the same board repeats only folding.

    Raises FinnError where a rule is broken, FINN is missing or of another version, a step fails or changes the result,
    `timeout_s` seconds pass, or the process dies. Nothing is left behind then.
    """
    request = {"board": board, "target_fps": target_fps, "clock_ns": clock_ns, "tolerance": tolerance}
    job = Job(Path(file), request, board, verify, images_per_step, python, timeout_s, cache, progress)
    with job.folder() as folder:
        return job.run(folder).estimate()


@dataclass
class Outcome:
    """What the worker sent, put together."""

    job: Job
    network: IntegerNetwork
    steps: list[Step] = field(default_factory=list)
    software: tuple[str, ...] = ()
    floating: tuple[str, ...] = ()
    reports: dict[str, Any] = field(default_factory=dict)
    generated: dict[str, str] | None = None
    seconds: float = 0.0

    def estimate(self) -> Estimate:
        """The result of `fxfactor.finn.estimate`."""
        reports, request = self.reports["reports"], self.job.request
        layers = _layers(self.reports, self.network)
        total = sum((layer.resources for layer in layers), Resources(0, 0, 0, 0))
        performance = reports["estimate_network_performance"]
        return Estimate(
            board=self.job.board,
            part=self.reports["part"],
            clock_ns=request["clock_ns"],
            target_fps=request["target_fps"],
            layers=layers,
            total=total,
            available=BOARDS.get(self.job.board),
            fps=performance["estimated_throughput_fps"],
            latency_ms=performance["estimated_latency_ns"] / 1e6,
            software=self.software,
            floating=self.floating,
            steps=tuple(self.steps),
            seconds=self.seconds,
        )


@dataclass
class Job:
    """One run of the worker on one file."""

    file: Path
    request: dict[str, Any]
    board: str
    verify: Any = None
    images_per_step: int = 1
    python: str | Path | None = None
    timeout_s: float = 3600.0
    cache: str | Path | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        clock_ns, target_fps = self.request["clock_ns"], self.request["target_fps"]
        if not clock_ns > 0 or not target_fps > 0:
            raise FinnError(f"required: clock_ns > 0 and target_fps > 0; found: {clock_ns} and {target_fps}")
        if self.board not in BOARDS:
            raise FinnError(
                f"required: a board that FINN knows; found: {self.board!r}; choose from {', '.join(BOARDS)}"
            )

    @property
    def store(self) -> Path:
        """The cache folder."""
        return (default_cache() if self.cache is None else Path(self.cache)).absolute()

    def folder(self) -> tempfile.TemporaryDirectory[str]:
        """A folder for this run, beside the cached models so that a finished one is moved there in one step."""
        self.store.mkdir(parents=True, exist_ok=True)
        _sweep(self.store)
        return tempfile.TemporaryDirectory(prefix=f".run-{os.getpid()}-", dir=self.store)

    def run(self, name: str) -> Outcome:
        """Interpret the file, run the worker in folder `name`, and put together what it sends."""
        import onnx

        started, folder = time.monotonic(), Path(name)
        network = load_integers(self.file)
        onnx.save(network.model, str(folder / "integers.onnx"))
        request = {**self.request, "folder": name, "model": str(folder / "integers.onnx")}
        request.update(images=str(folder / "images.npz"), images_per_step=self.images_per_step if self.verify else 0)
        compared = self._write_images(folder / "images.npz", network)
        kept = self.store / self._key(network)
        if kept.is_dir():
            os.utime(kept)
            request["cached"] = str(kept)
        request["keep"] = str(kept)
        (folder / "request.json").write_text(json.dumps(request))
        outcome = Outcome(self, network, [compared])
        for event in self._events(folder):
            self._receive(event, outcome, kept)
        outcome.seconds = time.monotonic() - started
        return outcome

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
        if not difference <= self.request["tolerance"]:
            raise FinnError(
                f"the network in integers differs from the outputs given by {difference:.2g} of the largest on "
                f"{len(images)} images (equal argmax on {argmax:.0%}); required: at most {self.request['tolerance']:g}; "
                "compute the outputs of this network with fxfactor.finn.reference(qmodel, images) (float32 sums tip values "
                "that lie next to a rounding threshold), then report it as a defect of fxfactor"
            )
        return Step("compare with PyTorch", 0.0, len(images), time.monotonic() - started, difference, argmax)

    def _key(self, network: IntegerNetwork) -> str:
        digest = hashlib.sha256(network.model.SerializeToString(deterministic=True))
        digest.update(f"{FORMAT} {VERSION} {self.board} {self.python or sys.executable}".encode())
        return digest.hexdigest()[:32]

    # ---- the process ----

    def _events(self, folder: Path) -> Iterator[dict[str, Any]]:
        """Start the worker and yield what it sends; ends it with everything it started, whatever happens here."""
        interpreter = str(self.python or sys.executable)
        reading, writing = os.pipe()
        log = folder / "log"
        try:
            with log.open("wb") as output:
                process = subprocess.Popen(
                    [interpreter, str(WORKER), str(folder / "request.json"), str(writing)],
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    cwd=folder,
                    env=_environment(),
                    pass_fds=(writing,),
                    start_new_session=True,
                )
        except OSError as error:
            os.close(reading)
            raise FinnError(
                f"required: a Python interpreter; found: {interpreter!r} ({error.strerror}); see python="
            ) from error
        finally:
            os.close(writing)
        last = "start"
        try:
            for event in _read_lines(reading, time.monotonic() + self.timeout_s):
                last = event.get("step", last)
                yield event
                if event["event"] == "done":
                    return
            self._explain_end(process, last, log)
        except TimeoutError as error:
            raise FinnError(
                f"FINN was stopped in step {last} after {self.timeout_s:g} s; required: more time (timeout_s=), a smaller "
                "network, or a coarser level with fewer branches"
            ) from error
        finally:
            _end(process)
            os.close(reading)

    def _explain_end(self, process: subprocess.Popen[bytes], step: str, log: Path) -> None:
        status = process.wait()
        if status < 0:
            name = signal.Signals(-status).name
            raise FinnError(
                f"FINN's process was killed by {name} in step {step}; the usual cause is too little memory: close other "
                "programs, or choose a smaller input size, and call again"
            )
        tail = " | ".join(log.read_text(errors="replace").strip().splitlines()[-3:])
        remedy = INSTALL if step == "start" else "report it with the file as a defect of fxfactor"
        raise FinnError(f"FINN's process ended with status {status} after {step}; its last words: {tail}; {remedy}")

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
            _publish(Path(event["folder"]), kept)
        elif kind == "reports":
            outcome.reports = event
            if not any(step.name == "step_create_dataflow_partition" for step in outcome.steps):
                partition = json.loads((kept / "partition.json").read_text())
                outcome.software, outcome.floating = tuple(partition["software"]), tuple(partition["floating"])
        elif kind == "generated":
            outcome.generated = event["folders"]
        elif kind == "stop":
            raise FinnError(_explain(event))


def _environment() -> dict[str, str]:
    """This process' environment, with numerical libraries kept to one thread: FINN's graphs are many small products."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONDONTWRITEBYTECODE": "1"}


def _read_lines(descriptor: int, deadline: float) -> Iterator[dict[str, Any]]:
    """JSON lines from a pipe until its other end closes. Raises TimeoutError at `deadline` (time.monotonic)."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                raise TimeoutError
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)


def _end(process: subprocess.Popen[bytes]) -> None:
    """Wait a moment for a process that is done, else kill it with everything it started."""
    try:
        process.wait(timeout=5 if process.poll() is not None else 0.5)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _publish(folder: Path, kept: Path) -> None:
    """Move a finished folder to its place in the cache, and drop what was used longest ago."""
    try:
        folder.rename(kept)
    except OSError:  # another run was faster: its models are the same
        return
    entries = sorted((entry for entry in kept.parent.iterdir() if not entry.name.startswith(".")), key=_age)
    for entry in entries[:-KEPT]:
        shutil.rmtree(entry, ignore_errors=True)


def _age(entry: Path) -> float:
    return entry.stat().st_mtime


def _sweep(store: Path) -> None:
    """Remove folders of runs that were killed and could not clean up themselves."""
    for entry in store.glob(".run-*-*"):
        owner = entry.name.split("-")[1]
        if owner.isdigit() and not _is_alive(int(owner)):
            shutil.rmtree(entry, ignore_errors=True)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _explain(event: dict[str, Any]) -> str:
    """The message for a worker that stopped on purpose."""
    kind, step = event["kind"], event.get("step", "")
    if kind == "missing":
        return f"required: finn-plus {VERSION}; found: {event['found']}; {INSTALL}"
    if kind == "version":
        return f"required: finn-plus {VERSION}, whose steps this was made for; found: {event['found']}; {INSTALL}"
    if kind == "memory":
        return "FINN ran out of memory; close other programs, or choose a smaller input size, and call again"
    if kind == "differs":
        return (
            f"FINN's {step} changed the result: {event['different_integers']} output integers differ on {event['images']} "
            "images; required: none; report it with the file as a defect"
        )
    return (
        f"FINN's {step} refused the network with: {event['found']}; fxfactor.finn.check found nothing, so report it with "
        "the file as a defect of fxfactor"
    )


def _layers(reports: dict[str, Any], network: IntegerNetwork) -> tuple[HardwareLayer, ...]:
    cycles = reports["reports"]["estimate_layer_cycles"]
    resources = reports["reports"]["estimate_layer_resources"]
    tensors: dict[str, list[str]] = reports["tensors"]
    reader = {name: tensors[node][0] for node, names in tensors.items() for name in names[1:]}
    graph = network.model.graph
    known = {value.name for value in (*graph.value_info, *graph.output)}
    layers = []
    for node, used in resources.items():
        if node == "total":
            continue
        found = Resources(round(used["LUT"]), round(used["BRAM_18K"]), round(used["DSP"]), round(used["URAM"]))
        # FINN renames the last tensor and gives new names to those it adds: the next tensor tells what they belong to
        output, *inputs = tensors[node]
        candidates = (output, reader.get(output, graph.output[0].name), *inputs)
        site = _plain(next((name for name in candidates if name in known), graph.output[0].name))
        layers.append(HardwareLayer(node, reports["kinds"][node], site, int(cycles.get(node, 0)), found))
    return tuple(layers)


def _plain(tensor: str) -> str:
    """The site in a tensor's name: the builder adds suffixes for what a module is made of, and numbers."""
    for suffix in (".windows", ".flat", ".sign"):
        tensor = tensor.removesuffix(suffix)
    return tensor.partition("#")[0]
