"""The small trained network is trained, the same at every call, and a witness: what it loses shows."""

from __future__ import annotations

import pytest
import torch
from trained import WEIGHTS, accuracy, digits, digits_network

import fxfactor


def test_the_network_is_trained():
    assert accuracy(digits_network(), *digits("train")) > 99
    assert accuracy(digits_network(), *digits("test")) > 98.5


def test_every_call_gives_a_network_and_images_of_its_own():
    first, second = digits_network(), digits_network()
    images, labels = digits("test")
    with torch.no_grad():
        for parameter in first.parameters():
            parameter.zero_()
        images.zero_()
    assert accuracy(second, *digits("test")) > 98.5
    assert not second.training
    assert labels.dtype == torch.int64


def test_it_is_small():
    assert sum(parameter.numel() for parameter in digits_network().parameters()) == 6114
    assert WEIGHTS.stat().st_size < 32_000


def test_the_images_are_parted():
    (train, train_labels), (test, test_labels) = digits("train"), digits("test")
    assert train.shape == (1347, 1, 8, 8)
    assert test.shape == (450, 1, 8, 8)
    assert len(train_labels) == 1347
    assert sorted(set(test_labels.tolist())) == list(range(10))
    assert float(train.min()) == -1
    assert float(train.max()) == 1
    with pytest.raises(ValueError, match=r"one of \['test', 'train'\], found 'validation'"):
        digits("validation")


def test_it_shows_what_fitting_brings():
    """Truncated factors ruin it, factors fitted to 256 images bring it back: neither shows on random weights."""
    model, images, test = digits_network(), digits("train")[0][:256], digits("test")
    without = fxfactor.transform(model, level=2, example_inputs=images[:1])
    fitted = fxfactor.transform(model, level=2, calibration=images.split(64))
    assert accuracy(without, *test) < 50
    assert accuracy(fitted, *test) > 90
