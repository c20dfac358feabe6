"""The ways of tracing: networks that symbolic tracing cannot follow, and what none can."""

from __future__ import annotations

import logging
import math
import pickle
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from capture_helpers import IMAGE, kinds
from networks import Lambda, difference_in_float64
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fxfactor import CaptureError, PreconditionError, capture
from fxfactor.graph import check_graph, convolutions, hidden_convolutions, sites
from fxfactor.graph.tracing import silent, trace_concrete, trace_export


class PadToEven(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] % 4 != 0:
            x = F.pad(x, (0, 1, 0, 1))
        return self.conv(x)


class ChannelLoop(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 16, 3)
        self.heads = nn.ModuleList(nn.Conv2d(8, 4, 3) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        parts = [self.heads[i](x[:, 8 * i : 8 * i + 8]) for i in range(x.size(1) // 8)]
        return torch.cat(parts, 1)


class Asserting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        assert x.dim() == 4 and x.shape[1] == self.conv.in_channels, "images, please"
        return self.conv(x)


class SamePaddingConv(nn.Conv2d):
    """TensorFlow's padding, as in many EfficientNets."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.size()[-2:]
        rows = max((math.ceil(height / self.stride[0]) - 1) * self.stride[0] + self.kernel_size[0] - height, 0)
        columns = max((math.ceil(width / self.stride[1]) - 1) * self.stride[1] + self.kernel_size[1] - width, 0)
        x = F.pad(x, [columns // 2, columns - columns // 2, rows // 2, rows - rows // 2])
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


class TypeChecking(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError("images, please")
        return self.conv(x)


class Counting(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x / len(x[0])


class PartByPart(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 16, 3)
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        parts: list[Tensor] = []
        for conv, part in zip(self.convs, [*self.stem(x).split(4, 1)], strict=True):
            parts.append(conv(part if not parts else part + parts[-1]))
        return torch.cat(parts, 1)


class NumpyScaling(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        return x.sum((2, 3)) / float(np.prod([int(size) for size in x.shape[2:]]))


class Checkpointed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        if x.requires_grad or x.shape[2] > 8:
            return checkpoint(self.conv, x, use_reentrant=False)
        return self.conv(x)


UNTRACEABLE = {
    "if on a shape": PadToEven,
    "loop over a size": ChannelLoop,
    "assert on a shape": Asserting,
    "padding computed from the size": lambda: nn.Sequential(SamePaddingConv(3, 8, 3, stride=2), nn.ReLU()),
    "isinstance": TypeChecking,
    "len": Counting,
    "iterating over a split": PartByPart,
    "numpy on a shape": NumpyScaling,
    "checkpointing behind an if": Checkpointed,
}


@pytest.mark.parametrize("name", UNTRACEABLE)
def test_what_symbolic_trace_cannot_do_is_captured(name):
    model = UNTRACEABLE[name]().eval()
    with pytest.raises(Exception):  # noqa: B017, PT011  each fails in its own way
        torch.fx.symbolic_trace(model)
    graph = capture(model, torch.randn(IMAGE))
    check_graph(graph)
    expected = sum(isinstance(module, nn.Conv2d) for module in model.modules())
    assert len(list(convolutions(graph))) == expected
    assert difference_in_float64(graph, model, IMAGE) < 1e-10
    assert difference_in_float64(graph, model, (5, *IMAGE[1:])) < 1e-10


def test_untraceable_networks_keep_their_sites():
    assert [*sites(capture(ChannelLoop(), torch.randn(IMAGE)))] == ["conv", "heads.0", "heads.1"]
    assert [*sites(capture(TypeChecking(), torch.randn(IMAGE)))] == ["conv"]


def test_control_flow_on_values_is_refused():
    def forward(m, x):
        return m.a(x) if x.mean() > 0 else x

    with pytest.raises(CaptureError, match=r"no way of tracing Lambda works.*torch\.fx\.symbolic_trace.*torch\.export"):
        capture(Lambda(forward, a=nn.Conv2d(3, 3, 1)), torch.randn(IMAGE))


class GroupForEachImage(nn.Module):
    """A convolution whose groups are the images of the batch: no layer for another batch."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.weight = nn.Parameter(torch.randn(4, 4, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        batch, channels, height, width = x.shape
        joined = F.conv2d(x.reshape(1, -1, height, width), self.weight.repeat(batch, 1, 1, 1), groups=batch)
        return joined.reshape(batch, channels, height, width)


class WritingIntoAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :2].mul_(2.0)
        return x


def test_what_no_way_of_tracing_gets_right_is_refused():
    with pytest.raises(
        CaptureError,
        match=r"torch.fx.symbolic_trace: the outputs differ by 0.5 of the largest value, behind the last layer",
    ):
        capture(WritingIntoAView(), torch.randn(IMAGE))


def test_sizes_of_the_batch_are_not_taken_for_fixed_ones():
    model = GroupForEachImage().double().eval()
    graph = capture(model, torch.randn(IMAGE, dtype=torch.float64))
    assert [*sites(graph)] == ["conv"]
    assert len(hidden_convolutions(graph)) == 1
    assert difference_in_float64(graph, model, (5, *IMAGE[1:])) < 1e-10


class Renamed(nn.Conv2d):
    pass


def test_a_subclass_that_computes_the_same_stands_for_its_base():
    model = nn.Sequential(Renamed(3, 8, 3))
    assert [*sites(capture(model))] == ["0"]


class StochasticDepthNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        from torchvision.ops import StochasticDepth

        self.a = nn.Conv2d(3, 8, 3)
        self.b = nn.Conv2d(8, 8, 3, padding=1)
        self.drop_path = StochasticDepth(0.5, "row")
        self.dropout = nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.a(x)
        return self.dropout(x + self.drop_path(self.b(x)))


@pytest.mark.parametrize("training", [True, False])
def test_random_drops_stay_in_training_and_go_in_eval(training):
    model = StochasticDepthNet().train(training)
    graph = capture(model, torch.randn(IMAGE))
    assert ("Dropout" in kinds(graph)) == training
    assert ("StochasticDepth" in kinds(graph)) == training
    assert graph.training == training
    assert difference_in_float64(graph, model, IMAGE) < 1e-12
    if training:
        x = torch.randn(IMAGE)
        assert not torch.equal(graph(x), graph(x))


@pytest.mark.parametrize("name", ["if on a shape", "isinstance"])
def test_example_of_the_wrong_shape_in_the_fallbacks(name):
    with pytest.raises((PreconditionError, CaptureError), match=r"do not fit the network|no way of tracing"):
        capture(UNTRACEABLE[name](), torch.randn(1, 4, 16, 16))


SIZES: dict[str, Callable[[Tensor], Tensor]] = {
    "one size": lambda x: x.reshape(x.size(0), x.size(1) * x.size(-1), -1),
    "all sizes": lambda x: x.reshape(x.size()[0], x.size()[2], -1) if len(x.size()) == 4 else x,
    "shape": lambda x: x.flatten(2) * x.shape[-1] if x.shape[1] == 4 and x.ndim == x.dim() == 4 else x.flatten(1),
    "type and place": lambda x: (
        x.to(torch.zeros(1, dtype=x.dtype, device=x.device)) if x.dtype.is_floating_point else -x
    ),
}


@pytest.mark.parametrize("name", SIZES)
def test_questions_for_sizes_are_answered_with_numbers_but_for_the_batch(name):
    """As a way of its own: what it cannot do would otherwise be done by the next one."""
    model = Lambda(lambda m, x: SIZES[name](m.a(x)) + int(m.a(x).size(1) > 3), a=nn.Conv2d(3, 4, 3)).eval()
    graph = trace_concrete(model, (torch.randn(IMAGE),))
    for shape in (IMAGE, (5, *IMAGE[1:])):
        x = torch.randn(shape)
        torch.testing.assert_close(graph(x), model(x))


def test_values_are_not_answered_for():
    model = Lambda(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(torch.fx.proxy.TraceError, match="depends on the values"):
        trace_concrete(model, (torch.randn(IMAGE),))


def test_a_graph_of_annotated_code_can_be_pickled():
    x = torch.randn(IMAGE)
    graph = capture(PadToEven().eval(), x)
    assert not any(isinstance(node.type, str) for node in graph.graph.nodes)
    again = pickle.loads(pickle.dumps(graph))
    assert torch.equal(again(x), graph(x))
    for each in (graph, again):  # the network pads by what it reads of the size
        with pytest.raises(PreconditionError, match="the model's forward reads this size"):
            each(torch.randn(*IMAGE[:2], IMAGE[2] + 1, IMAGE[3] + 1))


def test_a_refusal_says_why_each_way_failed():
    model = Lambda(lambda m, x: m.a(x) if x.sum() > 0 else x, a=nn.Conv2d(3, 4, 3)).eval()
    with pytest.raises(CaptureError, match=r"(?s)tracing with known shapes: .*torch\.export: "):
        capture(model, torch.randn(IMAGE))


def test_exporting_says_how_long_it_has_been(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("fxfactor.progress.BETWEEN_LINES_S", 0.0)
    monkeypatch.setattr("fxfactor.graph.capture.trace_concrete", trace_export)  # which prints into nothing
    capture(ChannelLoop().eval(), torch.randn(1, 3, 8, 8))
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("fxfactor.graph.capture.trace_concrete", lambda *_: exec("raise ValueError"))
    capture(ChannelLoop().eval(), torch.randn(1, 3, 8, 8))
    assert "tracing with torch.export: 0 s so far" in capsys.readouterr().err


def test_exporting_that_takes_too_long_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    image = torch.randn(1, 3, 8, 8)
    assert trace_export(ChannelLoop(), (image,)).graph.nodes
    monkeypatch.setattr("fxfactor.graph.tracing.EXPORT_SECONDS", -1.0)
    with pytest.raises(CaptureError, match="took longer than -1 s, in "):
        trace_export(ChannelLoop(), (image,))


def test_what_exporters_tell_at_length_is_silenced_and_heard_again_afterwards(
    capfd: pytest.CaptureFixture[str],
) -> None:
    logger = logging.getLogger("torch.export")
    before = logger.level
    with pytest.raises(ValueError, match="stopped"), silent():
        print("dump")
        print("dump", file=sys.stderr)
        assert not logger.isEnabledFor(logging.ERROR)
        raise ValueError("stopped")
    assert logger.level == before
    print("heard")
    assert capfd.readouterr() == ("heard\n", "")
