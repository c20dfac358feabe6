"""Random inputs, and how far two outputs are apart."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, randomized
from torch.fx import GraphModule

from fxfactor import capture
from fxfactor.graph.compare import random_inputs, relative_difference


@pytest.fixture
def graph() -> GraphModule:
    return capture(randomized(ResidualNet()), torch.zeros(2, 3, 16, 16))


def test_random_inputs_are_those_of_the_capture_and_the_same_each_time(graph):
    (images,) = random_inputs(graph)
    assert images.shape == (2, 3, 16, 16)
    assert torch.equal(images, random_inputs(graph)[0])
    assert not torch.equal(images, random_inputs(graph, seed=1)[0])


def test_relative_difference():
    assert relative_difference(torch.tensor([1.0, -4.0]), torch.tensor([1.5, -4.0])) == 0.125
    assert relative_difference({"a": torch.zeros(2)}, {"a": torch.zeros(2)}) == 0
    assert relative_difference(torch.ones(2), torch.zeros(2)) == 1


def test_a_nan_in_any_output_is_a_difference():
    one, nan = torch.ones(2), torch.tensor([1.0, float("nan")])
    for wanted, found in [((one, one), (one, nan)), ((nan, one), (one, one)), ((one, nan), (one, nan))]:
        assert not relative_difference(found, wanted) <= 1
