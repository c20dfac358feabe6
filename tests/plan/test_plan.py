"""The ladder, plans and their JSON."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from networks import ResidualNet, randomized

from fxfactor import LayerPlan, Plan, PreconditionError, capture, transform
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Pipeline

BITS = st.none() | st.integers(2, 8)


@st.composite
def layer_plans(draw: st.DrawFn) -> LayerPlan:
    groups = draw(st.none() | st.integers(1, 64))
    mid = None if groups is None else draw(st.none() | st.integers(1, 8).map(lambda factor: factor * groups))
    return LayerPlan(groups, mid, draw(BITS), draw(BITS))


PLANS = st.builds(Plan, st.dictionaries(st.text(min_size=1), layer_plans()), BITS)


@given(PLANS)
def test_a_plan_survives_json(plan):
    assert Plan.from_json(plan.to_json()) == plan
    assert json.loads(plan.to_json())["schema_version"] == 1


def test_a_plan_survives_a_file(tmp_path):
    plan = Plan({"a.b": LayerPlan(groups=2, mid=4, weight_bits=3), "c": LayerPlan(activation_bits=8)}, join_bits=4)
    plan.save(tmp_path / "plan.json")
    assert Plan.load(tmp_path / "plan.json") == plan
    assert [path.name for path in tmp_path.iterdir()] == ["plan.json"]


def test_a_level_and_bits_are_a_plan():
    graph = capture(ResidualNet(32))
    plan = Plan.uniform(graph, level=3, weight_bits=4, activation_bits=3)
    assert plan.layers == {
        "stem.0": LayerPlan(None, None, 8, 8),
        "block.conv1": LayerPlan(8, None, 4, 3),
        "block.conv2": LayerPlan(8, None, 4, 3),
        "classifier": LayerPlan(None, None, 8, 8),
    }
    assert (plan.join_bits, plan.residual_bits) == (8, 8)
    narrow = Plan.uniform(graph, level=3, weight_bits=4, activation_bits=3, join_bits=3)
    assert (narrow.join_bits, narrow.residual_bits, narrow.layers) == (3, 3, plan.layers)
    weights = Plan.uniform(graph, level=3, weight_bits=4)
    assert (weights.join_bits, weights.residual_bits) == (None, None)
    with pytest.raises(PreconditionError, match="join_bits=8 needs bits for activations too, found None"):
        Plan.uniform(graph, level=3, weight_bits=4, join_bits=8)


def test_a_width_is_channels_between_the_factors():
    plan = Plan.uniform(capture(ResidualNet(32)), level=3, width=1.6)
    assert {name: (layer.groups, layer.mid) for name, layer in plan.layers.items()} == {
        "stem.0": (None, None),
        "block.conv1": (8, 48),
        "block.conv2": (8, 48),
        "classifier": (None, None),
    }


@pytest.mark.parametrize("level", [0, 1, 3, "depthwise"])
@pytest.mark.parametrize("width", [0.5, 2])
def test_a_plan_gives_what_its_level_and_width_give(level, width):
    model = randomized(ResidualNet())
    by_plan = transform(model, plan=Plan.uniform(capture(model), level, width=width))
    by_level = transform(model, level, width=width)
    assert Plan.of(by_plan) == Plan.of(by_level)
    assert all((value == by_level.state_dict()[key]).all() for key, value in by_plan.state_dict().items())


@pytest.mark.parametrize("level", [0, 1, 3, "depthwise"])
@pytest.mark.parametrize("bits", [None, 2, 4, (3, None), (None, 5), (4, 6)])
def test_a_plan_gives_what_its_level_and_bits_give(level, bits):
    model = randomized(ResidualNet())
    weights, activations = bits if isinstance(bits, tuple) else (bits, bits)
    plan = Plan.uniform(capture(model), level, weights, activations)
    by_plan, by_level = transform(model, plan=plan), transform(model, level, bits)
    assert by_plan.code == by_level.code
    assert Plan.of(by_plan) == Plan.of(by_level)
    assert all((value == by_level.state_dict()[key]).all() for key, value in by_plan.state_dict().items())


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan({"block.conv1": LayerPlan(groups=4, mid=8)}),
        Plan({"block.conv1": LayerPlan(groups=4, mid=32, weight_bits=2, activation_bits=5)}, join_bits=6),
        Plan({"stem.0": LayerPlan(groups=3), "classifier": LayerPlan(weight_bits=7)}),
        Plan({"block.conv2": LayerPlan(groups=1, mid=4, activation_bits=3)}),
        Plan(join_bits=4),
    ],
)
def test_the_plan_of_a_result_is_the_plan_it_was_made_by(plan):
    model = randomized(ResidualNet())
    result = transform(model, plan=plan)
    found = Plan.of(result)
    for site, layer in plan.layers.items():
        assert found.layers[site].groups == layer.groups
        assert found.layers[site].mid == (layer.mid or (None if layer.groups is None else 16 if "block" in site else 3))
        assert found.layers[site].weight_bits == layer.weight_bits
        assert found.layers[site].activation_bits == layer.activation_bits
    assert set(found.layers) == {"stem.0", "block.conv1", "block.conv2", "classifier"}
    assert Plan.of(transform(model, plan=found)) == found


def test_one_layer_of_a_plan_is_changed():
    plan = Plan({"a": LayerPlan(groups=2), "b": LayerPlan()})
    assert plan.with_layer("a", weight_bits=3).layers == {"a": LayerPlan(groups=2, weight_bits=3), "b": LayerPlan()}
    with pytest.raises(PreconditionError, match="no convolution or linear layer 'c' in the plan"):
        plan.with_layer("c", weight_bits=3)


def test_kept_sites_are_quantized_but_not_factorized():
    graph = capture(ResidualNet())
    plan = Plan.uniform(graph, 2, 4, 4, keep=["block.conv1"])
    assert plan.layers["block.conv1"] == LayerPlan(None, None, 4, 4)
    assert plan.layers["block.conv2"].groups == 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"groups": 0}, "groups must be a positive int or None, found 0"),
        ({"groups": True}, "groups must be a positive int or None, found True"),
        ({"groups": 2, "mid": -4}, "mid must be a positive int or None, found -4"),
        ({"mid": 4}, "mid=4 needs groups: a layer left in one piece has no middle"),
        ({"weight_bits": 9}, "weight_bits must be an int from 1 to 8, or None for floating point, found 9"),
        ({"activation_bits": 1}, "activation_bits must be an int from 2 to 8"),
        ({"weight_bits": "4"}, "weight_bits must be .*, found '4'"),
    ],
)
def test_wrong_values_are_refused(values, message):
    with pytest.raises(PreconditionError, match=message):
        LayerPlan(**values)
    text = json.dumps({"schema_version": 1, "layers": {"a.b": values}})
    with pytest.raises(PreconditionError, match=f"layer 'a.b' of the plan: {message}"):
        Plan.from_json(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "a plan must be JSON, found an error at line 1"),
        ("[]", 'a plan must be a JSON object with "schema_version" and "layers"'),
        ("{}", 'a plan must be a JSON object with "schema_version" and "layers"'),
        ('{"schema_version": 1, "layers": []}', 'a plan must be a JSON object with "schema_version" and "layers"'),
        ('{"layers": {}}', "reads plans of schema_version 1, found None"),
        ('{"schema_version": 2, "layers": {}}', "reads plans of schema_version 1, found 2"),
        (
            '{"schema_version": 1, "layers": {}, "bits": 4}',
            "the plan has the unknown field 'bits'; known are explanation",
        ),
        ('{"schema_version": 1, "layers": {"a": {"bits": 4}}}', "layer 'a' of the plan has the unknown field 'bits'"),
        ('{"schema_version": 1, "layers": {"a": 4}}', "layer 'a' of the plan must be a JSON object, found 4"),
        ('{"schema_version": 1, "layers": {}, "join_bits": 99}', "join_bits must be an int from 2 to 8"),
    ],
)
def test_wrong_json_is_refused(text, message):
    with pytest.raises(PreconditionError, match=message):
        Plan.from_json(text)


def test_a_plan_that_is_not_there_is_asked_for(tmp_path):
    with pytest.raises(PreconditionError, match=r"cannot read the plan .*nowhere\.json.*check the path"):
        Plan.load(tmp_path / "nowhere.json")


def test_a_binary_file_is_no_plan(tmp_path):
    (tmp_path / "plan.json").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(PreconditionError, match="a plan must be JSON, found a file that is no text"):
        Plan.load(tmp_path / "plan.json")


def test_unknown_sites_are_refused_with_the_closest():
    with pytest.raises(
        PreconditionError, match=r"no convolution or linear layer 'block\.conv9' in the network; did you mean"
    ):
        transform(ResidualNet(), plan=Plan({"block.conv9": LayerPlan(groups=2)}))
    with pytest.raises(PreconditionError, match=r"no convolution or linear layer 'blok' in the network"):
        transform(ResidualNet(), level=1, keep=("blok",))


def test_keep_is_a_collection():
    with pytest.raises(PreconditionError, match=r"keep must be a collection of module paths.*write \('block',\)"):
        Plan.uniform(capture(ResidualNet()), 1, keep="block")


def test_a_plan_for_a_graph_made_by_passes():
    graph = Pipeline(FactorizeDepth(level=2), Quantize(4, 4))(capture(randomized(ResidualNet()))).graph
    plan = Plan.of(graph)
    assert plan.layers["block.conv1"] == LayerPlan(4, 16, 4, 4)
    assert (plan.join_bits, plan.residual_bits) == (8, 8)
