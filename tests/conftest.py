"""Every test runs on one thread, from one seed, with warnings as errors."""

from __future__ import annotations

import re
import zlib
from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

# What comes out of other people's code and means nothing for ours.
_FROM_ELSEWHERE = (":Named tensors:UserWarning",)  # Brevitas 0.13.0 with torch 2.12, once in a process


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--slice", metavar="I/N", help="only the tests whose name falls into slice I (0 … N−1) of N")


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    for line in ("error", *(f"ignore{rest}" for rest in _FROM_ELSEWHERE)):
        config.addinivalue_line("filterwarnings", line)


def _keep_slice(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep one slice of the tests, chosen by the hash of their names: the same ones in every process and on every machine."""
    wanted = config.getoption("--slice")
    if wanted is None:
        return
    numbers = re.fullmatch(r"(\d+)/(\d+)", wanted)
    if numbers is None or int(numbers[1]) >= int(numbers[2]):
        raise pytest.UsageError(f"--slice must be I/N with I from 0 to N−1, found {wanted!r}")
    index, count = int(numbers[1]), int(numbers[2])
    left = [item for item in items if zlib.crc32(item.nodeid.encode()) % count != index]
    config.hook.pytest_deselected(items=left)
    items[:] = [item for item in items if item not in set(left)]


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the slice that was asked for. Skip what needs finn-plus where it is not installed."""
    _keep_slice(config, items)
    try:
        version("finn-plus")
    except PackageNotFoundError:
        pass
    else:
        return
    skip = pytest.mark.skip(reason="finn-plus is not installed: pip install 'fxfactor[finn]'")
    for item in items:
        if item.get_closest_marker("finn") is not None:
            item.add_marker(skip)


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
