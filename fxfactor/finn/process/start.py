"""A script that needs FINN, as a process: started, listened to, stopped in time, and its end explained."""

from __future__ import annotations

import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fxfactor.errors import FinnError
from fxfactor.finn.process.worker import VERSION

WORKER = Path(__file__).with_name("worker.py")
COST_WORKER = Path(__file__).with_name("cost_worker.py")
INSTALL = f"install it with `pip install finn-plus=={VERSION} psutil`, or name another interpreter with python="


def events(script: Path, folder: Path, python: str | Path | None, timeout_s: float) -> Iterator[dict[str, Any]]:
    """Start a script, `WORKER` or `COST_WORKER`, on request.json in `folder` and yield what it sends, until it is done.

    Whatever happens here, the worker ends with everything it started. Raises FinnError where it does not start, is not
    done after `timeout_s` seconds, or dies.
    """
    interpreter = str(python or sys.executable)
    reading, writing = os.pipe()
    log = folder / "log"
    try:
        with log.open("wb") as output:
            process = subprocess.Popen(
                [interpreter, str(script), str(folder / "request.json"), str(writing)],
                stdin=subprocess.PIPE,  # which the worker sees end when this process does, however it ends
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=folder,
                env=environment(),
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
        for event in read_lines(reading, time.monotonic() + timeout_s):
            last = event.get("step", last)
            yield event
            if event["event"] == "done":
                return
        _explain_end(process, last, log)
    except TimeoutError as error:
        raise FinnError(
            f"FINN was stopped in step {last} after {timeout_s:g} s; required: more time (timeout_s=), a smaller "
            "network, or a coarser level with fewer branches"
        ) from error
    finally:
        _end(process)
        os.close(reading)
        if process.stdin is not None:
            process.stdin.close()


def _explain_end(process: subprocess.Popen[bytes], step: str, log: Path) -> None:
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


def environment() -> dict[str, str]:
    """This process' environment, with numerical libraries kept to one thread: FINN's graphs are many small products."""
    return {**os.environ, "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1"), "PYTHONDONTWRITEBYTECODE": "1"}


def read_lines(descriptor: int, deadline: float) -> Iterator[dict[str, Any]]:
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


SAME_HARDWARE = "required: fifo_depths for the streams of this hardware"
SIMULATE_THE_SAME = (
    "simulate the same file with the same board, target_fps, clock_ns, limits, grouped, requant and folding"
)


def explain(event: dict[str, Any]) -> str:
    """The message for a worker that stopped on purpose."""
    kind, step = event["kind"], event.get("step", "")
    if kind == "missing":
        return f"required: finn-plus {VERSION}; found: {event['found']}; {INSTALL}"
    if kind == "version":
        return f"required: finn-plus {VERSION}, whose steps this was made for; found: {event['found']}; {INSTALL}"
    if kind == "stream":
        return f"{SAME_HARDWARE}; found: nothing for what {event['found']} writes; {SIMULATE_THE_SAME}"
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
