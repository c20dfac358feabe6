"""The one call: what it gives is an ordinary module, the same each time, and the model stays as it was."""

from __future__ import annotations

import copy
import io

import pytest
import torch
from brevitas.nn import QuantLinear
from networks import Lambda, ResidualNet, difference_in_float64, fingerprint, randomized
from torch import nn
from torch.fx import GraphModule

from fxfactor import LayerPlan, Plan, PreconditionError, capture, transform
from fxfactor.graph import check_graph, is_quantizer, placeholders, shape_of, sites
from fxfactor.graph.capture import ASSUMED
from fxfactor.quantization.brevitas_layers import get_limit

IMAGES = (2, 3, 16, 16)
SETTINGS = [(0, None), (1, None), (0, 4), (1, 4), ("depthwise", 2), (1, (3, None)), (1, (None, 5))]


def network() -> nn.Module:
    torch.manual_seed(0)
    return randomized(ResidualNet())


def result_of(level=1, bits=4, **settings) -> GraphModule:
    return transform(network(), level, bits, example_inputs=torch.zeros(IMAGES), **settings)


def test_level_zero_without_bits_is_the_same_function():
    model = randomized(ResidualNet())
    for graph in (transform(model), transform(model, level=0, bits=None)):
        assert difference_in_float64(graph, model, IMAGES) < 1e-14


@pytest.mark.parametrize(("level", "bits"), SETTINGS)
@pytest.mark.parametrize("training", [True, False])
def test_the_model_stays_as_it_was(level, bits, training):
    model = randomized(ResidualNet()).train(training)
    before = fingerprint(model)
    graph = transform(model, level, bits, calibration=[torch.randn(IMAGES)])
    assert fingerprint(model) == before
    assert graph.training == training
    assert not {id(p) for p in model.parameters()} & {id(p) for p in graph.parameters()}
    check_graph(graph)


@pytest.mark.parametrize(("level", "bits"), SETTINGS)
def test_twice_is_the_same(level, bits):
    first, second = result_of(level, bits), result_of(level, bits)
    assert first.code == second.code
    assert all(torch.equal(value, second.state_dict()[key]) for key, value in first.state_dict().items())


@pytest.mark.parametrize(("level", "bits"), SETTINGS)
def test_the_state_dict_goes_into_another_result(level, bits):
    graph = result_of(level, bits)
    other = transform(randomized(ResidualNet(), seed=9), level, bits, example_inputs=torch.zeros(IMAGES))
    images = torch.randn(IMAGES)
    assert not torch.equal(other(images), graph(images))
    other.load_state_dict(graph.state_dict())
    assert torch.equal(other(images), graph(images))


@pytest.mark.parametrize(("level", "bits"), SETTINGS)
def test_a_deep_copy_computes_the_same_and_shares_nothing(level, bits):
    graph = result_of(level, bits)
    twin = copy.deepcopy(graph)
    images = torch.randn(IMAGES)
    wanted = graph(images)
    assert torch.equal(twin(images), wanted)
    with torch.no_grad():
        for parameter in twin.parameters():
            parameter.zero_()
    assert torch.equal(graph(images), wanted)


def test_a_float_result_is_pickled():
    graph = result_of(2, None)
    file = io.BytesIO()
    torch.save(graph, file)
    file.seek(0)
    images = torch.randn(IMAGES)
    assert torch.equal(torch.load(file, weights_only=False)(images), graph(images))


OLD = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 14),
    reason="torch 2.12's compiler stops inside Brevitas' activation quantizers (IndexError in _unpack_quant_tensor)",
)


@pytest.mark.parametrize("bits", [None, pytest.param(4, marks=OLD)])
def test_torch_compile_takes_it(bits):
    graph = result_of(1, bits)
    images = torch.randn(IMAGES)
    compiled = torch.compile(graph, backend="eager")
    torch.testing.assert_close(compiled(images), graph(images))


@pytest.mark.parametrize("bits", [None, 8, 2])
def test_training_lowers_the_loss(bits):
    graph = result_of(1, bits).train()
    images, labels = torch.randn(16, *IMAGES[1:]), torch.arange(16) % 10
    optimizer = torch.optim.Adam(graph.parameters(), 1e-2)
    losses = []
    for _ in range(30):
        loss = nn.functional.cross_entropy(graph(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]


def test_bits_for_weights_and_activations():
    plan = Plan.of(result_of(1, (3, 5)))
    assert plan.layers["block.conv1"] == LayerPlan(2, 16, 3, 5)
    assert plan.layers["stem.0"] == LayerPlan(None, None, 8, 8)


def test_kept_sites_stay_in_one_piece():
    graph = result_of(1, None, keep=["block.conv1"])
    assert [site.name for site in sites(graph).values() if site.factorized] == ["block.conv2"]
    plan = Plan({site: LayerPlan(groups=2) for site in ("block.conv1", "block.conv2")})
    graph = transform(ResidualNet(), plan=plan, keep=("block.conv1",))
    assert [site.name for site in sites(graph).values() if site.factorized] == ["block.conv2"]


def test_one_kept_path_may_be_a_string():
    assert not any(site.factorized for site in sites(result_of(1, None, keep="block")).values())


def test_calibration_gives_the_shapes_and_sets_the_ranges():
    images = 10 * torch.randn(IMAGES)
    graph = transform(randomized(ResidualNet()), 1, 4, calibration=[(images, torch.zeros(2))])
    assert shape_of(placeholders(graph)[0]) == (1, *IMAGES[1:])
    assert not graph.meta[ASSUMED]
    quantizer = next(module for module in graph.modules() if is_quantizer(module))
    assert get_limit(quantizer) > 10


def test_calibration_lowers_the_error():
    model = randomized(ResidualNet())
    images = 3 * torch.randn(32, *IMAGES[1:]) + 1
    errors = []
    for calibration in (None, [images]):
        graph = transform(model, 1, 4, example_inputs=images[:1], calibration=calibration)
        errors.append(float((graph(images) - model(images)).norm().detach()))
    assert errors[1] < errors[0]


def test_a_captured_graph_is_taken_too():
    graph = capture(network(), torch.zeros(IMAGES))
    images = torch.randn(IMAGES)
    assert torch.equal(transform(graph, 1, 4)(images), result_of(1, 4)(images))


def test_a_transformed_graph_can_be_transformed_further():
    images = torch.randn(IMAGES)
    assert torch.equal(transform(result_of(1, None), 0, 4)(images), result_of(1, 4)(images))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"level": -1}, 'level must be an int of at least 0 or "depthwise", found -1; 3 is a good start'),
        ({"level": 2.0}, r"found 2\.0"),
        ({"level": "three"}, "found 'three'"),
        ({"bits": 9}, "bits must be an int from 2 to 8, or None for floating point, found 9"),
        ({"bits": 1}, r"found 1; one bit is for weights alone, as in bits=\(1, 4\)"),
        ({"bits": (0, 4)}, "bits must be an int from 1 to 8, or None for floating point, found 0"),
        ({"bits": (4, 16)}, "found 16"),
        ({"bits": (4, 4, 4)}, r"found \(4, 4, 4\)"),
        ({"bits": "4"}, "found '4'"),
        ({"bits": 4, "join_bits": 1}, "join_bits must be an int from 2 to 8, or None for floating point, found 1"),
        ({"level": 1, "join_bits": 8}, "join_bits=8 needs bits for activations too"),
        ({"bits": (4, None), "join_bits": 8}, "needs bits for activations too"),
        ({"plan": Plan(), "join_bits": 8}, "not both; found level=None, bits=None, join_bits=8 and a plan"),
        ({"level": 1, "plan": Plan()}, "give a plan, or level and bits, not both; found level=1, bits=None and a plan"),
        ({"bits": 4, "plan": Plan()}, "give a plan, or level and bits, not both"),
        ({"width": 2, "plan": Plan()}, "not both; found level=None, bits=None, width=2 and a plan"),
        ({"level": 1, "width": 0}, "width must be a number above 0, .*, found 0; 1 is the default"),
        ({"level": 1, "width": float("nan")}, "found nan"),
        ({"level": 1, "width": "2"}, "found '2'"),
        ({"keep": ("blck",)}, "no convolution or linear layer 'blck' in the network; did you mean 'block"),
        ({"plan": Plan({"fc": LayerPlan()})}, "no convolution or linear layer 'fc' in the network; did you mean"),
        ({"plan": Plan({"block.conv1": LayerPlan(groups=5)})}, "groups that divide the 16 input channels"),
        (
            {"example_inputs": torch.zeros(1, 4, 16, 16)},
            r"inputs \[\(1, 4, 16, 16\)\] do not fit .* fails at 'stem\.0'",
        ),
        ({"example_inputs": torch.zeros(3, 16)}, "do not fit the network"),
        ({"example_inputs": "image"}, "example_inputs must be a tensor or a tuple"),
        ({"bits": 4, "calibration": []}, "calibration|images"),
        ({"bits": 4, "calibration": [{"image": 1}]}, "a batch must be a tensor of images .*, found dict"),
    ],
)
def test_bad_settings_are_refused_and_the_model_stays(settings, message):
    model = randomized(ResidualNet()).train()
    before = fingerprint(model)
    with pytest.raises(PreconditionError, match=message):
        transform(model, **settings)
    assert fingerprint(model) == before


@pytest.mark.parametrize("wrong", [None, "resnet18", ResidualNet, torch.zeros(3)])
def test_what_is_no_module_is_refused(wrong):
    with pytest.raises(PreconditionError, match=r"capture needs a torch\.nn\.Module, found"):
        transform(wrong, level=1)


def test_linear_layers_alone_are_quantized_and_nothing_is_split():
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 2))
    before = fingerprint(model)
    quantized = transform(model, level=3, bits=4, example_inputs=torch.zeros(2, 4))
    assert fingerprint(model) == before
    layers = [module for module in quantized.modules() if isinstance(module, QuantLinear)]
    assert [int(layer.weight_quant.bit_width()) for layer in layers] == [8, 4, 8]
    assert not [name for name, _ in quantized.named_modules() if name.endswith(("spatial", "pointwise"))]


def test_linear_layers_alone_need_bits_and_something_to_quantize():
    linear = Lambda(lambda m, x: m.a(x), a=nn.Linear(4, 4), unused=nn.Conv2d(3, 3, 3))
    with pytest.raises(PreconditionError, match="Lambda has linear layers only; give bits= to quantize them"):
        transform(linear, level=1, example_inputs=torch.zeros(2, 4))
    with pytest.raises(PreconditionError, match="Sequential has none that its forward calls"):
        transform(nn.Sequential(nn.ReLU()), bits=4, example_inputs=torch.zeros(2, 4))


def test_a_layer_called_twice_is_one_site_and_the_model_stays():
    model = Lambda(lambda m, x: m.b(m.b(m.a(x))), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3))
    before = fingerprint(model)
    factorized = transform(model, level=1)
    assert [str(node.target) for node in factorized.graph.nodes].count("b.pointwise") == 2
    assert fingerprint(model) == before
