"""FactorizeDepth: exact at full rank whatever the layer's settings, skipped with a reason elsewhere."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import ResidualNet, difference_in_float64, randomized
from torch import nn

from fxfactor import LayerPlan, Plan, PreconditionError, Skip, capture
from fxfactor.graph import check_graph, shape_of, sites
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Pipeline

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


@st.composite
def layers(draw: st.DrawFn) -> tuple[nn.Module, tuple[int, ...], int]:
    """A convolution with random settings, an input shape for it, and groups for its spatial factor."""
    dimensions = draw(st.sampled_from([1, 2, 2, 2, 3]))
    original_groups = draw(st.sampled_from([1, 1, 2, 3]))
    refinement = draw(st.integers(1, 4))
    groups = original_groups * refinement
    channels_in = groups * draw(st.integers(1, 2))
    channels_out = original_groups * draw(st.integers(1, 5))
    kernel = draw(st.lists(st.integers(1, 3), min_size=dimensions, max_size=dimensions))
    dilation = draw(st.lists(st.integers(1, 2), min_size=dimensions, max_size=dimensions))
    stride = draw(st.lists(st.integers(1, 3), min_size=dimensions, max_size=dimensions))
    padding: Any = draw(st.sampled_from(["same", "valid", "numbers"]))
    if padding == "same":
        stride = [1] * dimensions
    elif padding == "numbers":
        padding = tuple(draw(st.lists(st.integers(0, 2), min_size=dimensions, max_size=dimensions)))
    conv = CONVS[dimensions](
        channels_in,
        channels_out,
        tuple(kernel),
        stride=tuple(stride),
        padding=padding,
        dilation=tuple(dilation),
        groups=original_groups,
        bias=draw(st.booleans()),
        padding_mode=draw(st.sampled_from(["zeros", "reflect", "replicate", "circular"])),
        dtype=torch.float64,
    )
    size = [draw(st.integers(6, 9)) for _ in range(dimensions)]
    return conv, (2, channels_in, *size), groups


def full_rank_mid(conv: nn.Module, groups: int) -> int:
    outputs, inputs = conv.out_channels // conv.groups, conv.in_channels // groups * math.prod(conv.kernel_size)
    return groups * min(outputs, inputs)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@settings(deadline=None, max_examples=150)
@given(layers())
def test_full_rank_factors_reproduce_the_convolution(layer):
    conv, shape, groups = layer
    model = nn.Sequential(conv)
    plan = Plan({"0": LayerPlan(groups=groups, mid=full_rank_mid(conv, groups))})
    result = FactorizeDepth(plan=plan)(capture(model, torch.zeros(shape, dtype=torch.float64)))
    (change,) = result.changes
    assert (change.site, change.into) == ("0", ("0.spatial", "0.pointwise"))
    assert change.relative_error < 1e-12
    spatial, pointwise = sites(result.graph)["0"].modules
    assert (spatial.groups, pointwise.groups) == (groups, conv.groups)
    assert set(pointwise.kernel_size) == {1}
    assert difference_in_float64(result.graph, model, shape) < 1e-12
    with torch.no_grad():
        assert shape_of(sites(result.graph)["0"].nodes[1]) == result.graph(torch.zeros(shape).double()).shape


def test_the_error_of_truncation_is_reported():
    model = nn.Sequential(nn.Conv2d(16, 16, 3))
    plan = Plan({"0": LayerPlan(groups=4, mid=8)})
    result = FactorizeDepth(plan=plan)(capture(model))
    spatial, pointwise = sites(result.graph)["0"].modules
    columns, filters = pointwise.weight.unflatten(1, (4, 2))[..., 0, 0], spatial.weight.unflatten(0, (4, 2))
    product = torch.einsum("ogm,gmihw->ogihw", columns, filters).flatten(1, 2)
    error = (product - model[0].weight).norm() / model[0].weight.norm()
    assert 0.1 < result.changes[0].relative_error < 1
    assert result.changes[0].relative_error == pytest.approx(error.item(), rel=1e-5)


def test_names_in_the_state_dict_speak():
    graph = FactorizeDepth(level=2)(capture(ResidualNet())).graph
    names = [name for name in graph.state_dict() if name.startswith("block.conv1")]
    assert names == ["block.conv1.spatial.weight", "block.conv1.pointwise.weight"]


def test_the_bias_goes_to_the_pointwise_factor():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    spatial, pointwise = sites(FactorizeDepth(level=1)(capture(model)).graph)["1"].modules
    assert spatial.bias is None
    assert torch.equal(pointwise.bias, model[1].bias)


def test_a_frozen_weight_gives_frozen_factors():
    model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.Conv2d(16, 16, 3))
    model[1].requires_grad_(False)
    graph = FactorizeDepth(level=1)(capture(model)).graph
    assert [name for name, p in graph.named_parameters() if p.requires_grad] == ["0.weight", "0.bias"]


@pytest.mark.parametrize(
    ("conv", "level", "reason"),
    [
        (nn.Conv2d(16, 16, 1), 3, "already pointwise"),
        (nn.Conv2d(16, 16, 3, groups=16), 3, "already depthwise"),
        (nn.Conv2d(4, 16, 3), 3, "only 4 input channels, fewer than 8"),
        (nn.Conv2d(16, 16, 3), 0, "level 0 keeps every convolution"),
        (nn.Conv2d(16, 16, 3, groups=8), 3, "level 3 asks for no more groups than the 8 it has"),
        (nn.Conv2d(16, 2, (1, 2)), 1, "2 groups would not lower the MACs: 288 instead of 64 at each pixel"),
    ],
)
def test_what_is_left_alone_and_why(conv, level, reason):
    channels = conv.in_channels
    model = nn.Sequential(nn.Conv2d(3, channels, 3), conv)
    result = FactorizeDepth(level=level)(capture(model))
    assert result.changes == ()
    assert result.skips[1] == Skip("1", reason)


def test_the_first_convolution_is_left_alone_unless_planned():
    graph = capture(nn.Sequential(nn.Conv2d(16, 16, 3), nn.Conv2d(16, 16, 3)))
    result = FactorizeDepth(level=1)(graph)
    assert result.skips == (Skip("0", "the first convolution"),)
    planned = FactorizeDepth(plan=Plan({"0": LayerPlan(groups=2)}))(graph)
    assert [change.site for change in planned.changes] == ["0"]
    assert planned.skips == (Skip("1", "the plan leaves it in one piece"),)


def test_a_grouped_convolution_is_refined_and_keeps_its_groups_behind():
    model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 64, 3, groups=4))
    spatial, pointwise = sites(FactorizeDepth(level=3)(capture(model)).graph)["1"].modules
    assert (spatial.groups, spatial.in_channels, spatial.out_channels) == (8, 32, 32)
    assert (pointwise.groups, pointwise.in_channels, pointwise.out_channels) == (4, 32, 64)


def test_more_channels_between_the_factors_lose_less():
    graph = capture(randomized(ResidualNet(32)))
    results = [FactorizeDepth(level=2, width=width)(graph) for width in (0.5, 1, 2)]
    errors = [[change.relative_error for change in result.changes] for result in results]
    assert all(a > b > c for a, b, c in zip(*errors, strict=True))


def test_a_layer_that_width_would_make_dearer_is_left_alone():
    skips = FactorizeDepth(level=1, width=2)(capture(nn.Sequential(nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3)))).skips
    assert skips[-1] == Skip(
        "1", "2 groups and 16 channels between the factors would not lower the MACs: 704 instead of 576 at each pixel"
    )


def test_kept_sites_and_all_below_them_are_left_alone():
    graph = capture(ResidualNet())
    assert FactorizeDepth(level=1, keep=("block",))(graph).changes == ()
    result = FactorizeDepth(level=1, keep=("block.conv1",))(graph)
    assert [change.site for change in result.changes] == ["block.conv2"]
    assert Skip("block.conv1", "kept on request") in result.skips


def test_a_second_run_yields_only_skips():
    once = FactorizeDepth(level=2)(capture(ResidualNet()))
    again = FactorizeDepth(level=2)(once.graph)
    assert len(once.changes) == 2
    assert again.changes == ()
    assert Skip("block.conv1", "already factorized") in again.skips
    assert difference_in_float64(again.graph, once.graph, (1, 3, 16, 16)) == 0


def test_a_quantized_convolution_is_left_alone():
    graph = Quantize(4, 4)(capture(ResidualNet())).graph
    result = FactorizeDepth(level=2)(graph)
    assert result.changes == ()
    assert Skip("block.conv1", "already quantized: factorize before quantizing") in result.skips


def test_the_graph_given_stays_as_it_is():
    graph = capture(randomized(ResidualNet()))
    code, state = graph.code, {key: value.clone() for key, value in graph.state_dict().items()}
    FactorizeDepth(level="depthwise")(graph)
    assert graph.code == code
    assert all(torch.equal(value, state[key]) for key, value in graph.state_dict().items())


def test_empty_factors_have_the_shapes_of_fitted_ones():
    graph = capture(ResidualNet())
    fitted, empty = (FactorizeDepth(level=2, fit=fit)(graph) for fit in (True, False))
    assert {key: value.shape for key, value in fitted.graph.state_dict().items()} == {
        key: value.shape for key, value in empty.graph.state_dict().items()
    }
    assert not empty.graph.state_dict()["block.conv1.spatial.weight"].any()
    check_graph(empty.graph)


def test_more_levels_come_closer_to_depthwise():
    graph = capture(ResidualNet(32))
    groups = [
        sites(FactorizeDepth(level=level)(graph).graph)["block.conv1"].modules[0].groups
        for level in (0, 1, 2, 3, 4, 5, 6, "depthwise")
    ]
    assert groups == [1, 2, 4, 8, 16, 32, 32, 32]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "FactorizeDepth needs a level or a plan, found level=None and no plan"),
        (
            {"level": 1, "plan": Plan({"a": LayerPlan()})},
            "FactorizeDepth needs a level or a plan, found level=1 and a plan",
        ),
        ({"level": -1}, 'level must be an int of at least 0 or "depthwise", found -1'),
        ({"level": 1.5}, 'level must be an int of at least 0 or "depthwise", found 1.5'),
        ({"level": "deep"}, "found 'deep'"),
        ({"level": 1, "width": -1}, "width must be a number above 0, .*, found -1"),
        ({"plan": Plan(), "width": 2}, "give a plan or a width, not both, found a plan and width=2"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(PreconditionError, match=message):
        FactorizeDepth(**settings)


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        (LayerPlan(groups=3), r"groups=3, mid=16 at 'block\.conv1'.*groups that divide the 16 input channels"),
        (LayerPlan(groups=4, mid=6), r"groups=4, mid=6 .*a mid that is a multiple of the groups"),
    ],
)
def test_impossible_plans_are_refused(layer, message):
    with pytest.raises(PreconditionError, match=message):
        FactorizeDepth(plan=Plan({"block.conv1": layer}))(capture(ResidualNet()))


def test_a_plan_that_has_too_few_groups_is_refused():
    model = nn.Sequential(nn.Conv2d(16, 16, 3, groups=4))
    with pytest.raises(PreconditionError, match="a multiple of the 4 groups it has"):
        FactorizeDepth(plan=Plan({"0": LayerPlan(groups=2)}))(capture(model))


def test_groups_for_a_linear_layer_are_refused():
    with pytest.raises(PreconditionError, match=r"groups=2 at 'classifier', which is a Linear"):
        FactorizeDepth(plan=Plan({"classifier": LayerPlan(groups=2)}))(capture(ResidualNet()))


@pytest.mark.parametrize(
    "make", [lambda p: FactorizeDepth(level=1, keep=(p,)), lambda p: FactorizeDepth(plan=Plan({p: LayerPlan()}))]
)
def test_unknown_sites_are_refused_with_the_closest(make):
    with pytest.raises(
        PreconditionError, match=r"no convolution or linear layer 'block\.conv3'.*did you mean 'block\.conv[12]'"
    ):
        make("block.conv3")(capture(ResidualNet()))


def test_it_works_behind_other_passes():
    result = Pipeline(FactorizeDepth(plan=Plan({"block.conv1": LayerPlan(groups=2)})), FactorizeDepth(level=1))(
        capture(ResidualNet())
    )
    assert [change.site for change in result.changes] == ["block.conv1", "block.conv2"]
