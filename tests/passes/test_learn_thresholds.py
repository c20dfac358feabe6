"""LearnThresholds: the same function first, trained with the rest, and the same integers and cost in hardware."""

from __future__ import annotations

import pytest
import torch
from networks import ResidualNet, randomized
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError, transform
from fxfactor.graph import is_quantizer
from fxfactor.passes import LearnThresholds
from fxfactor.pipeline import Pipeline
from fxfactor.quantization.brevitas_layers import quantizer_bits
from fxfactor.quantization.plain_copy import freeze
from fxfactor.quantization.threshold_curve import ThresholdCurve


def images(count: int = 8) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def quantized(bits: int = 3) -> GraphModule:
    torch.manual_seed(0)
    return transform(randomized(ResidualNet()), level=1, bits=bits, calibration=[images()], recover="none").eval()


def curves(graph: GraphModule) -> list[ThresholdCurve]:
    return [module for module in graph.modules() if isinstance(module, ThresholdCurve)]


def bend(graph: GraphModule) -> GraphModule:
    """Slopes as training might leave them."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for curve in curves(graph):
            curve.log_slopes.copy_(0.4 * torch.randn(len(curve.log_slopes), generator=generator))
    return graph


def test_nothing_changes_at_first():
    graph = quantized()
    result = Pipeline(LearnThresholds(), verify=True)(graph)
    with torch.no_grad():
        assert torch.equal(result.graph(images()), graph(images()))
    assert result.changes


def test_every_quantizer_of_few_bits_but_that_of_the_input_has_one():
    graph = quantized()
    result = LearnThresholds(pieces=5)(graph)
    found = {
        str(node.target): node.all_input_nodes[0]
        for node in result.graph.graph.nodes
        if is_quantizer(_module(result.graph, node))
    }
    for path, source in found.items():
        few = quantizer_bits(result.graph.get_submodule(path)) <= 4
        has_one = isinstance(_module(result.graph, source), ThresholdCurve)
        assert has_one == (few and source.op != "placeholder"), path
    assert all(len(curve.log_slopes) == 5 for curve in curves(result.graph))
    assert {skip.reason for skip in result.skips} >= {"it quantizes the network's input"}
    assert not LearnThresholds(pieces=5)(result.graph).changes


def _module(graph: GraphModule, node: torch.fx.Node) -> torch.nn.Module | None:
    return graph.get_submodule(str(node.target)) if node.op == "call_module" else None


def test_quantizers_of_more_bits_are_left_alone():
    assert not LearnThresholds(at_most_bits=2)(quantized(3)).changes
    assert LearnThresholds(at_most_bits=3)(quantized(3)).changes


def test_training_moves_knots_and_slopes():
    torch.manual_seed(0)
    model = randomized(ResidualNet())
    graph = LearnThresholds()(quantized()).graph
    before = [(curve.knots.detach().clone(), curve.log_slopes.detach().clone()) for curve in curves(graph)]
    fxfactor.finetune(graph, images().split(4), teacher=model, epochs=1)
    moved = [not torch.equal(c.log_slopes, slopes) for c, (_, slopes) in zip(curves(graph), before, strict=True)]
    assert all(moved)
    assert any(not torch.equal(c.knots, knots) for c, (knots, _) in zip(curves(graph), before, strict=True))


def test_a_stage_of_other_bits_goes_on_from_one_with_curves():
    curved, plain = bend(LearnThresholds()(quantized(3)).graph), quantized(4)
    before = [curve.log_slopes.detach().clone() for curve in curves(curved)]
    layers = {name: value for name, value in curved.state_dict().items() if name in plain.state_dict()}
    fxfactor.continue_from(plain, curved)
    assert all(
        torch.equal(plain.state_dict()[name], value) for name, value in layers.items() if name.endswith("weight")
    )
    fxfactor.continue_from(curved, plain)
    assert all(torch.equal(c.log_slopes, slopes) for c, slopes in zip(curves(curved), before, strict=True))


def test_the_frozen_and_the_loaded_network_compute_the_same(tmp_path):
    torch.manual_seed(0)
    model = randomized(ResidualNet())
    graph = bend(LearnThresholds(pieces=3)(quantized()).graph)
    fxfactor.save(graph, tmp_path / "net")
    with torch.no_grad():
        wanted = graph(images())
        torch.testing.assert_close(freeze(graph)(images()), wanted)
        assert torch.equal(fxfactor.load(tmp_path / "net", model).eval()(images()), wanted)


def test_the_exported_file_computes_the_same(tmp_path):
    graph = bend(LearnThresholds()(quantized()).graph)
    assert fxfactor.export(graph, tmp_path / "net.onnx").relative_difference < 1e-5
    assert curves(graph), "the network itself keeps its curves"


@pytest.mark.parametrize(
    "settings", [{"pieces": 1}, {"pieces": 33}, {"pieces": 2.5}, {"pieces": True}, {"at_most_bits": 9}], ids=str
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(
        PreconditionError, match=rf"LearnThresholds\({next(iter(settings))}=…\) must be an int from 2 to"
    ):
        LearnThresholds(**settings)


def test_a_network_without_quantizers_is_refused():
    with pytest.raises(PreconditionError, match="found no activation quantizer; give bits="):
        LearnThresholds()(transform(randomized(ResidualNet()), level=1))
