"""Running the command line in this process."""

from __future__ import annotations

import pytest

from fxfactor.cli.app import main

NETS = """
from torch import nn

def small(first=16):
    return nn.Sequential(
        nn.Conv2d(3, first, 3, padding=1), nn.BatchNorm2d(first), nn.ReLU(),
        nn.Conv2d(first, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )

class Nets:
    ready = small()

def wrong():
    return 3
"""


SMALL = ["cli_nets:small", "--input-size", "3x16x16"]


def run(*arguments: str) -> int:
    with pytest.raises(SystemExit) as stopped:
        main(list(arguments))
    return int(stopped.value.code or 0)


def error_of(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 1) -> str:
    assert run(*arguments) == code
    captured = capsys.readouterr()
    assert "Traceback" not in captured.err
    return captured.err
