"""Augmentation: images keep their shape and their values, the same draw gives the same, the input stays as it was."""

import pytest
import torch

from fxfactor.recovery.augment import flip_and_shift, flip_shift_and_cut

SHAPES = [(6, 2, 16), (6, 3, 16, 24), (6, 1, 8, 8, 8)]


@pytest.mark.parametrize("shape", SHAPES)
def test_augmentation_moves_images(shape):
    x = torch.rand(shape) + 1
    first = flip_and_shift(x, torch.Generator().manual_seed(0))
    assert first.shape == x.shape
    assert not torch.equal(first, x)
    assert torch.equal(first, flip_and_shift(x, torch.Generator().manual_seed(0)))
    kept = (first > 0).double().flatten(1).mean(1)
    assert (kept >= 0.875 ** len(shape[2:])).all()
    assert all(torch.isin(a[a > 0], b).all() for a, b in zip(first, x, strict=True))


@pytest.mark.parametrize("shape", SHAPES)
def test_about_half_of_the_batches_get_a_part_of_another_image(shape):
    marked = torch.arange(1.0, shape[0] + 1).view(-1, *[1] * (len(shape) - 1)).expand(shape)
    kept = marked.clone()
    generator = torch.Generator().manual_seed(0)
    mixed, shares = 0, []
    for _ in range(200):
        found = flip_shift_and_cut(marked, generator)
        assert found.shape == marked.shape
        foreign = (found != marked) & (found != 0)
        mixed += bool(foreign.any())
        shares.append(float(foreign.double().mean()))
        for image in found:
            assert len(image[image > 0].unique()) <= 2
    assert torch.equal(marked, kept)
    assert 60 < mixed < 130
    assert 0.3 < max(shares) <= 1


@pytest.mark.parametrize("shape", SHAPES)
def test_the_part_is_a_rectangle_and_the_same_draw_gives_the_same(shape):
    rectangles = 0
    for seed in range(20):
        x = torch.rand(shape, generator=torch.Generator().manual_seed(seed)) + 1
        plain = flip_and_shift(x, torch.Generator().manual_seed(seed))
        cut = flip_shift_and_cut(x, torch.Generator().manual_seed(seed))
        assert torch.equal(cut, flip_shift_and_cut(x, torch.Generator().manual_seed(seed)))
        changed = (plain != cut).flatten(0, 1).any(0)
        if changed.any():
            at = changed.nonzero()
            window = tuple(slice(a, b + 1) for a, b in zip(at.amin(0).tolist(), at.amax(0).tolist(), strict=True))
            rectangles += bool(changed[window].double().mean() > 0.8)  # zeros at the edges may meet zeros
    assert rectangles >= 4
