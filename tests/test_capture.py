"""Capture: the same function, in normal form, from networks that trace easily and from those that do not."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from networks import Lambda, ResidualNet, conv_bn_relu, difference_in_float64, fingerprint, randomized
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from fxfactor import CaptureError, PreconditionError, capture
from fxfactor.graph import check_graph, convolutions, hidden_convolutions, module_of, shape_of, sites
from fxfactor.graph.capture import ASSUMED

IMAGE = (2, 3, 16, 16)


def kinds(graph: torch.fx.GraphModule) -> list[str]:
    """Class names of the modules called, in order."""
    return [type(module_of(node)).__name__ for node in graph.graph.nodes if node.op == "call_module"]


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


class StandardizedConv(nn.Conv2d):
    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / weight.std((1, 2, 3), keepdim=True)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_convolution_hidden_in_a_subclass_is_visible():
    model = nn.Sequential(
        StandardizedConv(3, 8, 3, stride=2, padding=1), nn.ReLU(), StandardizedConv(8, 8, 3, groups=2)
    )
    graph = capture(model.double(), torch.randn(IMAGE, dtype=torch.float64))
    assert [*sites(graph)] == ["0", "2"]
    assert [conv.groups for _, conv in convolutions(graph)] == [1, 2]
    assert difference_in_float64(graph, model, IMAGE) < 1e-10


class MaskedConv(nn.Conv2d):
    """As in X-DenseNet: a parameter of its own, besides the weight, that the layer made of it does not have."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.mask = nn.Parameter((torch.rand_like(self.weight) > 0.5).float(), requires_grad=False)

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight * self.mask, self.bias)


class BlurPooling(nn.Module):
    """As in TResNet: a depthwise convolution with weights made on the spot, for as many groups as there are channels."""

    def forward(self, x: Tensor) -> Tensor:
        row = torch.tensor([1.0, 2.0, 1.0], dtype=x.dtype, device=x.device) / 4
        weight = (row[:, None] * row[None, :])[None, None].repeat((x.shape[1], 1, 1, 1))
        return F.conv2d(F.pad(x, (1, 1, 1, 1), mode="reflect"), weight, stride=2, groups=x.shape[1])


class SlicedConv(nn.Conv2d):
    """As in OctResNet: several convolutions share out the weight of one."""

    def forward(self, x: Tensor) -> Tensor:
        high, low = x[:, :3], x[:, 3:]
        first = F.conv2d(high, 2 * self.weight[:, :3])
        return torch.cat([first, F.conv2d(low, self.weight[:, 3:]), F.conv2d(high, self.weight[:, :3])], 1)


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


class UpperTriangle(torch.autograd.Function):
    """As in iSQRT-COV: no symbolic value goes through, and how many positions come out is no shape."""

    @staticmethod
    def forward(ctx, x):
        return x.flatten(1)[:, torch.ones(*x.shape[1:]).triu().view(-1).nonzero().view(-1)]


class Covariance(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x).flatten(2)
        return UpperTriangle.apply(x @ x.transpose(1, 2))


@pytest.mark.parametrize(
    ("make", "expected"),
    [
        (lambda: nn.Sequential(MaskedConv(3, 8, 3), nn.ReLU(), MaskedConv(8, 8, 1)), ["0", "2"]),
        (lambda: nn.Sequential(nn.Conv2d(3, 8, 3), BlurPooling()), ["0", "1"]),
        (Covariance, ["conv"]),
        (
            lambda: nn.Sequential(nn.Conv2d(3, 7, 1), SlicedConv(7, 8, 3, bias=False)),
            ["0", "1.conv2d", "1.conv2d_1", "1.conv2d_2"],
        ),
    ],
)
def test_convolutions_of_odd_networks_are_visible(make: Callable[[], nn.Module], expected: list[str]):
    model = make().double().eval()
    graph = capture(model, torch.randn(IMAGE, dtype=torch.float64))
    assert [*sites(graph)] == expected
    assert not hidden_convolutions(graph)
    assert difference_in_float64(graph, model, IMAGE) < 1e-10
    assert difference_in_float64(graph, model, (5, *IMAGE[1:])) < 1e-10


class WritingIntoAView(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv(x)
        x[:, :2].mul_(2.0)
        return x


def test_what_no_way_of_tracing_gets_right_is_refused():
    with pytest.raises(CaptureError, match=r"torch.fx.symbolic_trace: the graph computes something else .*relative"):
        capture(WritingIntoAView(), torch.randn(IMAGE))


def test_sizes_of_the_batch_are_not_taken_for_fixed_ones():
    model = GroupForEachImage().double().eval()
    graph = capture(model, torch.randn(IMAGE, dtype=torch.float64))
    assert [*sites(graph)] == ["conv"]
    assert len(hidden_convolutions(graph)) == 1
    assert difference_in_float64(graph, model, (5, *IMAGE[1:])) < 1e-10


def test_a_fixed_filter_stays_fixed_and_a_masked_weight_is_trained():
    graph = capture(nn.Sequential(MaskedConv(3, 8, 3), BlurPooling()), torch.randn(IMAGE))
    assert [conv.weight.requires_grad for _, conv in convolutions(graph)] == [True, False]


class StaticPaddingConv(nn.Conv2d):
    """As in efficientnet_lite_pytorch: the convolution holds a module of its own."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.static_padding = nn.ZeroPad2d((0, 1, 2, 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.static_padding(x)
        return F.conv2d(x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


def test_a_convolution_that_holds_a_module_of_its_own():
    model = nn.Sequential(StaticPaddingConv(3, 8, 3), nn.ReLU())
    graph = capture(model.double(), torch.randn(IMAGE, dtype=torch.float64))
    assert [*sites(graph)] == ["0.conv2d"]
    assert [*graph.state_dict()] == ["0.conv2d.weight", "0.conv2d.bias"]  # and not "0.weight" as well
    assert difference_in_float64(graph, model, IMAGE) == 0
    assert [*model.state_dict()] == ["0.weight", "0.bias"]


class Renamed(nn.Conv2d):
    pass


def test_a_subclass_that_computes_the_same_stands_for_its_base():
    model = nn.Sequential(Renamed(3, 8, 3))
    assert [*sites(capture(model))] == ["0"]


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: F.relu(m.a(x)), ["Conv2d", "ReLU"]),
        (lambda m, x: m.a(x).relu_() + 1, ["Conv2d", "ReLU"]),
        (lambda m, x: torch.sigmoid(F.max_pool2d(m.a(x), 2)), ["Conv2d", "MaxPool2d", "Sigmoid"]),
        (lambda m, x: F.hardtanh(m.a(x), 0.0, 6.0), ["Conv2d", "ReLU6"]),
        (lambda m, x: F.conv2d(x, m.a.weight, m.a.bias, padding=2), ["Conv2d"]),
        (lambda m, x: F.dropout(m.a(x), 0.5, False), ["Conv2d"]),
        (lambda m, x: F.avg_pool2d(m.a(x), 3, 2, 1, False, False), ["Conv2d", "AvgPool2d"]),
    ],
)
def test_functions_become_modules(forward, expected):
    model = Lambda(forward, a=nn.Conv2d(3, 4, 3))
    graph = capture(model.eval(), torch.randn(IMAGE))
    assert kinds(graph) == expected
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


@pytest.mark.parametrize(
    "pool",
    [
        lambda x: x.mean((2, 3)),
        lambda x: torch.mean(x, dim=[-1, -2]),
        lambda x: F.avg_pool2d(x, x.size(3)).flatten(1),
        lambda x: F.adaptive_avg_pool2d(x, 1).view(x.size(0), -1),
        lambda x: nn.AdaptiveAvgPool2d(1)(x).squeeze(-1).squeeze(-1),
        lambda x: x.mean([2, 3], keepdim=True).flatten(1),
    ],
)
def test_every_spelling_of_global_pooling_is_one(pool):
    model = Lambda(lambda m, x: m.c(pool(m.a(x))), a=nn.Conv2d(3, 4, 3), c=nn.Linear(4, 2))
    graph = capture(model, torch.randn(IMAGE))
    assert kinds(graph) == ["Conv2d", "AdaptiveAvgPool2d", "Linear"]
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


def test_in_place_operations_change_what_comes_after():
    def forward(m, x):
        y = m.a(x)
        z = F.relu(y, inplace=True)
        y += 1
        y.mul_(2)
        return y, z

    model = Lambda(forward, a=nn.Conv2d(3, 4, 3))
    assert difference_in_float64(capture(model, torch.randn(IMAGE)), model, IMAGE) < 1e-12


def test_numbers_do_not_change_in_place():
    def forward(m, x):
        old = new = x.size(0)
        new *= 2
        return m.a(x) * old + new

    model = Lambda(forward, a=nn.Conv2d(3, 4, 3))
    assert difference_in_float64(capture(model, torch.randn(IMAGE)), model, IMAGE) < 1e-12


def test_in_place_module_is_seen_by_the_other_users():
    def forward(m, x):
        y = m.a(x)
        return m.b(y) + y

    model = Lambda(forward, a=nn.Conv2d(3, 4, 3), b=nn.ReLU(inplace=True))
    graph = capture(model, torch.randn(IMAGE))
    assert difference_in_float64(graph, model, IMAGE) < 1e-12
    assert not any(getattr(module, "inplace", False) for module in graph.modules())


def test_a_shared_module_without_parameters_gets_copies():
    model = Lambda(lambda m, x: m.relu(m.b(m.relu(m.a(x)))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3), relu=nn.ReLU())
    graph = capture(model, torch.randn(IMAGE))
    assert kinds(graph) == ["Conv2d", "ReLU", "Conv2d", "ReLU"]
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


def test_padded_shortcut_becomes_a_fixed_pointwise_convolution():
    def forward(m, x):
        shortcut = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, 2, 3))
        return F.relu(m.a(x) + shortcut)

    model = Lambda(forward, a=nn.Conv2d(3, 8, 3, stride=2, padding=1))
    graph = capture(model, torch.randn(IMAGE))
    fixed, conv = sorted((conv for _, conv in convolutions(graph)), key=lambda conv: conv.kernel_size)
    assert conv.kernel_size == (3, 3)
    assert (fixed.kernel_size, fixed.stride, fixed.bias) == ((1, 1), (2, 2), None)
    assert not fixed.weight.requires_grad
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


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


@pytest.mark.parametrize("name", ["if on a shape", "isinstance"])
def test_example_of_the_wrong_shape_in_the_fallbacks(name):
    with pytest.raises((PreconditionError, CaptureError), match=r"do not fit the network|no way of tracing"):
        capture(UNTRACEABLE[name](), torch.randn(1, 4, 16, 16))


def test_a_module_with_parameters_called_twice_is_refused():
    model = Lambda(lambda m, x: m.b(m.b(m.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
    with pytest.raises(CaptureError, match=r"'b' \(Conv2d\) is called 2 times.*copy\.deepcopy\(model\.b\)"):
        capture(model)


def test_a_parameter_in_two_modules_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model[2].weight = model[0].weight
    with pytest.raises(CaptureError, match=r"'0\.weight' and '2\.weight' are the same tensor"):
        capture(model)


def test_a_weight_used_twice_as_a_function_is_refused():
    model = Lambda(lambda m, x: F.conv2d(F.conv2d(x, m.a.weight), m.a.weight), a=nn.Conv2d(4, 4, 3))
    with pytest.raises(CaptureError, match=r"'a' \(Conv2d\) is called 2 times"):
        capture(model, torch.randn(1, 4, 16, 16))


def test_capture_is_deterministic():
    model = randomized(ResidualNet())
    first, second = capture(model), capture(copy.deepcopy(model))
    assert first.code == second.code
    assert [*first.state_dict()] == [*second.state_dict()]


def test_conv_bn_relu_keeps_its_names():
    assert [*capture(conv_bn_relu(3, 8)).state_dict()][:2] == ["0.weight", "1.weight"]
