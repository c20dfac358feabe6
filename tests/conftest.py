"""Every test runs on one thread, from one seed, with warnings as errors."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

import pytest
import torch

# What comes out of other people's code and means nothing for ours.
_FROM_ELSEWHERE = (":Named tensors:UserWarning",)  # Brevitas 0.13.0 with torch 2.12, once in a process


def pytest_configure(config: pytest.Config) -> None:
    torch.set_num_threads(1)
    for line in ("error", *(f"ignore{rest}" for rest in _FROM_ELSEWHERE)):
        config.addinivalue_line("filterwarnings", line)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Skip what needs finn-plus where it is not installed."""
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
