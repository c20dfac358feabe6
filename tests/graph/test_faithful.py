"""What a graph cannot do as the model does it is refused, or right: never silently wrong."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from networks import difference_in_float64, fingerprint
from small_model import (
    SHAPE,
    AnswersTooMany,
    AuxiliaryInTraining,
    CountsCalls,
    FrozenInTraining,
    FunctionalDropout,
    NoiseInTraining,
    OptionalArguments,
    OwnDictionary,
    OwnGradient,
    OwnGradientAroundALayer,
    OwnGradientInAModule,
    ReadsSize,
    RemembersShape,
    Small,
    WithoutGradient,
    WritesIntoBuffer,
)
from torch import nn

import fxfactor
from fxfactor.errors import CaptureError, PreconditionError
from fxfactor.graph.differences import difference_of
from fxfactor.graph.faithful import compare

X = torch.zeros(SHAPE)


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (NoiseInTraining, r"in training NoiseInTraining .*outputs differ in training .*self\.training"),
        (OwnGradient, r"the gradient of 'a.weight' differs.*torch.autograd.Function"),
        (WithoutGradient, r"the gradient of 'a.weight' differs.*no_grad"),
    ],
)
def test_what_differs_in_training_is_refused_or_listed(build: Callable[[], nn.Module], what: str):
    for model in (build(), build().eval()):
        with pytest.raises(CaptureError, match=what):
            fxfactor.capture(model, X)
        graph = fxfactor.capture(model, X, compare=False)
        assert difference_in_float64(graph, model, SHAPE) < 1e-6
        (note,) = fxfactor.summary(graph, show=False).notes
        assert note.startswith("computes something else than the model: ")
        assert note in str(fxfactor.summary(graph, show=False)).replace("\n", " ") or len(note) > 150


def test_a_module_that_nothing_sees_through_is_called_as_it_is(tmp_path: Path):
    model = OwnGradientInAModule().train()
    graph = fxfactor.capture(model, X)
    assert difference_in_float64(graph, model, SHAPE) < 1e-6
    (note,) = fxfactor.summary(graph, show=False).notes
    assert note == "modules that no tracing sees through are called as they are: pool.2"
    images = torch.randn(SHAPE)
    for each in (model, graph):
        each.zero_grad()
        each(images).square().sum().backward()
    assert torch.allclose(model.a.weight.grad, graph.a.weight.grad, rtol=1e-4)  # type: ignore[arg-type, union-attr]
    network = fxfactor.transform(model, level=2, bits=4, example_inputs=X)
    assert set(fxfactor.Plan.of(network).layers) == {"a", "b", "l"}
    fxfactor.save(network, tmp_path / "network")
    again = fxfactor.load(tmp_path / "network", model)
    assert torch.equal(again.eval()(images), network.eval()(images))


def test_a_module_with_a_layer_that_nothing_sees_through_is_refused():
    with pytest.raises(CaptureError, match=r"OwnGradientAroundALayer"):
        fxfactor.capture(OwnGradientAroundALayer(), X)


def test_auxiliary_outputs_are_lost_only_where_the_model_is_in_evaluation():
    with pytest.raises(CaptureError, match=r"outputs differ in training in number.*auxiliary outputs off"):
        fxfactor.capture(AuxiliaryInTraining().train(), X)
    model = AuxiliaryInTraining().eval()
    graph = fxfactor.capture(model, X)
    assert difference_in_float64(graph, model, SHAPE) < 1e-6
    (note,) = fxfactor.summary(graph, show=False).notes
    assert note == "in training the model returns 2 values, in evaluation 1: the graph has no auxiliary outputs"


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (CountsCalls, r"every call changes what the model remembers \(n\).*no memory from call to call"),
        (WritesIntoBuffer, r"changes the buffer 'last', the graph's does not.*no memory"),
    ],
)
def test_memory_from_call_to_call_is_refused(build: Callable[[], nn.Module], what: str):
    with pytest.raises(CaptureError, match=what):
        fxfactor.capture(build(), X)


def test_what_is_set_anew_in_every_call_is_no_memory():
    fxfactor.capture(RemembersShape(), X)


def test_a_functional_dropout_drops_in_training_as_the_model_does():
    model = FunctionalDropout().train()
    graph = fxfactor.capture(model, X)
    assert isinstance(graph.dropout, nn.Dropout)
    x = torch.randn(SHAPE)
    torch.manual_seed(5)
    wanted = model(x)
    torch.manual_seed(5)
    assert torch.equal(graph(x), wanted)
    assert not torch.equal(graph(x), wanted)
    assert torch.equal(graph.eval()(x), model.eval()(x))
    assert not any(isinstance(module, nn.Dropout) for module in fxfactor.capture(model.eval(), X).modules())


def test_dropout_outlives_torch_export():
    class Exported(FunctionalDropout):
        """Tracing by symbols and by shapes does not know torch.Tensor's own class."""

        def __init__(self) -> None:
            super().__init__()
            self.drop = nn.Dropout(0.5)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if type(x) is torch.fx.Proxy or not isinstance(x, torch.Tensor):
                raise TypeError("no tensor")
            return self.l(self.drop(self.body(x)).mean((2, 3)))

    graph = fxfactor.capture(Exported().train(), X)
    assert isinstance(graph.drop, nn.Dropout)
    assert graph.drop.training


def test_a_size_that_is_read_is_checked_in_every_call():
    model = ReadsSize().eval()
    graph = fxfactor.capture(model, X)
    assert difference_in_float64(graph, model, SHAPE) < 1e-6
    assert difference_in_float64(graph, model, (5, 3, 8, 8)) < 1e-6
    with pytest.raises(PreconditionError, match=r"'x' must be of shape any×3×8×8, found 2×3×12×12.*capture the model"):
        graph(torch.zeros(2, 3, 12, 12))
    transformed = fxfactor.transform(model, level=3, bits=4, example_inputs=X)
    with pytest.raises(PreconditionError, match="must be of shape"):
        transformed(torch.zeros(2, 3, 12, 12))


@pytest.mark.parametrize("refused", [(65, 63), (64, 64)], ids=["uneven", "even"])
def test_a_size_that_the_model_refuses_is_passed_over(refused: tuple[int, int]):
    class Refuses(NoiseInTraining):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            if tuple(x.shape[-2:]) == refused:
                raise RuntimeError("not of this size")
            return super().forward(x)

    with pytest.raises(CaptureError, match=r"in training Refuses .*outputs differ in training .*self\.training"):
        fxfactor.capture(Refuses(), torch.zeros(2, 3, 128, 128))


def test_what_no_output_depends_on_is_named_and_left_out():
    model = AnswersTooMany().train()
    graph = fxfactor.capture(model, X)
    assert fxfactor.summary(graph, show=False).notes == ("no output depends on 'early.1': not in the graph",)
    assert not any(name.startswith("early") for name, _ in graph.named_modules())
    assert difference_in_float64(graph, model, SHAPE) < 1e-6


@pytest.mark.parametrize("halve", [nn.MaxPool2d(2), nn.AvgPool2d(3, 2, 1)], ids=["rounds down", "rounds up"])
@pytest.mark.parametrize("times", [0, 1, 3])
@pytest.mark.parametrize("size", [64, 65, 63])
def test_what_is_read_of_a_size_behind_halvings_is_found_out(halve: nn.Module, times: int, size: int):
    """As in EfficientNets with TensorFlow's padding: all is well at sizes that can be halved as often as that of the capture."""

    class PadsOddSizes(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.a(x)
            for _ in range(times):
                x = halve(x)
            if x.shape[-1] % 2 or x.shape[-2] % 2:
                x = nn.functional.pad(x, (0, 1, 0, 1), value=1.0)
            return self.l(self.b(x).mean((2, 3)))

    model = PadsOddSizes().eval()
    graph = fxfactor.capture(model, torch.zeros(2, 3, size, size))
    assert difference_in_float64(graph, model, (2, 3, size, size)) < 1e-6
    with pytest.raises(PreconditionError, match="the model's forward reads this size"):
        graph(torch.zeros(2, 3, size + 3, size + 3))


def test_larger_sizes_are_tried_where_smaller_ones_do_not_run():
    class PoolsMuch(ReadsSize):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(nn.functional.avg_pool2d(x, 40, 1))

    images = torch.randn(2, 3, 64, 64)
    model = PoolsMuch().eval()
    with pytest.raises(RuntimeError):
        model(images[..., :32, :32])
    graph = fxfactor.capture(model, images)
    with pytest.raises(PreconditionError, match=r"'x' must be of shape any×3×64×64, found 2×3×96×96"):
        graph(torch.zeros(2, 3, 96, 96))


def test_a_graph_that_stops_at_another_size_prints_nothing(capfd: pytest.CaptureFixture[str]):
    class Adds(ReadsSize):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            assert x.shape[-1] >= 8
            h = self.body(x)
            return self.l((h + nn.functional.interpolate(h[..., ::2, ::2], size=x.shape[-2:])).mean((2, 3)))

    graph = fxfactor.capture(Adds().eval(), X)
    assert capfd.readouterr() == ("", "")
    with pytest.raises(PreconditionError, match="must be of shape any×3×8×8"):
        graph(torch.zeros(2, 3, 12, 12))


def test_hooks_that_change_something_become_part_of_the_graph():
    on_layer, on_root = Small().eval(), Small().eval()
    on_layer.b.register_forward_hook(lambda module, arguments, output: output * 2)
    on_root.register_forward_pre_hook(lambda module, arguments: (arguments[0] * 2,))
    for model in (on_layer, on_root):
        graph = fxfactor.capture(model, X)
        assert difference_in_float64(graph, model, SHAPE) < 1e-6
        transformed = fxfactor.transform(model, example_inputs=X)
        assert difference_in_float64(transformed, model, SHAPE) < 1e-6


def test_hooks_that_only_watch_are_said_to_be_gone():
    model, seen = Small(), []
    model.b.register_forward_hook(lambda module, arguments, output: seen.append(output.detach().numpy().shape))
    graph = fxfactor.capture(model, X)
    seen.clear()
    graph(X)
    assert seen == []
    assert fxfactor.summary(graph, show=False).notes == ("hooks are not kept: b",)


def test_arguments_that_are_not_given_keep_their_defaults():
    model = OptionalArguments().eval()
    graph = fxfactor.capture(model, X)
    assert difference_in_float64(graph, model, SHAPE) < 1e-6
    (note,) = fxfactor.summary(graph, show=False).notes
    assert note == "arguments that keep their defaults and are no inputs: scale=2.0, mask=None"
    with pytest.raises(TypeError, match="mask"):
        graph(X, mask=None)


def test_what_a_graph_does_not_keep_is_said():
    notes = fxfactor.summary(fxfactor.capture(OwnDictionary(), X), show=False).notes
    assert notes == ("the model returns a Answer, the graph a dict of the same tensors",)
    (note,) = fxfactor.summary(fxfactor.capture(FrozenInTraining(), X), show=False).notes
    assert note.startswith("the model's train() keeps 'a' in evaluation")


@pytest.mark.filterwarnings("ignore")  # torch 2.12 warns about itself in what torch.export made
def test_what_torch_export_made_stays_in_evaluation():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(1), nn.Linear(8 * 36, 2)).eval()
    exported = torch.export.export(model, (X,)).module()
    graph = fxfactor.capture(exported, X)
    assert not any(module.training for module in graph.modules())
    assert difference_in_float64(graph, model, SHAPE) < 1e-6


def test_channels_last_is_kept():
    model = Small().to(memory_format=torch.channels_last)
    transformed = fxfactor.transform(model, level=3, example_inputs=X)
    assert transformed.b.spatial.weight.is_contiguous(memory_format=torch.channels_last)


def test_comparing_leaves_model_and_random_numbers_alone():
    model = FunctionalDropout()
    before, state = fingerprint(model), (torch.get_rng_state(), random.getstate())
    numpy_state = np.random.get_state()[1].tolist()
    fxfactor.capture(model, X)
    assert fingerprint(model) == before
    assert torch.equal(torch.get_rng_state(), state[0])
    assert random.getstate() == state[1]
    assert np.random.get_state()[1].tolist() == numpy_state


def test_a_comparison_that_takes_too_long_says_so():
    model = Small()
    verdict = compare(model, fxfactor.capture(model, X), (X,), seconds=-1.0)
    assert verdict.notes == ["not compared to the end: -1 s were over"]


@dataclass
class Answer:
    logits: torch.Tensor
    kind: str = "answer"


def test_differences_of_outputs():
    one = torch.ones(2)
    assert difference_of({"a": one}, {"a": one * 2}) == 0.5
    assert difference_of(Answer(one), Answer(one * 2)) == 0.5
    assert difference_of(Answer(one), Answer(one, "another")) == float("inf")
    assert difference_of(Answer, Answer) == 0
    assert difference_of([one, torch.nan * one], (one, torch.nan * one)) == 0
    for other in ([one], [one, torch.ones(3)], [one, torch.nan * one], [one, None]):
        assert difference_of(other, [one, one]) == float("inf")
