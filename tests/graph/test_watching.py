"""Images out of batches of a loader."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from fxfactor import PreconditionError, capture
from fxfactor.graph.watching import evaluating, images_of, inputs_of, modes_kept, not_empty, record, watch

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


def batches(*sizes: int) -> list[tuple[torch.Tensor, None]]:
    return [(torch.full((size, 1), float(index)), None) for index, size in enumerate(sizes)]


def test_the_first_images_of_a_loader():
    assert [len(each) for each in images_of(batches(3, 3, 2), "a test")] == [3, 3, 2]
    assert [len(each) for each in images_of(batches(3, 3, 2), "a test", at_most=4)] == [3, 1]
    taken = []
    assert len(images_of((taken.append(1) or each for each in batches(3, 3, 2)), "a test", at_most=3)) == 1
    assert len(taken) == 1  # no batch is asked for beyond what is needed
    with pytest.raises(PreconditionError, match="a test needs at least one batch of images, found an empty loader"):
        images_of([], "a test")
    assert list(not_empty("ab", "a test")) == ["a", "b"]


def test_modes_come_back_also_after_an_error():
    models = nn.Sequential(nn.ReLU(), nn.Dropout()), nn.Sequential(nn.ReLU())
    models[0][0].eval()
    before = [module.training for model in models for module in model.modules()]
    for meanwhile in (evaluating, modes_kept):
        with pytest.raises(ZeroDivisionError), meanwhile(*models):
            if meanwhile is evaluating:
                assert not any(module.training for model in models for module in model.modules())
            models[1].train(False)
            _ = 1 / 0
        assert [module.training for model in models for module in model.modules()] == before


def test_what_nodes_compute_is_seen_with_what_they_are_given():
    graph = capture(nn.Sequential(nn.Flatten(), nn.Linear(4, 3), nn.ReLU()).eval(), torch.zeros(2, 1, 2, 2))
    x = torch.randn(2, 1, 2, 2)
    wanted = graph(x)
    seen = {}
    output = watch(graph, (x,), lambda node, arguments, value: seen.update({str(node.target): (arguments, value)}))
    assert torch.equal(output, wanted)
    assert torch.equal(seen["1"][0][0], x.flatten(1))
    assert torch.equal(seen["2"][1], wanted)
    nodes = [node for node in graph.graph.nodes if str(node.target) in ("1", "2")]
    output, values = record(graph, (x,), nodes[::-1])
    assert torch.equal(output, wanted)
    assert list(values) == nodes
    assert torch.equal(values[nodes[0]], graph.get_submodule("1")(x.flatten(1)))
