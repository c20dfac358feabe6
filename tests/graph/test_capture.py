"""Capture: the same function, in normal form, from networks that trace easily and from those that do not."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from capture_helpers import IMAGE
from networks import ResidualNet, conv_bn_relu, difference_in_float64, fingerprint, randomized
from torch import Tensor, nn

from fxfactor import PreconditionError, capture
from fxfactor.graph import shape_of
from fxfactor.graph.capture import ASSUMED


def test_training_mode_of_every_module_is_kept():
    model = ResidualNet().train()
    model.block.bn1.eval()
    graph = capture(model)
    assert graph.training
    assert graph.block.conv1.training
    assert not graph.block.bn1.training


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_capture_copies_and_leaves_the_model_untouched(dtype):
    model = randomized(ResidualNet()).to(dtype).train()
    before = fingerprint(model)
    graph = capture(model)
    assert fingerprint(model) == before
    assert not {id(p) for p in model.parameters()} & {id(p) for p in graph.parameters()}
    assert next(graph.parameters()).dtype == dtype
    assert difference_in_float64(graph, model, (4, 3, 24, 20)) < 1e-12


def test_the_input_is_inferred_and_marked_as_assumed():
    graph = capture(ResidualNet())
    (image,) = (node for node in graph.graph.nodes if node.op == "placeholder")
    assert shape_of(image) == (1, 3, 224, 224)
    assert graph.meta[ASSUMED]
    assert not capture(ResidualNet(), torch.randn(IMAGE)).meta[ASSUMED]


def test_a_network_for_small_images_is_given_small_images():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 26 * 26, 10))
    (image, *_) = capture(model).graph.nodes
    assert shape_of(image) == (1, 1, 28, 28)


def test_series_are_inferred_too():
    graph = capture(nn.Sequential(nn.Conv1d(4, 8, 9), nn.ReLU()))
    (series, *_) = graph.graph.nodes
    assert shape_of(series) == (1, 4, 1024)


def test_an_input_that_cannot_be_inferred_is_asked_for():
    model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8 * 15 * 11, 10))
    with pytest.raises(PreconditionError, match=r"input of Sequential cannot be inferred.*Pass example_inputs="):
        capture(model)
    assert capture(model, torch.randn(1, 1, 17, 13)) is not None


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(1, 4, 3)

    def forward(self, image: Tensor, depth: Tensor) -> dict[str, Tensor]:
        return {"sum": self.a(image) + self.b(depth), "image": 2 * image}


def test_several_inputs_and_outputs():
    inputs = torch.randn(IMAGE), torch.randn(2, 1, 16, 16)
    graph = capture(TwoInputs(), inputs)
    assert set(graph(*inputs)) == {"sum", "image"}
    assert difference_in_float64(graph, TwoInputs(), *(x.shape for x in inputs)) > 1e-3  # it does see a difference
    model = TwoInputs()
    assert difference_in_float64(capture(model, inputs), model, *(x.shape for x in inputs)) < 1e-12


def test_a_captured_graph_is_copied():
    graph = capture(ResidualNet())
    again = capture(graph)
    assert again is not graph
    assert again.code == graph.code


def test_capture_again_for_another_size():
    graph = capture(capture(ResidualNet()), torch.randn(IMAGE))
    (image, *_) = graph.graph.nodes
    assert shape_of(image) == IMAGE


@pytest.mark.parametrize("wrong", [None, 3, "resnet18", torch.relu, nn.Conv2d, {"a": 1}])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(PreconditionError, match=r"capture needs a torch\.nn\.Module, found"):
        capture(wrong)


@pytest.mark.parametrize("wrong", [(1, 3, 16, 16), "image", (), np.zeros((1, 3, 8, 8))])
def test_example_inputs_must_hold_a_tensor(wrong):
    with pytest.raises(PreconditionError, match=r"example_inputs must be a tensor or a tuple of the model's arguments"):
        capture(ResidualNet(), wrong)


def test_example_of_the_wrong_shape_names_the_layer():
    with pytest.raises(PreconditionError, match=r"example inputs \[\(1, 4, 16, 16\)\] do not fit.*fails at 'stem\.0'"):
        capture(ResidualNet(), torch.randn(1, 4, 16, 16))


def test_capture_is_deterministic():
    model = randomized(ResidualNet())
    first, second = capture(model), capture(copy.deepcopy(model))
    assert first.code == second.code
    assert [*first.state_dict()] == [*second.state_dict()]


def test_conv_bn_relu_keeps_its_names():
    assert [*capture(conv_bn_relu(3, 8)).state_dict()][:2] == ["0.weight", "1.weight"]
