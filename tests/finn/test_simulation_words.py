"""Words of a stream: how elements lie in them, and what does not fit."""

from __future__ import annotations

import numpy as np
import pytest

from fxfactor.errors import FinnError
from fxfactor.finn.simulation.design import Port
from fxfactor.finn.simulation.words import elements_of, words


def test_element_0_lies_in_the_lowest_bits() -> None:
    port = Port((1, 2, 3), bits=12, padded=16, element_bits=4, signed=True)
    found = words(np.array([[1, -1, 7, -8, 0, 2]]), port)
    assert found.tolist() == [[0x7F1], [0x208]]
    assert port.words == 2


@pytest.mark.parametrize("bits", [1, 3, 8, 13, 31, 32])
@pytest.mark.parametrize("count", [1, 5, 24])
@pytest.mark.parametrize("signed", [False, True])
def test_words_and_back(bits: int, count: int, signed: bool) -> None:
    padded = -(-bits * count // 8) * 8
    port = Port((7, count), bits * count, padded, bits, signed)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1)) if signed else (0, 2**bits)
    values = np.random.default_rng(0).integers(low, high, (2, 7, count))
    found = words(values, port)
    assert found.shape == (14, port.limbs)
    assert [elements_of(word, port) for word in found.tolist()] == values.reshape(14, count).tolist()


def test_an_integer_that_does_not_fit_is_refused() -> None:
    port = Port((1, 2), 8, 8, 4, True)
    with pytest.raises(FinnError, match="integers from -8 to 7, .* found: 0 to 8"):
        words(np.array([[0, 8]]), port)
