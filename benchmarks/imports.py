"""How long importing takes: fxfactor beside torch and Brevitas, each in a fresh process, in turn.

python benchmarks/imports.py --repeats 7
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys

STATEMENTS = {
    "torch and brevitas.nn": "import torch, brevitas.nn",
    "fxfactor, all public names and passes": "from fxfactor import *; import fxfactor.passes",
    "fxfactor alone": "import fxfactor",
    "fxfactor --help": "from fxfactor.cli import main; main(['--help'])",
}
TIMED = """
import contextlib, io, time
start = time.process_time()
with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(SystemExit):
    exec({statement!r})
print(time.process_time() - start)
"""


def cpu_seconds(statement: str) -> float:
    code = TIMED.format(statement=statement)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of importing fxfactor beside torch and Brevitas.")
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    seconds: dict[str, list[float]] = {what: [] for what in STATEMENTS}
    for _ in range(repeats):
        for what, statement in STATEMENTS.items():
            seconds[what].append(cpu_seconds(statement))
    base = seconds["torch and brevitas.nn"]
    print(f"CPU seconds, median of {repeats} (least … most); ratio to the first line")
    for what, values in seconds.items():
        ratios = sorted(a / b for a, b in zip(values, base, strict=True))
        spread = f"({min(values):.2f} … {max(values):.2f})"
        print(f"{what:40s} {statistics.median(values):6.2f} {spread:16s} {statistics.median(ratios):5.2f}×", end="")
        print(f" ({ratios[0]:.2f} … {ratios[-1]:.2f})")


if __name__ == "__main__":
    main()
