"""estimate: its figures, its cache, and each way in which it can fail, with what it says then and what it leaves."""

from __future__ import annotations

import os
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from finn_helpers import outputs_in_float64
from rich.console import Console
from small_networks import TAKEN, build

import fxfactor.finn
from fxfactor.errors import FinnError, FxfactorError
from fxfactor.finn import estimation
from fxfactor.finn.process import cache as kept_models
from fxfactor.finn.process import start as process

Write = Callable[..., Path]


def leftovers(folder: Path) -> list[str]:
    """What a failed run left in the cache."""
    return sorted(entry.name for entry in folder.iterdir()) if folder.exists() else []


def script(path: Path, text: str) -> Path:
    """An executable that stands in for an interpreter."""
    path.write_text(f"#!{sys.executable}\n{text}")
    path.chmod(path.stat().st_mode | stat.S_IEXEC)
    return path


# ---- with FINN ----


@pytest.mark.finn
def test_figures_and_checks(write: Write, cache: Path) -> None:
    model = build(TAKEN["residual, stride 2, more channels"])
    images = torch.randn(5, 3, 8, 8)
    steps: list[str] = []
    estimate = fxfactor.finn.estimate(
        write(model),
        target_fps=5000,
        verify=(images, outputs_in_float64(model, images)),
        cache=cache,
        progress=steps.append,
    )
    assert steps[0] == "step_convert_to_hw"
    assert steps[-1] == "step_generate_estimate_reports"
    assert estimate.fps >= 5000
    assert estimate.fps == pytest.approx(1e9 / estimate.clock_ns / estimate.bottleneck.cycles)
    assert estimate.total.lut == sum(layer.resources.lut for layer in estimate.layers) > 0
    assert estimate.steps[0].images == 5
    assert estimate.steps[0].difference is not None
    assert estimate.steps[0].difference < 1e-6
    assert [step.images for step in estimate.steps if step.name == "step_minimize_bit_width"] == [5]
    assert not estimate.software
    assert not estimate.floating
    assert estimate.fits
    sites = set(estimate.by_site())
    assert {"1", "4.body.0", "4.shortcut.0", "6"} <= sites  # the convolutions and the classifier, by module path
    console = Console(width=120, record=True)
    with console.capture() as capture:
        console.print(estimate)
    assert "Estimates before synthesis" in " ".join(capture.get().split())
    assert f"{estimate.total.lut:,} ({estimate.finn_total.lut:,})" in capture.get()
    assert "4.body.0" in capture.get()


@pytest.mark.finn
def test_another_target_repeats_only_folding(write: Write, tmp_path: Path) -> None:
    file = write(build(TAKEN["chain"]))
    first = fxfactor.finn.estimate(file, target_fps=1000, cache=tmp_path / "cache")
    second = fxfactor.finn.estimate(file, target_fps=20_000, cache=tmp_path / "cache")
    names = [step.name for step in second.steps]
    assert "step_convert_to_hw" in [step.name for step in first.steps]
    assert "step_convert_to_hw" not in names
    assert "folding" in names
    assert second.fps > first.fps
    assert second.software == first.software == ()
    assert len(leftovers(tmp_path / "cache")) == 1


@pytest.mark.slow
@pytest.mark.finn
def test_figures_are_those_without_the_fast_look_ups_and_with_all_that_finn_imports(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = write(build(TAKEN["dense block"]))
    fast = fxfactor.finn.estimate(file, cache=tmp_path / "fast")
    slow_folder = tmp_path / "slow"
    slow_folder.mkdir()
    (slow_folder / "worker.py").write_text(process.WORKER.read_text())
    shutil.copytree(process.WORKER.with_name("folding"), slow_folder / "folding")
    (slow_folder / "fast_lookups.py").write_text("def use_fast_lookups():\n    pass\n")
    for name in ("grouped_mvau.py", "integer_requant.py"):
        shutil.copy(process.WORKER.with_name(name), slow_folder)
    monkeypatch.setattr(estimation, "WORKER", slow_folder / "worker.py")
    monkeypatch.setenv("FXFACTOR_WHOLE_FINN", "1")
    slow = fxfactor.finn.estimate(file, cache=tmp_path / "slow-cache")
    assert slow.layers == fast.layers
    assert slow.fps == fast.fps


@pytest.mark.finn
def test_what_finn_needs_after_all_is_imported_by_a_second_start(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "process"
    shutil.copytree(process.WORKER.parent, folder)
    stand_ins = folder / "stand_ins.py"
    stand_ins.write_text(stand_ins.read_text().replace('"pandas"', '"qonnx.util.basic"'))
    monkeypatch.setattr(estimation, "WORKER", folder / "worker.py")
    assert fxfactor.finn.estimate(write(build(TAKEN["chain"])), cache=tmp_path / "cache").fps > 0


@pytest.mark.finn
def test_another_interpreter_and_board(write: Write, cache: Path) -> None:
    estimate = fxfactor.finn.estimate(
        write(build(TAKEN["chain"])), "Pynq-Z2", clock_ns=10.0, python=sys.executable, cache=cache
    )
    assert estimate.part.startswith("xc7z020")
    assert estimate.available is not None
    assert estimate.available.dsp == 220


@pytest.mark.finn
def test_out_of_time(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FinnError, match=r"stopped in step .* after 0.3 s; required: more time"):
        fxfactor.finn.estimate(write(build(TAKEN["chain"])), timeout_s=0.3, cache=tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


@pytest.mark.finn
def test_killed_half_way(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    started = []
    popen = process.subprocess.Popen

    def start(*args: object, **kwargs: object) -> object:
        started.append(popen(*args, **kwargs))  # type: ignore[call-overload]
        return started[-1]

    monkeypatch.setattr(process.subprocess, "Popen", start)

    def kill(step: str) -> None:
        if step == "step_convert_to_hw":
            os.kill(started[-1].pid, signal.SIGKILL)

    with pytest.raises(
        FinnError, match="killed by SIGKILL in step step_convert_to_hw; the usual cause is too little memory"
    ):
        fxfactor.finn.estimate(write(build(TAKEN["chain"])), cache=tmp_path / "cache", progress=kill)
    assert leftovers(tmp_path / "cache") == []


# ---- without FINN ----


def test_finn_absent(write: Write, tmp_path: Path) -> None:
    empty = script(tmp_path / "python", "import runpy, sys\nsys.path = [p for p in sys.path if 'site-packages' not in p]\n"
                   "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n")  # fmt: skip
    with pytest.raises(
        FinnError, match=r"required: finn-plus 1.6.1; found: no package.*pip install finn-plus==1.6.1 psutil"
    ):
        _estimate_without_numpy(write, tmp_path, empty)
    assert leftovers(tmp_path / "cache") == []


def test_finn_of_another_version(write: Write, tmp_path: Path) -> None:
    text = (
        "import importlib.metadata, runpy, sys\nimportlib.metadata.version = lambda name: '9.9'\n"
        "sys.argv = sys.argv[1:]\nrunpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    other = script(tmp_path / "python", text)
    with pytest.raises(FinnError, match=r"required: finn-plus 1.6.1.*found: 9.9; install it"):
        _estimate_without_numpy(write, tmp_path, other)
    assert leftovers(tmp_path / "cache") == []


def _estimate_without_numpy(write: Write, tmp_path: Path, python: Path) -> None:
    fxfactor.finn.estimate(write(build(TAKEN["chain"])), python=python, cache=tmp_path / "cache")


def test_no_interpreter(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FinnError, match="required: a Python interpreter; found: '/no/python'"):
        fxfactor.finn.estimate(write(build(TAKEN["chain"])), python="/no/python", cache=tmp_path / "cache")
    assert leftovers(tmp_path / "cache") == []


def test_the_interpreter_fails(write: Write, tmp_path: Path) -> None:
    broken = script(tmp_path / "python", "raise SystemExit('no luck')\n")
    with pytest.raises(FinnError, match="ended with status 1 after start; its last words: no luck"):
        fxfactor.finn.estimate(write(build(TAKEN["chain"])), python=broken, cache=tmp_path / "cache")


@pytest.mark.parametrize("content", [b"", b"not onnx at all", bytes(range(256)) * 50])
def test_a_corrupt_file(content: bytes, tmp_path: Path) -> None:
    file = tmp_path / "model.onnx"
    file.write_bytes(content)
    with pytest.raises(FinnError, match=r"required: a (QONNX file|network); found: .*fxfactor.export"):
        fxfactor.finn.estimate(file, cache=tmp_path / "cache")
    with pytest.raises(FinnError, match="required: a"):
        fxfactor.finn.check(file)
    assert leftovers(tmp_path / "cache") == []


def test_half_a_file(write: Write, tmp_path: Path) -> None:
    file = write(build(TAKEN["chain"]))
    file.write_bytes(file.read_bytes()[:-1000])
    with pytest.raises(FinnError, match="is not readable as ONNX"):
        fxfactor.finn.estimate(file, cache=tmp_path / "cache")


def test_arguments_are_looked_at_first(write: Write, tmp_path: Path) -> None:
    with pytest.raises(FinnError, match="found: nothing at"):
        fxfactor.finn.estimate(tmp_path / "none.onnx", cache=tmp_path)
    file = write(build(TAKEN["chain"]))
    with pytest.raises(
        FinnError,
        match="required: a board that FINN knows; found: 'ZCU105'; choose from ZCU104, KV260_SOM, AUP-ZU3_8GB, Pynq-Z2",
    ):
        fxfactor.finn.estimate(file, "ZCU105", cache=tmp_path)
    with pytest.raises(FinnError, match="clock_ns > 0 and target_fps > 0"):
        fxfactor.finn.estimate(file, clock_ns=0, cache=tmp_path)
    images = np.zeros((2, 3, 8, 8), np.float32)
    with pytest.raises(FinnError, match="as many outputs as inputs"):
        fxfactor.finn.estimate(file, verify=(images, np.zeros((1, 10))), cache=tmp_path)
    with pytest.raises(FinnError, match="required: images of shape"):
        fxfactor.finn.estimate(file, verify=(images[:, :2], np.zeros((2, 10))), cache=tmp_path)
    with pytest.raises(FinnError, match="required: outputs of shape"):
        fxfactor.finn.estimate(file, verify=(images, np.zeros((2, 9))), cache=tmp_path)
    np.savez(tmp_path / "io.npz", x=images)
    with pytest.raises(FxfactorError, match="write an .npz file with 'x' and 'y'"):
        fxfactor.finn.estimate(file, verify=tmp_path / "io.npz", cache=tmp_path)


def test_outputs_of_another_network_stop_it_before_finn(write: Write, tmp_path: Path) -> None:
    images = torch.randn(3, 3, 8, 8)
    other = outputs_in_float64(build(TAKEN["chain"], seed=1), images)
    with pytest.raises(FinnError, match=r"differs from the outputs given by .* of the largest on 3 images"):
        fxfactor.finn.estimate(
            write(build(TAKEN["chain"])), verify=(images, other), python="/no/python", cache=tmp_path
        )


def test_folders_of_killed_runs_are_swept(tmp_path: Path) -> None:
    dead, alive = tmp_path / ".run-999999999-x", tmp_path / f".run-{os.getpid()}-y"
    dead.mkdir()
    alive.mkdir()
    kept_models.sweep(tmp_path)
    assert not dead.exists()
    assert alive.exists()


def test_importing_it_is_cheap() -> None:
    import subprocess

    code = "import sys, fxfactor.finn; print([m for m in ('finn', 'qonnx', 'onnx') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_lines_are_read_until_the_deadline() -> None:
    reading, writing = os.pipe()
    os.write(writing, b'{"event": "one"}\n{"ev')
    events = process.read_lines(reading, time.monotonic() + 3600)
    assert next(events) == {"event": "one"}
    threading.Timer(0.1, lambda: (os.write(writing, b'ent": "two"}\n'), os.close(writing))).start()
    assert list(events) == [{"event": "two"}]
    os.close(reading)


ENDS_S = 60.0
"""Far more than a process needs to end, far less than it takes when it does not."""

_LONG_STEP = """
import importlib.util, pathlib, sys, time
spec = importlib.util.spec_from_file_location("worker", {worker!r})
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)
def long_step():
    pathlib.Path({started!r}).touch()
    time.sleep(10**6)
worker.require_finn = long_step
worker.main(sys.argv[1:])
"""
"""A worker that is at one step for ever, and so never notices that nobody listens."""


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_the_worker_ends_with_who_started_it(how: signal.Signals, tmp_path: Path) -> None:
    import json
    import subprocess

    import psutil

    started, slow = tmp_path / "started", tmp_path / "slow.py"
    slow.write_text(_LONG_STEP.format(worker=str(process.WORKER), started=str(started)))
    (tmp_path / "request.json").write_text(json.dumps({"folder": str(tmp_path)}))
    code = (
        "from pathlib import Path\nfrom fxfactor.finn.process.start import events\n"
        f"list(events(Path({str(slow)!r}), Path({str(tmp_path)!r}), None, 10**6))\n"
    )
    caller = subprocess.Popen([sys.executable, "-c", code])
    while not started.exists():
        assert caller.poll() is None
        time.sleep(0.05)
    workers = psutil.Process(caller.pid).children(recursive=True)
    assert workers
    caller.send_signal(how)
    caller.wait()
    _, alive = psutil.wait_procs(workers, timeout=ENDS_S)
    for worker in alive:
        worker.kill()
    assert not alive


def _rewired(file: Path) -> None:
    """Make two nodes of a file need each other."""
    import onnx

    model = onnx.load(str(file))
    adds = [node for node in model.graph.node if node.op_type == "BatchNormalization"]
    adds[0].input[0] = adds[-1].output[0]
    onnx.save(model, str(file))


def test_a_graph_that_runs_in_a_circle(write: Write, tmp_path: Path) -> None:
    file = write(build(TAKEN["chain"]))
    _rewired(file)
    with pytest.raises(
        FinnError, match="required: a graph without circles; found: .* need each other: .*; write it again"
    ):
        fxfactor.finn.check(file)
    with pytest.raises(FinnError, match="without circles"):
        fxfactor.finn.estimate(file, cache=tmp_path / "cache")


def test_nodes_in_another_order_are_sorted(write: Write) -> None:
    import onnx

    file = write(build(TAKEN["chain"]))
    model = onnx.load(str(file))
    nodes = list(model.graph.node)[::-1]
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    onnx.save(model, str(file))
    assert fxfactor.finn.check(file) == []


def test_initializers_among_the_inputs_are_no_inputs_of_the_network(write: Write) -> None:
    import onnx

    file = write(build(TAKEN["chain"]))
    model = onnx.load(str(file))
    listed = {value.name for value in model.graph.input}
    for tensor in model.graph.initializer:
        if tensor.name not in listed:
            model.graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
    onnx.save(model, str(file))
    assert fxfactor.finn.check(file) == []
    model.graph.output.append(model.graph.output[0])
    onnx.save(model, str(file))
    assert [finding.found for finding in fxfactor.finn.check(file)] == [
        "an output that is another one too, or that layers read"
    ]


def test_stand_ins_are_there_for_as_long_as_asked_for_and_no_longer() -> None:
    code = """
import sys
from fxfactor.finn.process.stand_ins import Unused, stand_ins
before = list(sys.meta_path)
try:
    with stand_ins():
        import sympy
        assert sympy.anything is Unused
        raise KeyError
except KeyError:
    pass
assert sys.meta_path == before, sys.meta_path
assert "sympy" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
