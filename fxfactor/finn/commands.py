"""Commands that others wrote, run until a deadline; none is left behind."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from fxfactor.errors import FinnError


@dataclass
class Commands:
    """Runs commands until a deadline (time.monotonic); all that are running end when this is left, whatever happens."""

    deadline: float
    running: set[subprocess.Popen[str]] = field(default_factory=set)

    def __enter__(self) -> Commands:
        return self

    def __exit__(self, *_: object) -> None:
        for process in list(self.running):
            end(process)

    def run(self, command: Sequence[str | Path], folder: Path, what: str, root: Path | None = None) -> str:
        """What a command prints. Raises FinnError with its last words where it fails, and where time is up."""
        environment = {**os.environ, **({"VERILATOR_ROOT": str(root)} if root else {})}
        process = subprocess.Popen(
            [str(part) for part in command],
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env=environment,
            start_new_session=True,
        )
        self.running.add(process)
        try:
            output, _ = process.communicate(timeout=max(0.01, self.deadline - time.monotonic()))
        except subprocess.TimeoutExpired as error:
            raise FinnError(f"stopped while {what}; required: more time (timeout_s=), or a smaller network") from error
        finally:
            end(process)
            self.running.discard(process)
            if process.stdout is not None:
                process.stdout.close()
        if process.returncode:
            raise FinnError(
                f"{what} failed with status {process.returncode}: {_tail(output)}; report it with the file as a defect of "
                "fxfactor"
            )
        return output


def end(process: subprocess.Popen[str]) -> None:
    """Kill a process with everything it started, if it still runs."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _tail(output: str) -> str:
    """The first lines that speak of an error, or the last ones."""
    lines = [line for line in output.splitlines() if re.search("[Ee]rror|ERROR", line) and "0 errors" not in line]
    return " | ".join(lines[:3] or output.splitlines()[-3:])
