"""The curve before a quantizer: its gradients, its other form, and that it never falls."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.func import functional_call

from fxfactor.quantization.threshold_curve import ThresholdCurve


def bent(pieces: int, low: float, seed: int = 0) -> ThresholdCurve:
    generator = torch.Generator().manual_seed(seed)
    curve = ThresholdCurve(pieces, low, 3.0).double()
    with torch.no_grad():
        curve.log_slopes.copy_(torch.randn(pieces, generator=generator))
        curve.knots.add_(torch.randn(pieces - 1, generator=generator))  # some overtake others
    return curve


def values(*shape: int) -> Tensor:
    return 3 * torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("low", [0.0, -3.0])
@pytest.mark.parametrize("pieces", [2, 5])
def test_gradients_are_those_of_finite_differences(pieces, low):
    curve = bent(pieces, low)

    def computed(x: Tensor, knots: Tensor, log_slopes: Tensor) -> Tensor:
        return functional_call(curve, {"knots": knots, "log_slopes": log_slopes}, (x,))

    x = values(2, 3, 4, 4).requires_grad_()
    assert torch.autograd.gradcheck(computed, (x, curve.knots, curve.log_slopes))


@pytest.mark.parametrize("low", [0.0, -3.0])
@pytest.mark.parametrize("pieces", [2, 4, 9])
def test_it_rises_through_zero_and_is_linear_between_the_knots(pieces, low):
    curve = bent(pieces, low)
    x = torch.linspace(-9, 9, 4001, dtype=torch.float64)
    with torch.no_grad():
        y = curve(x)
        knots, slopes = curve.knots.sort().values, curve.log_slopes.exp()
        assert (y.diff() > 0).all()
        assert curve(torch.zeros(1, dtype=torch.float64)).abs() < 1e-12
        steps, middles = y.diff() / x.diff(), (x[1:] + x[:-1]) / 2
        clear = ((middles[:, None] - knots).abs() > 0.005).all(1)
        wanted = slopes[(middles[:, None] > knots).sum(1)]
    torch.testing.assert_close(steps[clear], wanted[clear])


@pytest.mark.parametrize("pieces", [2, 4, 16])
@pytest.mark.parametrize("low", [0.0, -3.0])
def test_the_chain_of_prelus_is_the_same_function(pieces, low):
    curve, x = bent(pieces, low, seed=pieces), values(3, 4, 5, 5)
    with torch.no_grad():
        torch.testing.assert_close(curve.as_chain()(x), curve(x), rtol=1e-12, atol=1e-12)


def test_it_is_the_identity_to_begin_with():
    curve, x = ThresholdCurve(4, -2.0, 2.0), torch.randn(5, 6)
    assert torch.equal(curve(x), x)
    torch.testing.assert_close(curve.as_chain()(x), x, rtol=1e-6, atol=1e-6)
    assert curve.knots.tolist() == [-1.0, 0.0, 1.0]
