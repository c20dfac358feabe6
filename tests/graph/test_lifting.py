"""Functions become modules, and hidden convolutions visible."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from capture_helpers import IMAGE, kinds
from networks import Lambda, difference_in_float64
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor import CaptureError, capture
from fxfactor.graph import convolutions, hidden_convolutions, sites

aten = torch.ops.aten


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
    "name", ["dropout", "dropout1d", "dropout2d", "dropout3d", "alpha_dropout", "feature_alpha_dropout"]
)
@pytest.mark.parametrize("given", [(), (0.25,)])
def test_functions_that_drop_become_modules_with_their_probability(name, given):
    drop = getattr(F, name)
    pick = {"dropout1d": lambda x: x.flatten(2), "dropout3d": lambda x: x[:, :, None]}.get(name, lambda x: x)
    model = Lambda(lambda m, x: drop(pick(m.a(x)), *given, training=m.training), a=nn.Conv2d(3, 4, 3)).train()
    graph = capture(model, torch.randn(IMAGE))
    (module,) = [module for module in graph.modules() if "Dropout" in type(module).__name__]
    assert type(module).__name__.lower() == name.replace("_", "")
    assert module.p == (given or (0.5,))[0]


SPELLINGS: list[tuple[Callable[[torch.Tensor], torch.Tensor], str]] = [
    (F.relu, "ReLU"), (torch.relu, "ReLU"), (lambda x: x.relu(), "ReLU"), (aten.relu.default, "ReLU"), (F.relu6, "ReLU6"),
    (lambda x: F.hardtanh(x, -0.5, 0.25), "Hardtanh"), (lambda x: aten.hardtanh.default(x, -0.5, 0.25), "Hardtanh"),
    (lambda x: F.leaky_relu(x, 0.3), "LeakyReLU"), (lambda x: aten.leaky_relu.default(x, 0.3), "LeakyReLU"),
    (lambda x: F.elu(x, 0.7), "ELU"), (lambda x: F.elu(x, alpha=0.7), "ELU"), (F.silu, "SiLU"), (F.mish, "Mish"),
    (lambda x: F.gelu(x, approximate="tanh"), "GELU"), (F.hardswish, "Hardswish"), (F.hardsigmoid, "Hardsigmoid"),
    (F.sigmoid, "Sigmoid"), (torch.sigmoid, "Sigmoid"), (lambda x: x.sigmoid(), "Sigmoid"), (F.tanh, "Tanh"),
    (torch.tanh, "Tanh"), (lambda x: x.tanh(), "Tanh"),
    (lambda x: F.max_pool2d(x, 3, 2, 1, 1, True), "MaxPool2d"), (lambda x: torch.max_pool2d(x, 2, 1, 0, 2), "MaxPool2d"),
    (lambda x: F.avg_pool2d(x, (2, 3), stride=2, padding=1, count_include_pad=False), "AvgPool2d"),
    (lambda x: aten.avg_pool2d.default(x, [3, 3], [2, 2], [1, 1], True, False), "AvgPool2d"),
    (lambda x: F.adaptive_avg_pool2d(x, (3, 5)), "UnevenAdaptiveAvgPool2d"),
    (lambda x: F.adaptive_max_pool2d(x, (3, 5)), "AdaptiveMaxPool2d"),
]  # fmt: skip


@pytest.mark.parametrize(("function", "kind"), SPELLINGS)
def test_every_spelling_of_a_layer_without_weights_is_that_layer(function, kind):
    model = Lambda(lambda m, x: function(m.a(x)), a=nn.Conv2d(3, 4, 3))
    graph = capture(model.eval(), torch.randn(IMAGE))
    assert kinds(graph) == ["Conv2d", kind]
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


@pytest.mark.parametrize(
    ("function", "kind", "shape"),
    [
        (lambda x: F.max_pool1d(x, 3, 2, 1), "MaxPool1d", (2, 3, 11)),
        (lambda x: F.avg_pool1d(x, 3, 2, 1, True), "AvgPool1d", (2, 3, 12)),
        (lambda x: F.adaptive_avg_pool1d(x, 4), "AdaptiveAvgPool1d", (2, 3, 11)),
        (lambda x: F.max_pool3d(x, 2, 1), "MaxPool3d", (1, 3, 5, 6, 7)),
        (lambda x: F.avg_pool3d(x, 2, 2, 1, False, False), "AvgPool3d", (1, 3, 5, 6, 7)),
        (lambda x: F.adaptive_avg_pool3d(x, (2, 3, 1)), "AdaptiveAvgPool3d", (1, 3, 5, 6, 7)),
    ],
)
def test_poolings_of_series_and_volumes(function, kind, shape):
    conv = (nn.Conv1d if len(shape) == 3 else nn.Conv3d)(3, 4, 1)
    model = Lambda(lambda m, x: function(m.a(x)), a=conv)
    graph = capture(model.eval(), torch.randn(shape))
    assert kinds(graph)[1] == kind
    assert difference_in_float64(graph, model, shape) < 1e-12


class OnParameters(nn.Module):
    """Layers called as functions on parameters of their own, with every setting away from its default."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(8, 2, 3, 2))
        self.bias = nn.Parameter(torch.randn(8))
        self.gains = nn.ParameterList(torch.rand(8) + 0.5 for _ in range(3))
        self.shifts = nn.ParameterList(torch.randn(8) for _ in range(3))
        self.register_buffer("mean", torch.randn(8))
        self.register_buffer("var", torch.rand(8) + 0.5)
        self.last = nn.Parameter(torch.randn(5, 8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.conv2d(x, self.weight, self.bias, stride=(2, 1), padding=(1, 2), dilation=(1, 2), groups=2)
        x = F.batch_norm(x, self.mean, self.var, self.gains[0], self.shifts[0], False, 0.2, 0.01)
        x = F.group_norm(x, 4, self.gains[1], self.shifts[1], 0.02)
        x = F.layer_norm(x.mean((2, 3)), (8,), self.gains[2], self.shifts[2], 0.03)
        return F.linear(x, self.last)


def test_layers_on_parameters_keep_every_setting():
    model = OnParameters().eval()
    with pytest.raises(CaptureError, match="outputs differ in training"):  # its batch norm never learns; a module does
        capture(model, torch.randn(2, 4, 9, 8))
    graph = capture(model, torch.randn(2, 4, 9, 8), compare=False)
    made = {type(module).__name__: module for module in graph.modules()}
    assert {"Conv2d", "BatchNorm2d", "GroupNorm", "LayerNorm", "Linear"} <= made.keys()
    assert [made[kind].eps for kind in ("BatchNorm2d", "GroupNorm", "LayerNorm")] == [0.01, 0.02, 0.03]
    assert made["Linear"].bias is None
    assert difference_in_float64(graph, model, (2, 4, 9, 8)) < 1e-12
