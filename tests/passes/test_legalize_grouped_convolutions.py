"""LegalizeGroupedConvolutions: branches compute what the grouped convolution computed, to the last bit."""

from __future__ import annotations

import copy
import random

import pytest
import torch
from torch import nn

import fxfactor
from fxfactor.graph import convolutions
from fxfactor.graph.compare import relative_difference
from fxfactor.passes.legalize_grouped_convolutions import LegalizeGroupedConvolutions
from fxfactor.pipeline import Pipeline


def net(groups: int, seed: int) -> tuple[nn.Module, torch.Tensor]:
    """A grouped convolution between two others, with random settings, and an input that is not square."""
    draw = random.Random(seed)
    inputs, outputs = groups * draw.choice((2, 3)), groups * draw.choice((1, 2, 5))
    grouped = nn.Conv2d(
        inputs,
        outputs,
        draw.choice((1, 3, (3, 1))),
        stride=draw.choice((1, 2, (2, 1))),
        padding=draw.choice((0, 1, (0, 2))),
        dilation=draw.choice((1, 2)),
        groups=groups,
        bias=draw.random() < 0.5,
    )
    model = nn.Sequential(
        nn.Conv2d(3, inputs, 3), nn.BatchNorm2d(inputs, eps=0.1), nn.ReLU(), grouped, nn.BatchNorm2d(outputs), nn.ReLU(),
        nn.Conv2d(outputs, 4, 1),
    )  # fmt: skip
    return model.eval(), torch.randn(2, 3, 13, 10)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("groups", [2, 4])
def test_exact_in_float64(groups: int, seed: int) -> None:
    model, images = net(groups, seed)
    graph = fxfactor.capture(model, images)
    result = LegalizeGroupedConvolutions()(graph)
    assert [(change.site, len(change.into)) for change in result.changes] == [("3", groups)]
    found, wanted = (copy.deepcopy(each).double()(images.double()).detach() for each in (result.graph, graph))
    assert relative_difference(found, wanted) < 1e-14
    assert all(conv.groups == 1 for _, conv in convolutions(result.graph))


@pytest.mark.parametrize("level", [1, 3])
def test_equals_the_quantized_model_before_it(level: int) -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5),
    ).eval()  # fmt: skip
    images = torch.randn(4, 3, 12, 9)
    graph = fxfactor.transform(model, level=level, bits=4, example_inputs=images).eval()
    result = Pipeline(LegalizeGroupedConvolutions(), verify=True)(graph)
    assert len(result.changes) == 1
    assert result.changes[0].site == "3.spatial"
    with torch.no_grad():
        assert relative_difference(result.graph(images), graph(images)) < 1e-6
    assert "3.spatial.0.weight" in result.graph.state_dict()


def test_a_second_run_changes_nothing_and_depthwise_stays() -> None:
    model = nn.Sequential(nn.Conv2d(4, 4, 3, groups=2), nn.Conv2d(4, 4, 3, groups=4)).eval()
    graph = fxfactor.capture(model, torch.randn(1, 4, 9, 9))
    once = LegalizeGroupedConvolutions()(graph)
    assert [change.site for change in once.changes] == ["0"]
    assert LegalizeGroupedConvolutions()(once.graph).changes == ()


def test_one_weight_scale_for_the_whole_tensor_is_skipped() -> None:
    from brevitas import nn as qnn
    from brevitas.quant import Int8WeightPerTensorFloat

    layer = qnn.QuantConv2d(4, 4, 3, groups=2, weight_bit_width=4, weight_quant=Int8WeightPerTensorFloat)
    graph = fxfactor.capture(nn.Sequential(nn.Conv2d(4, 4, 1)).eval(), torch.randn(1, 4, 9, 9))
    graph.add_submodule("0", layer)
    result = LegalizeGroupedConvolutions()(graph)
    assert not result.changes
    assert "scale per channel" in result.skips[0].reason


@pytest.mark.parametrize("padding_mode", ["reflect", "replicate", "circular"])
def test_branches_pad_as_the_whole_does(padding_mode: str) -> None:
    grouped = nn.Conv2d(8, 12, 3, padding=(2, 1), groups=4, padding_mode=padding_mode)
    model, images = nn.Sequential(nn.Conv2d(3, 8, 1), grouped).eval(), torch.randn(2, 3, 7, 6)
    graph = fxfactor.capture(model, images)
    result = LegalizeGroupedConvolutions()(graph)
    assert len(result.changes) == 1
    torch.testing.assert_close(result.graph(images), graph(images), rtol=1e-6, atol=1e-6)
