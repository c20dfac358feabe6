from __future__ import annotations

import pytest
import torch
from graph_helpers import SHAPE, Block
from torch.fx import GraphModule

import fxfactor


@pytest.fixture
def graph() -> GraphModule:
    return fxfactor.capture(Block().eval(), torch.zeros(SHAPE))
