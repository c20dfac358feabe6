"""One spelling for each thing: pooling, in-place operations, shortcuts, shared modules."""

from __future__ import annotations

import pytest
import torch
from capture_helpers import IMAGE, kinds
from networks import Lambda, difference_in_float64
from torch import nn
from torch.nn import functional as F

from fxfactor import CaptureError, capture
from fxfactor.graph import convolutions, layers


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


def add_in_place(x, y):
    """What tracing does not look into, and callers use for what it does to `x` (as in torchvision's MViT)."""
    x += y
    return x


torch.fx.wrap("add_in_place")


def test_a_function_that_is_called_for_what_it_does_is_kept():
    def forward(m, x):
        y = m.a(x)
        add_in_place(y, 3.0)
        return m.b(y) + y

    model = Lambda(forward, a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 1))
    graph = capture(model, torch.randn(IMAGE))
    assert any(node.target is add_in_place for node in graph.graph.nodes)
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


def look_on(number=1.0):
    return number


torch.fx.wrap("look_on")


def test_a_function_of_numbers_alone_that_nobody_reads_goes():
    """It has no tensor to change."""

    def forward(m, x):
        look_on()
        look_on(2.0)
        return m.a(x)

    model = Lambda(forward, a=nn.Conv2d(3, 4, 3))
    graph = capture(model, torch.randn(IMAGE))
    assert not [node for node in graph.graph.nodes if node.target is look_on]
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


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


def test_a_module_at_two_paths_is_called_by_the_first():
    model = Lambda(lambda m, x: m.c(m.b(m.a(x))), a=nn.Conv2d(3, 4, 3), b=nn.Conv2d(4, 4, 3))
    model.c = model.b
    graph = capture(model)
    assert [node.target for node, _ in layers(graph)] == ["a", "b", "b"]
    assert [*graph.state_dict()] == ["a.weight", "a.bias", "b.weight", "b.bias"]
    assert difference_in_float64(graph, model, IMAGE) < 1e-12


def test_a_parameter_in_two_modules_is_refused():
    model = nn.Sequential(nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3))
    model[2].weight = model[0].weight
    with pytest.raises(CaptureError, match=r"'0\.weight' and '2\.weight' are the same tensor"):
        capture(model)


def test_a_weight_used_twice_as_a_function_is_one_layer():
    model = Lambda(lambda m, x: F.conv2d(F.conv2d(x, m.a.weight), m.a.weight), a=nn.Conv2d(4, 4, 3))
    graph = capture(model, torch.randn(1, 4, 16, 16))
    assert [node.target for node, _ in layers(graph)] == ["a", "a"]
    assert difference_in_float64(graph, model, (1, 4, 16, 16)) < 1e-12


def test_a_weight_used_with_two_strides_is_refused():
    model = Lambda(lambda m, x: F.conv2d(F.conv2d(x, m.a.weight), m.a.weight, stride=2), a=nn.Conv2d(4, 4, 3))
    with pytest.raises(CaptureError, match="are the same tensor"):
        capture(model, torch.randn(1, 4, 16, 16))


def test_a_weight_computed_twice_the_same_way_is_one_layer():
    def forward(m, x):
        for _ in range(2):
            x = F.conv2d(x, m.a.weight / m.a.weight.std(), groups=x.shape[1] // 4)
        return F.conv2d(x, m.a.weight * m.a.weight.std())

    model = Lambda(forward, a=nn.Conv2d(4, 4, 3)).double()
    graph = capture(model, torch.randn(1, 4, 16, 16, dtype=torch.float64))
    first, second, other = (node.target for node, _ in layers(graph))
    assert first == second != other
    assert difference_in_float64(graph, model, (1, 4, 16, 16)) < 1e-12


@pytest.mark.parametrize("pad", [(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1)])
def test_padding_a_video_in_time_is_no_shortcut(pad):
    """As VideoSwin pads to whole patches, often by nothing."""
    model = Lambda(lambda m, x: m.a(F.pad(x, pad)), a=nn.Conv3d(3, 4, 3))
    shape = (2, 3, 4, 9, 9)
    graph = capture(model, torch.randn(shape))
    assert kinds(graph) == ["Conv3d"]
    assert difference_in_float64(graph, model, shape) < 1e-12


def test_padding_an_image_by_nothing_is_no_shortcut():
    model = Lambda(lambda m, x: m.a(F.pad(x, (0, 0, 0, 0, 0, 0))), a=nn.Conv2d(3, 4, 3))
    assert kinds(capture(model, torch.randn(IMAGE))) == ["Conv2d"]
