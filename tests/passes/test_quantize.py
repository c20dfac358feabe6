"""Quantize: where quantizers stand, who shares one, and what they hold, on small networks made by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from brevitas import nn as qnn
from networks import Lambda, ResidualNet, conv_bn_relu, randomized, set_statistics
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.nn import functional as F

from fxfactor import Change, LayerPlan, Plan, PreconditionError, Skip, calibrate, capture
from fxfactor.graph import is_quantizer, layers, module_of, sites
from fxfactor.graph.dataflow import input_quantizer, is_average_pooling, is_join, tensor_inputs
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import HISTORY, Pipeline
from fxfactor.quantization.brevitas_layers import get_limit, is_signed, quantizer_bits

IMAGE = (2, 3, 16, 16)


def quantized(model: nn.Module, bits: int = 4, shape: tuple[int, ...] = IMAGE, **settings: Any) -> GraphModule:
    """Additions as narrow as the layers, if nothing is said: one quantizer for all that read a tensor."""
    settings.setdefault("join_bits", bits)
    return Quantize(bits, bits, **settings)(capture(randomized(model), torch.zeros(shape))).graph


def kinds(graph: GraphModule) -> list[str]:
    """What is called, in order: "i8" is a signed 8-bit quantizer, "u4" an unsigned one, else the class or function."""
    found = []
    for node in graph.graph.nodes:
        module = module_of(node)
        if is_quantizer(module):
            found.append(f"{'i' if is_signed(module) else 'u'}{quantizer_bits(module)}")
        elif module is not None:
            found.append(type(module).__name__.removeprefix("Quant"))
        elif node.op in ("call_function", "call_method"):
            found.append(getattr(node.target, "__name__", str(node.target)))
    return found


def quantizers(graph: GraphModule) -> list[nn.Module]:
    """The distinct activation quantizers, in the order of the graph."""
    return [*{module: None for node in graph.graph.nodes if is_quantizer(module := module_of(node))}]


def joins(graph: GraphModule) -> list[Node]:
    return [node for node in graph.graph.nodes if is_join(node)]


def test_a_chain_of_convolutions():
    graph = quantized(nn.Sequential(conv_bn_relu(3, 8), conv_bn_relu(8, 8), nn.Conv2d(8, 10, 1)))
    assert kinds(graph) == ["i8", "Conv2d", "BatchNorm2d", "u4", "Conv2d", "BatchNorm2d", "u8", "Conv2d"]
    assert [type(module) for module in quantizers(graph)] == [qnn.QuantIdentity, qnn.QuantReLU, qnn.QuantReLU]
    assert all(isinstance(layer, qnn.QuantConv2d) for _, layer in layers(graph))


def test_weights_are_symmetric_integers_with_a_scale_per_channel():
    graph = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(12, 4)), bits=3)
    conv = graph.get_submodule("1")
    weight = conv.quant_weight()
    assert weight.scale.flatten().shape == (8,)
    assert not weight.zero_point.any()
    assert int(weight.int().abs().max()) == 3
    assert int(graph.get_submodule("2").quant_weight().int().abs().max()) == 127


def test_the_weights_are_those_of_the_model():
    model = ResidualNet()
    graph = Quantize(8, 8)(capture(model)).graph
    state = graph.state_dict()
    assert all(torch.equal(state[key], value) for key, value in model.state_dict().items())


def test_residual_addition_shares_one_signed_quantizer():
    graph = quantized(ResidualNet())
    (join,) = joins(graph)
    first, second = (module_of(x) for x in tensor_inputs(join))
    assert first is second
    assert is_signed(first)
    # the convolution beside the shortcut still sees the unsigned tensor behind its ReLU
    assert not is_signed(input_quantizer(sites(graph)["block.conv1"].nodes[0]))
    assert kinds(graph).count("i4") == 2


def test_residual_addition_of_two_rectified_branches_is_unsigned():
    def forward(m, x):
        x = F.relu(m.a(x))
        return m.c(x + F.relu(m.b(x)))

    model = Lambda(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 4, 1))
    graph = quantized(model)
    (join,) = joins(graph)
    first, second = (module_of(x) for x in tensor_inputs(join))
    assert first is second
    assert kinds(graph) == ["i8", "Conv2d", "u4", "Conv2d", "u4", "add", "u8", "Conv2d"]


def test_concatenation_shares_one_quantizer_among_its_branches():
    def forward(m, x):
        x = F.relu(m.stem(x))
        return m.last(torch.cat([F.relu(m.a(x)), F.relu(m.b(x))], 1))

    conv = nn.Conv2d
    model = Lambda(forward, stem=conv(3, 8, 3), a=conv(8, 8, 1), b=conv(8, 4, 1), last=conv(12, 4, 3))
    graph = quantized(model)
    (join,) = joins(graph)
    first, second = (module_of(x) for x in tensor_inputs(join))
    assert first is second
    assert not is_signed(first)
    assert len(quantizers(graph)) == 3
    assert input_quantizer(sites(graph)["last"].nodes[0]) is first


class DenseBlock(nn.Module):
    """cat(x), cat(x, a), cat(x, a, b): every tensor meets every other one."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.norms = nn.ModuleList(nn.BatchNorm2d(8 + 4 * i) for i in range(3))
        self.convs = nn.ModuleList(nn.Conv2d(8 + 4 * i, 4, 3, padding=1) for i in range(3))

    def forward(self, x: Tensor) -> Tensor:
        features = [self.stem(x)]
        for norm, conv in zip(self.norms, self.convs, strict=True):
            features.append(conv(F.relu(norm(torch.cat(features, 1)))))
        return torch.cat(features, 1)


def test_a_dense_block_shares_one_quantizer_among_all_that_meet():
    graph = quantized(DenseBlock())
    met = {module_of(x) for join in joins(graph) for x in tensor_inputs(join)}
    assert len(met) == 1
    assert is_signed(*met)


def test_linear_bottleneck_of_mobilenet_v2():
    def forward(m, x):
        x = m.stem(x)
        return x + m.project_bn(m.project(m.relu2(m.depthwise(m.relu1(m.expand(x))))))

    model = Lambda(
        forward,
        stem=nn.Conv2d(3, 8, 3),
        expand=nn.Conv2d(8, 16, 1),
        relu1=nn.ReLU6(),
        depthwise=nn.Conv2d(16, 16, 3, padding=1, groups=16),
        relu2=nn.ReLU6(),
        project=nn.Conv2d(16, 8, 1),
        project_bn=nn.BatchNorm2d(8),
    )
    graph = quantized(model)
    expected = ["i8", "Conv2d", "i4", "Conv2d", "u4", "Conv2d", "u8", "Conv2d", "BatchNorm2d", "i4", "add"]
    assert kinds(graph) == expected
    (join,) = joins(graph)
    assert len({module_of(x) for x in tensor_inputs(join)}) == 1


def test_relu6_becomes_a_quantizer_that_never_goes_beyond_six():
    graph = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU6(), nn.Conv2d(8, 8, 1), nn.ReLU6(), nn.Conv2d(8, 2, 1)))
    relu6 = [module for module in quantizers(graph) if not is_signed(module)]
    assert len(relu6) == 2
    calibrate(graph, [100 * torch.randn(IMAGE)])
    for module in relu6:
        assert get_limit(module) <= 6
        assert module(torch.tensor([100.0])).item() <= 6 + 1e-6


def test_max_pooling_and_flatten_are_seen_through():
    def forward(m, x):
        x = F.max_pool2d(F.relu(m.a(x)), 2)
        return m.c((x + F.relu(m.b(x))).flatten(1))

    model = Lambda(forward, a=nn.Conv2d(3, 8, 3, padding=1), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Linear(512, 4))
    graph = quantized(model)
    assert kinds(graph) == ["i8", "Conv2d", "u4", "MaxPool2d", "Conv2d", "u4", "add", "u8", "flatten", "Linear"]
    assert len({input_quantizer(node) for node in joins(graph)} | {input_quantizer(sites(graph)["b"].nodes[0])}) == 1


def test_global_average_pooling_has_quantizers_on_both_sides():
    graph = quantized(ResidualNet())
    assert kinds(graph)[-5:] == ["u4", "AdaptiveAvgPool2d", "u8", "flatten", "Linear"]


def test_between_the_factors_stands_a_signed_quantizer():
    graph = FactorizeDepth(level=2)(capture(randomized(ResidualNet()))).graph
    graph = Quantize(4, 4)(graph).graph
    (site,) = (site for site in sites(graph).values() if site.name == "block.conv1")
    between = input_quantizer(site.nodes[1])
    assert is_signed(between)
    assert quantizer_bits(between) == 4
    assert not is_signed(input_quantizer(site.nodes[0]))


def test_a_sum_that_a_convolution_also_reads_has_one_quantizer_behind_it():
    graph = quantized(nn.Sequential(ResidualNet().stem, ResidualNet().block, ResidualNet().block, nn.Conv2d(16, 4, 1)))
    first, second = joins(graph)
    behind = module_of(next(iter(first.users)))
    assert isinstance(behind, qnn.QuantReLU)
    assert input_quantizer(sites(graph)["2.conv1"].nodes[0]) is behind
    assert len({module_of(x) for x in tensor_inputs(second)}) == 1


def test_what_is_added_keeps_its_bits_where_a_layer_wants_fewer():
    """A block, and one that halves the map: there two layers read the same tensor, and share the copy."""

    def forward(m, x):
        x = F.relu(m.stem(x))
        x = F.relu(x + m.b(F.relu(m.a(x))))
        return m.head(m.shortcut(x) + m.d(F.relu(m.c(x))))

    def conv(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
        return nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)

    model = Lambda(forward, stem=conv(3, 8), a=conv(8, 8), b=conv(8, 8), shortcut=conv(8, 8, 2), c=conv(8, 8, 2),
                   d=conv(8, 8), head=nn.Conv2d(8, 4, 1))  # fmt: skip
    graph = quantized(model, join_bits=8)
    bits = {node.target: quantizer_bits(input_quantizer(node)) for node, _ in layers(graph)}
    assert bits == {"stem": 8, "a": 4, "b": 4, "shortcut": 4, "c": 4, "d": 4, "head": 8}
    for join in joins(graph):
        assert {quantizer_bits(module_of(x)) for x in tensor_inputs(join)} == {8}
    copy = input_quantizer(sites(graph)["a"].nodes[0])
    before = module_of(tensor_inputs(tensor_inputs(sites(graph)["a"].nodes[0])[0])[0])
    assert (is_signed(copy), is_signed(before), quantizer_bits(before)) == (False, False, 8)
    assert input_quantizer(sites(graph)["shortcut"].nodes[0]) is input_quantizer(sites(graph)["c"].nodes[0])
    plan = Plan.of(graph)
    assert (plan.join_bits, plan.residual_bits) == (8, 8)
    assert {name: layer.activation_bits for name, layer in plan.layers.items()} == bits
    assert kinds(Quantize(4, 4)(capture(model, torch.zeros(IMAGE))).graph) == kinds(graph), "it is what one gets"


def test_in_a_linear_bottleneck_the_copy_is_signed_and_a_relu6_keeps_its_limit():
    def forward(m, x):
        x = m.relu(m.stem(x))
        x = x + m.project(x)
        return m.head(x + m.again(x))

    model = Lambda(forward, stem=nn.Conv2d(3, 8, 3), relu=nn.ReLU6(), project=nn.Conv2d(8, 8, 1),
                   again=nn.Conv2d(8, 8, 1), head=nn.Conv2d(8, 4, 1))  # fmt: skip
    graph = calibrate(quantized(model, join_bits=6), [100 * torch.randn(IMAGE)])
    first, second = (input_quantizer(sites(graph)[name].nodes[0]) for name in ("project", "again"))
    assert [quantizer_bits(each) for each in (first, second)] == [4, 4]
    assert [is_signed(each) for each in (first, second)] == [False, True]
    assert get_limit(first) <= 6 < get_limit(second)


def test_dense_blocks_have_no_copies():
    """What is concatenated is not added: it has the bits that the layers ask for."""
    model = nn.Sequential(DenseBlock(), nn.Conv2d(20, 4, 1))
    assert kinds(quantized(model, join_bits=8)) == kinds(quantized(model))


def test_every_layer_and_join_gets_quantized_tensors():
    for model in (ResidualNet(), DenseBlock()):
        graph = quantized(model)
        for node, _ in layers(graph):
            assert input_quantizer(node) is not None, node
        for node in joins(graph):
            assert input_quantizer(node) is not None or len(tensor_inputs(node)) > 1
            assert all(is_quantizer(module_of(x)) or is_join(x) for x in tensor_inputs(node)), node


def test_a_subtraction_is_signed():
    def forward(m, x):
        x = F.relu(m.a(x))
        return m.c(x - F.relu(m.b(x)))

    model = Lambda(forward, a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3, padding=1), c=nn.Conv2d(8, 4, 1))
    graph = quantized(model)
    assert is_signed(input_quantizer(sites(graph)["c"].nodes[0]))
    assert not is_signed(input_quantizer(joins(graph)[0]))


@pytest.mark.parametrize(
    ("activation", "expected"),
    [
        (nn.ReLU(), ["u4"]),
        (nn.Sigmoid(), ["Sigmoid", "u4"]),
        (nn.SiLU(), ["SiLU", "i4"]),
        (nn.Hardswish(), ["Hardswish", "i4"]),
        (nn.LeakyReLU(0.1), ["LeakyReLU", "i4"]),
        (nn.Softplus(), ["Softplus", "u4"]),
    ],
)
def test_signs_follow_the_activation(activation, expected):
    graph = quantized(nn.Sequential(nn.Conv2d(3, 8, 3), activation, nn.Conv2d(8, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 1)))
    assert kinds(graph) == ["i8", "Conv2d", *expected, "Conv2d", "u8", "Conv2d"]


def test_squeeze_and_excitation():
    def forward(m, x):
        x = m.a(x)
        return m.last(x * torch.sigmoid(m.up(F.relu(m.down(F.adaptive_avg_pool2d(x, 1))))))

    conv = nn.Conv2d
    graph = quantized(Lambda(forward, a=conv(3, 8, 3), down=conv(8, 4, 1), up=conv(4, 8, 1), last=conv(8, 4, 1)))
    for node, _ in layers(graph):
        assert input_quantizer(node) is not None, node


@pytest.mark.parametrize("bits", range(2, 9))
def test_bits_and_boundary_bits(bits):
    graph = quantized(nn.Sequential(*(conv_bn_relu(8, 8) for _ in range(3))), bits=bits, shape=(2, 8, 16, 16))
    plan = Plan.of(graph)
    assert [layer.weight_bits for layer in plan.layers.values()] == [8, bits, 8]
    assert [layer.activation_bits for layer in plan.layers.values()] == [8, bits, 8]
    levels = graph.get_submodule("1.0").quant_weight().int().unique()
    assert len(levels) <= 2**bits - 1


def test_boundary_bits_can_be_told():
    graph = quantized(nn.Sequential(*(conv_bn_relu(8, 8) for _ in range(3))), boundary_bits=2, shape=(2, 8, 16, 16))
    assert [layer.weight_bits for layer in Plan.of(graph).layers.values()] == [2, 4, 2]


def test_weights_alone_and_activations_alone():
    graph = capture(randomized(ResidualNet()))
    weights = Quantize(weight_bits=4)(graph).graph
    assert quantizers(weights) == []
    assert Plan.of(weights).layers["block.conv1"] == LayerPlan(weight_bits=4)
    activations = Quantize(activation_bits=4)(graph).graph
    assert not any(isinstance(layer, qnn.QuantConv2d) for _, layer in layers(activations))
    assert Plan.of(activations).layers["block.conv1"] == LayerPlan(activation_bits=4)


def test_a_plan_gives_each_layer_its_bits():
    bits = {"stem.0": (8, 8), "block.conv1": (2, 3), "block.conv2": (5, 6), "classifier": (7, 4)}
    plan = Plan({site: LayerPlan(weight_bits=w, activation_bits=a) for site, (w, a) in bits.items()}, join_bits=5)
    graph = Quantize(plan=plan)(capture(randomized(ResidualNet()))).graph
    found = Plan.of(graph)
    assert {site: (layer.weight_bits, layer.activation_bits) for site, layer in found.layers.items()} == bits
    assert found.join_bits == 5


def test_a_shared_quantizer_takes_the_most_bits_asked_for():
    def forward(m, x):
        x = F.relu(m.stem(x))
        return m.a(x), m.b(x)

    graph = capture(Lambda(forward, stem=nn.Conv2d(3, 8, 3), a=nn.Conv2d(8, 4, 1), b=nn.Conv2d(8, 4, 1)))
    plan = Plan({"a": LayerPlan(activation_bits=3), "b": LayerPlan(activation_bits=6)})
    assert kinds(Quantize(plan=plan)(graph).graph) == ["Conv2d", "u6", "Conv2d", "Conv2d"]


def test_layers_without_bits_stay_as_they_are():
    plan = Plan({"block.conv1": LayerPlan(weight_bits=4, activation_bits=4)})
    result = Quantize(plan=plan)(capture(ResidualNet()))
    assert [type(layer).__name__ for _, layer in layers(result.graph)] == ["Conv2d", "QuantConv2d", "Conv2d", "Linear"]
    assert Skip("stem.0", "the plan gives it no weight bits") in result.skips
    assert len(quantizers(result.graph)) == 1


def test_what_was_done_is_reported():
    result = Quantize(4, 3)(capture(nn.Sequential(*(conv_bn_relu(3, 3) for _ in range(3)))))
    assert Change("1.0", ("4-bit weights",)) in result.changes
    assert Change("0.2", ("unsigned 3-bit activations",)) in result.changes
    assert Change("input_1_quant", ("signed 8-bit activations",)) in result.changes


def test_names_of_quantizers_are_free_ones():
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Conv2d(8, 8, 3))
    model.add_module("0_quant", nn.Conv2d(8, 4, 1))
    graph = quantized(model)
    assert isinstance(graph.get_submodule("0_quant"), qnn.QuantConv2d)
    assert is_quantizer(graph.get_submodule("0_quant_1"))


def test_gradients_reach_weights_and_ranges():
    graph = quantized(ResidualNet()).train()
    graph(torch.randn(IMAGE)).square().sum().backward()
    for name, parameter in graph.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_plain_tensors_flow_between_the_layers():
    seen = set()
    graph = quantized(ResidualNet())
    for node in graph.graph.nodes:
        if (module := module_of(node)) is not None:
            module.register_forward_hook(lambda module, inputs, output: seen.add(type(output)))
    graph(torch.randn(IMAGE))
    assert seen == {Tensor}


MODELS: dict[str, Callable[[], nn.Module]] = {
    "residual": ResidualNet,
    "dense": DenseBlock,
    "chain": lambda: nn.Sequential(*(conv_bn_relu(3, 3) for _ in range(4))),
}


@pytest.mark.parametrize("name", MODELS)
def test_eight_bits_are_close_to_the_float_network(name):
    model = randomized(MODELS[name]())
    images = [torch.randn(16, *IMAGE[1:]) for _ in range(2)]
    set_statistics(model, images)
    graph = Quantize(8, 8)(capture(model, images[0])).graph
    with torch.no_grad():
        wanted, found = model(images[0]), graph(images[0])
    assert (found - wanted).norm() / wanted.norm() < 0.05


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("level", [0, 1])
def test_ranges_without_data_are_near_those_from_calibration(name, level):
    model = randomized(MODELS[name]())
    images = [torch.randn(16, *IMAGE[1:]) for _ in range(2)]
    set_statistics(model, images)
    graph = Pipeline(FactorizeDepth(level=level), Quantize(4, 4))(capture(model, images[0])).graph
    without = {module: get_limit(module) for module in quantizers(graph)}
    pooled = {module_of(user) for node in graph.graph.nodes if is_average_pooling(node) for user in node.users}
    calibrate(graph, images)
    for module, guess in without.items():
        # how much averaging over the image narrows a range depends on the images, so it is not taken into account
        assert 0.6 < guess / get_limit(module) < (8 if module in pooled else 1.7)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"weight_bits": 9}, "weight_bits must be an int from 1 to 8, or None for floating point, found 9"),
        ({"activation_bits": 1}, "activation_bits must be an int from 2 to 8, or None for floating point, found 1"),
        ({"weight_bits": 4, "join_bits": 8}, "join_bits=8 needs bits for activations too"),
        ({"weight_bits": 4, "boundary_bits": 16}, "boundary_bits must be an int from 2 to 8"),
        ({"weight_bits": 4.0}, r"found 4\.0"),
        ({"weight_bits": True}, "found True"),
        ({}, "Quantize needs weight_bits and/or activation_bits, or a plan, and not both"),
        ({"weight_bits": 4, "plan": Plan()}, "and not both"),
    ],
)
def test_wrong_settings_are_refused(settings, message):
    with pytest.raises(PreconditionError, match=message):
        Quantize(**settings)


def test_half_precision_is_refused_by_the_name_of_its_parameter():
    graph = capture(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)), torch.zeros(IMAGE)).half()
    with pytest.raises(PreconditionError, match=r"float32 or bfloat16, found '0\.weight' in float16"):
        Quantize(4, 4)(graph)


def test_what_is_quantized_already_is_told_by_its_path():
    again = Quantize(weight_bits=4)(quantized(nn.Sequential(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3))))
    assert Skip("1", "already quantized") in again.graph.meta[HISTORY]


def test_unknown_sites_in_the_plan_are_refused():
    with pytest.raises(PreconditionError, match=r"no convolution or linear layer 'stem\.1'.*'stem\.0'"):
        Quantize(plan=Plan({"stem.1": LayerPlan(weight_bits=4)}))(capture(ResidualNet()))
