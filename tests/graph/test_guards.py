"""Inputs of a fixed shape."""

from __future__ import annotations

import pytest
import torch

from fxfactor.errors import PreconditionError
from fxfactor.graph.guards import require_shape


def test_none_stands_for_any_size():
    x = torch.zeros(5, 3, 8)
    assert require_shape(x, (None, 3, 8), "x") is x
    for shape in ((4, 3, 8), (None, 3, 9), (None, 3)):
        with pytest.raises(PreconditionError, match=r"input 'x' must be of shape .*, found 5×3×8"):
            require_shape(x, shape, "x")
