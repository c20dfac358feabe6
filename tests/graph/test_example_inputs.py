"""Inputs of a capture that are refused (those that are inferred: test_capture.py)."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from fxfactor.errors import PreconditionError
from fxfactor.graph.example_inputs import as_tuple


@pytest.mark.parametrize("given", [{"image": torch.zeros(1)}, ({"image": torch.zeros(1)},)])
def test_a_dict_is_refused(given: Any):
    with pytest.raises(PreconditionError, match="found a dict: a captured graph takes tensors by position; wrap"):
        as_tuple(given)
