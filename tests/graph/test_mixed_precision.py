"""Mixed precision: which operations compute in bfloat16, and which words are taken."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxfactor import PreconditionError
from fxfactor.graph.mixed_precision import computing_in, require_precision


def test_convolutions_compute_in_bfloat16_and_parameters_keep_their_type() -> None:
    conv, x = nn.Conv2d(3, 4, 3), torch.randn(1, 3, 8, 8)
    with computing_in("bfloat16", x.device):
        assert conv(x).dtype is torch.bfloat16
    with computing_in("float32", x.device):
        assert torch.equal(conv(x), nn.functional.conv2d(x, conv.weight, conv.bias))
        assert conv(x).dtype is torch.float32
    assert conv.weight.dtype is torch.float32


@pytest.mark.parametrize("word", ["float16", "bf16", ""])
def test_another_word_is_refused(word: str) -> None:
    with pytest.raises(PreconditionError, match=rf'"float32" or "bfloat16", found {word!r}'):
        require_precision(word)
