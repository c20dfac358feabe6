"""`run_yosys.py SCRIPT`: run a Yosys script in this process, a line at a time. Nothing of fxfactor is imported."""

from __future__ import annotations

import sys
from pathlib import Path


def main(script: Path) -> None:
    """Run the script; Yosys ends the process with status 1 and its message where a line fails."""
    from pyosys import libyosys

    design = libyosys.Design()
    for line in script.read_text().splitlines():
        libyosys.run_pass(line, design)


if __name__ == "__main__":
    sys.path.pop(0)  # this folder: its module names must not stand in for others
    main(Path(sys.argv[1]))
