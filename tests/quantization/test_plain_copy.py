"""A frozen network computes what the quantized one computes."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, fingerprint, random_batches, randomized

import fxfactor
from fxfactor.quantization.plain_copy import freeze

pytest.importorskip("scipy")


@pytest.mark.parametrize(("level", "bits"), [(0, 8), (2, 4), (3, (None, 3)), (2, (2, None))])
def test_a_frozen_network_gives_the_same_outputs(level: int, bits: object) -> None:
    images = random_batches()
    qmodel = fxfactor.transform(randomized(ResidualNet(16)), level=level, bits=bits, calibration=images)  # type: ignore[arg-type]
    before = fingerprint(qmodel)
    frozen = freeze(qmodel)
    assert not any(type(module).__module__.startswith("brevitas") for module in frozen.modules())
    with torch.no_grad():
        torch.testing.assert_close(frozen(images[0]), qmodel.eval()(images[0]), rtol=0, atol=1e-6)
    assert fingerprint(qmodel) == before
