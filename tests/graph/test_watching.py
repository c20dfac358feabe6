"""Images out of batches of a loader."""

from __future__ import annotations

import pytest
import torch

from fxfactor import PreconditionError
from fxfactor.graph.watching import inputs_of

IMAGES = (8, 3, 16, 16)


def test_the_images_of_a_batch():
    images = torch.randn(IMAGES)
    assert inputs_of(images) is images
    assert inputs_of((images, torch.zeros(8))) is images
    assert inputs_of([images]) is images
    for wrong in ({"image": images}, (), "images", ("images",), 3):
        with pytest.raises(
            PreconditionError, match="a batch must be a tensor of images or a tuple that starts with one"
        ):
            inputs_of(wrong)
