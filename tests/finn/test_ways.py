"""Where the cheapest ways to build do not fit the board: so many layers are built in another one as spare what is short."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized

import fxfactor
import fxfactor.finn
from fxfactor.errors import InfeasibleError
from fxfactor.finn import ways as module
from fxfactor.finn.estimation import Job, estimate_network
from fxfactor.finn.integer.builder import REQUANT
from fxfactor.finn.integer.forms import Choices, Staircase
from fxfactor.finn.process.load import load_integers
from fxfactor.finn.target import Target
from fxfactor.finn.ways import choose_ways, spare

TARGET = Target("ZCU104", target_fps=20_000)
LUTS_MORE = {8: 900.0, 16: 300.0, 32: 500.0}
"""Channels -> LUTs of thresholds beyond those of the multiplication."""


def _quantizers() -> list[Staircase]:
    return [Staircase(f"site{n}", f"tensor{n}", n, (8, 8), "INT12", "UINT4", 16, 20, 20) for n in LUTS_MORE]


def _fake_prices(wanted: Sequence[Any], target: Target, emphases: Sequence[Any]) -> dict[Any, list[dict[str, float]]]:
    """A multiplication takes two DSPs, thresholds none, and look-up tables by their channels."""
    found = {}
    for chain in wanted:
        kind, attributes = chain[0]
        multiplies = kind == REQUANT
        luts = 100.0 + (0.0 if multiplies else LUTS_MORE[dict(attributes)["NumChannels"]])
        found[chain] = [{"lut": luts, "bram": 0.0, "dsp": 2.0 * multiplies, "uram": 0.0, "cycles": 64.0}] * len(
            emphases
        )
    return found


def test_what_needs_least_of_the_others_is_built_in_another_way_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "price_foldings", _fake_prices)

    def multiplied(amount: float) -> frozenset[str] | None:
        found = spare([], _quantizers(), TARGET, None, None, "dsp", amount)
        return None if found is None else found.multiplied

    assert multiplied(1) == multiplied(2) == {"tensor8", "tensor32"}
    assert multiplied(3) == {"tensor8"}
    assert multiplied(6) == frozenset()
    assert multiplied(7) is None  # all together spare no more than six
    assert spare([], _quantizers(), TARGET, None, None, "lut", 1) is None  # the cheapest are the smallest already
    assert spare([], _quantizers(), TARGET, None, True, "dsp", 1) is None  # as asked for
    assert spare([], [], TARGET, None, None, "dsp", 1) is None


@pytest.mark.finn
def test_a_network_that_fits_with_fewer_multiplications_is_not_refused(tmp_path: Path, cache: Path) -> None:
    network, file = randomized(ResidualNet(16)), tmp_path / "model.onnx"
    made = fxfactor.transform(network, level=0, bits=8, example_inputs=torch.randn(1, 3, 16, 16))
    fxfactor.export(made, file, target="finn")
    free = fxfactor.finn.estimate(file, "ZCU104", 20_000, cache=cache)
    limits = {"lut": free.total.lut, "dsp": int(0.95 * free.total.dsp)}
    target = Target("ZCU104", target_fps=20_000, limits=limits)
    integers = load_integers(file, Choices(look=True))
    plain = choose_ways(integers.grouped, integers.staircases, target)
    job = Job(file, target, cache=cache, ways=plain)
    with pytest.raises(InfeasibleError) as told, job.folder() as folder:
        job.run(folder)
    assert (told.value.resource, told.value.missing > 0) == ("dsp", True)
    found = fxfactor.finn.estimate(file, "ZCU104", 20_000, limits=limits, cache=cache)
    assert found.fits
    assert 0 < sum(layer.kind.startswith(REQUANT) for layer in found.layers) < len(plain.multiplied)
    whether_or_not = estimate_network(made, torch.randn(1, 3, 16, 16), target)  # what search and compress ask for
    assert (whether_or_not.fits, whether_or_not.total) == (True, found.total)
    with pytest.raises(InfeasibleError, match=r"at most \d+ DSP slices .*every folding needs at least"):
        fxfactor.finn.estimate(file, "ZCU104", 20_000, requant=True, limits=limits, cache=cache)
