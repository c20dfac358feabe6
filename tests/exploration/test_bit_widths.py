"""One network at many bits."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from small_exploration import TRAIN, model

import fxfactor


@pytest.mark.parametrize("boundary_bits", [8, 4, None])
def test_networks_between_the_fewest_and_the_most_bits_are_those_that_quantizing_gives(
    boundary_bits: int | None,
) -> None:
    from fxfactor.exploration.bit_widths import LEAST_BITS, MOST_BITS, BitWidths
    from fxfactor.passes import Quantize
    from fxfactor.quantization.calibrate import count_activations, set_ranges
    from fxfactor.quantization.plain_copy import freeze

    graph = fxfactor.transform(model(), level=2, calibration=TRAIN).eval()

    def plan(*pair: int) -> fxfactor.Plan:
        return fxfactor.Plan.uniform(fxfactor.capture(model(), TRAIN[0]), 2, *pair, boundary_bits)

    def quantized(*pair: int) -> Any:
        return fxfactor.Pipeline(Quantize(plan=plan(*pair)))(graph).graph.eval()

    precisions = BitWidths(quantized(8, LEAST_BITS), quantized(8, MOST_BITS))
    assert precisions.alike
    histograms = count_activations(precisions.network, TRAIN)
    for pair in ((2, 2), (3, 6), (8, 4), (8, 8)):
        wanted = set_ranges(quantized(*pair), histograms)
        found = precisions.frozen(plan(*pair), pair[1], histograms)
        torch.testing.assert_close(found(TRAIN[0]), freeze(wanted)(TRAIN[0]), rtol=0, atol=0)
        assert precisions.cost(plan(*pair), pair[1]).layers == fxfactor.cost(wanted).layers
        assert precisions.cost(plan(*pair), pair[1]).total_weight_bits == fxfactor.cost(wanted).total_weight_bits
