"""The second order of what a change inside a network does to its output, against what it does."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fxfactor.planning.gradients import DRAWS, TEMPERATURE, both_measures, gradients_of


def logits_of(x: Tensor) -> Tensor:
    weight = torch.randn(6, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.tanh(x) @ weight


def inner(count: int) -> Tensor:
    x = torch.randn(count, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    return x.requires_grad_(True)


def test_the_divergence_of_the_softened_outputs_is_predicted() -> None:
    x = inner(2000)
    (gradients,) = gradients_of(logits_of(x), [x], torch.Generator().manual_seed(0))
    assert gradients.shape == (2000, DRAWS, 6)
    delta = 0.05 * torch.randn(2000, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(3))
    seen, squares = both_measures(delta, gradients).tolist()
    with torch.no_grad():
        p, q = ((logits_of(each) / TEMPERATURE).log_softmax(1) for each in (x, x + delta))
        divergence = float((p.exp() * (p - q)).sum()) * TEMPERATURE**2
    assert 0.5 * seen == pytest.approx(divergence, rel=0.05)
    assert squares == pytest.approx(float(delta.square().sum()))


def test_other_outputs_are_seen_in_units_of_their_own_deviation() -> None:
    """A change of the whole output by its standard deviation counts 1 for each image, whatever the output's scale."""
    for scale in (1e-3, 1e3):
        x = torch.randn(400, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(4)).requires_grad_(True)
        (gradients,) = gradients_of(scale * x, [x], torch.Generator().manual_seed(0))
        delta = torch.randn(400, 5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(5))
        seen, _ = both_measures(delta, gradients).tolist()
        assert seen / 400 == pytest.approx(1.0, rel=0.1)


def test_a_tensor_that_the_output_does_not_depend_on_has_no_gradient() -> None:
    x, aside = inner(3), inner(3)
    _, gradients = gradients_of((logits_of(x), "no tensor", aside.detach()), [x, aside], torch.Generator())
    assert gradients.shape == (3, DRAWS, 6)
    assert not gradients.any()


def test_the_same_generator_gives_the_same_draws() -> None:
    x = inner(8)
    first, second = (gradients_of(logits_of(x), [x], torch.Generator().manual_seed(7))[0] for _ in range(2))
    assert torch.equal(first, second)
