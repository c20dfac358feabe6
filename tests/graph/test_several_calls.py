"""Layers that the network calls more than once: one site with several calls, from capture to the saved folder."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import difference_in_float64, set_statistics
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

import fxfactor
from fxfactor.errors import PreconditionError
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.graph import is_quantizer, layers, module_of, sites
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, LegalizeForFinn
from fxfactor.planning.board import HardwareLayers
from fxfactor.quantization.brevitas_layers import get_limit

SHAPE = (2, 3, 16, 16)


class Block(nn.Module):
    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.c1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.n1, self.relu = nn.BatchNorm2d(channels), nn.ReLU()
        self.c2 = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(x + self.c2(self.relu(self.n1(self.c1(x)))))


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block, self.head = nn.Conv2d(3, 16, 3), Block(), nn.Linear(16, 4)

    def embed(self, x: Tensor) -> Tensor:
        return self.block(torch.relu(self.stem(x))).mean((2, 3))


class Siamese(Base):
    """Two branches of one backbone, the second on a smaller image."""

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.relu(self.embed(x) + self.embed(F.avg_pool2d(x, 2))))


class Recurrent(Base):
    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        for _ in range(3):
            h = self.block(h)
        return self.head(h.mean((2, 3)))


class SharedWithNormsOfItsOwn(Base):
    """As in ShareResNet: one convolution, a batch norm for each call."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(nn.BatchNorm2d(16) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.relu(self.stem(x))
        for norm in self.norms:
            h = torch.relu(norm(self.block.c1(h)))
        return self.head(h.mean((2, 3)))


class NormWithoutParameters(Base):
    """Its running statistics are of both calls."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(16, affine=False)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(self.block(self.norm(self.stem(x))))
        return self.head(h.mean((2, 3)))


class SharedHead(Base):
    """As in detectors: one head on feature maps of several sizes."""

    def forward(self, x: Tensor) -> list[Tensor]:
        h = torch.relu(self.stem(x))
        return [self.block(h), self.block(F.max_pool2d(h, 2))]


NETWORKS = [Siamese, Recurrent, SharedWithNormsOfItsOwn, NormWithoutParameters, SharedHead]


def trained(kind: Callable[[], nn.Module]) -> nn.Module:
    torch.manual_seed(1)
    return set_statistics(kind(), [torch.randn(16, 3, 16, 16) for _ in range(4)])


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("training", [False, True])
def test_captured_exactly(kind: Callable[[], nn.Module], training: bool) -> None:
    model = trained(kind).train(training)
    graph = fxfactor.capture(model, torch.zeros(SHAPE))
    assert difference_in_float64(graph, model, SHAPE) < 1e-12
    x = torch.randn(SHAPE)
    for network in (graph, model):
        network.train()(x)
    buffers = dict(model.named_buffers())
    found = {name: value for name, value in graph.named_buffers() if value.is_floating_point()}
    assert found and all(torch.allclose(value, buffers[name]) for name, value in found.items())


@pytest.mark.parametrize("kind", NETWORKS)
def test_costs_what_torch_counts(kind: Callable[[], nn.Module]) -> None:
    model = trained(kind)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.zeros(1, *SHAPE[1:]))
    graph = fxfactor.capture(model, torch.zeros(SHAPE))
    found = fxfactor.cost(graph)
    assert found.macs == counter.get_total_flops() // 2
    weights = [module.weight.numel() for module in {module for _, module in layers(graph)}]
    assert found.total_weight_bits == 32 * sum(weights)
    assert [row.calls for row in fxfactor.summary(graph, show=False).rows] == [
        len(s.calls) for s in sites(graph).values()
    ]


@pytest.mark.parametrize("kind", NETWORKS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_factors_are_shared_and_quantizers_are_not(
    kind: Callable[[], nn.Module], calibrated: bool, tmp_path: Path
) -> None:
    model, images = trained(kind), torch.randn(8, 3, 16, 16)
    calls = {name: len(site.calls) for name, site in sites(fxfactor.capture(model, images)).items()}
    qmodel = fxfactor.transform(model, level=2, bits=8, example_inputs=images[:1])
    if calibrated:
        qmodel = fxfactor.transform(model, level=2, bits=8, calibration=[images])
    found = sites(qmodel)
    assert {name: len(site.calls) for name, site in found.items()} == calls
    assert found["block.c1"].factorized
    assert (max(calls.values()) > 1) == (kind is not NormWithoutParameters)  # there the norm alone is called twice
    for site in found.values():
        for index, module in enumerate(site.modules):
            assert all(module_of(call[index]) is module for call in site.calls)
        read = [module_of(call[-1].all_input_nodes[0]) for call in site.calls if site.factorized]
        assert all(is_quantizer(module) for module in read) and len(set(read)) == len(read)

    qmodel.train()(images[:2])
    sum(x.sum() for x in torch.utils._pytree.tree_leaves(qmodel(images[:2]))).backward()
    assert all(parameter.grad is not None for parameter in qmodel.parameters() if parameter.requires_grad)
    qmodel.eval()
    fxfactor.save(qmodel, tmp_path / "saved")
    loaded = fxfactor.load(tmp_path / "saved", model).eval()
    for a, b in zip(*(torch.utils._pytree.tree_leaves(each(images)) for each in (loaded, qmodel)), strict=True):
        assert torch.equal(a, b)
    assert fxfactor.Plan.of(loaded) == fxfactor.Plan.of(qmodel)
    assert fxfactor.summary(loaded, show=False).to_dict() == fxfactor.summary(qmodel, show=False).to_dict()


def test_a_plan_has_the_bits_that_the_layer_asked_for(tmp_path: Path) -> None:
    """The first call reads the network's input, whose quantizer the first layer asks more bits of than the second."""

    class TwoUses(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b, self.c = nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 3, padding=1), nn.Conv2d(8, 8, 1)

        def forward(self, x: Tensor) -> Tensor:
            return self.c(torch.relu(self.b(torch.relu(self.a(x) + self.b(x)))))

    model = TwoUses().eval()
    qmodel = fxfactor.transform(model, bits=4, example_inputs=torch.zeros(1, 8, 8, 8))
    assert fxfactor.Plan.of(qmodel).layers["b"].activation_bits == 4
    fxfactor.save(qmodel, tmp_path / "saved")
    x = torch.randn(2, 8, 8, 8)
    assert torch.equal(fxfactor.load(tmp_path / "saved", model)(x), qmodel(x))


def _two_calls(m: Any, x: Tensor) -> tuple[Tensor, Tensor]:
    return m.a(x), m.a(0.3 * x.flip(3))


class OneLayer(nn.Module):
    def __init__(self, function: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first, self.a, self.function = nn.Conv2d(16, 16, 1), nn.Conv2d(16, 16, 3, padding=1), function

    def forward(self, x: Tensor) -> Any:
        return self.function(self, self.first(x) * 0 + x)


def _batches() -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(24, 16, 8, 8, generator=generator)
    return list((base + base.roll(1, 3) + base.roll(1, 1)).split(6))


def test_factors_are_fitted_to_all_calls_together() -> None:
    """As to one call on the images of both."""
    factors = []
    for function, batches in (
        (_two_calls, _batches()),
        (lambda m, x: m.a(x), [torch.cat([x, 0.3 * x.flip(3)]) for x in _batches()]),
    ):
        original = fxfactor.capture(OneLayer(function).eval(), batches[0], compare=False)
        graph = FactorizeDepth(level=2)(original).graph
        (fitted,) = fit_to_outputs(original, graph, batches)
        factors.append((fitted.factors.spatial, fitted.factors.pointwise, graph.get_submodule("a").pointwise.bias))
    for both, together in zip(*factors, strict=True):
        assert torch.allclose(both, together, atol=1e-5)


def test_weights_are_rounded_for_all_calls_together() -> None:
    weights = []
    for function, batches in (
        (_two_calls, _batches()),
        (lambda m, x: m.a(x), [torch.cat([x, 0.3 * x.flip(3)]) for x in _batches()]),
    ):
        model = OneLayer(function).eval()
        qmodel = fxfactor.transform(model, bits=(3, None), example_inputs=batches[0])
        rounded = fxfactor.round_weights(model, qmodel, batches)
        assert [each.path for each in rounded][-1] == "a"
        weights.append(qmodel.get_submodule("a").weight)
    assert torch.allclose(*weights, atol=1e-5)


@pytest.mark.parametrize("kind", NETWORKS)
def test_fitting_comes_nearer_than_the_weights_alone(kind: Callable[[], nn.Module]) -> None:
    model = trained(kind)
    images = torch.randn(32, 3, 16, 16).cumsum(3) / 4
    test = torch.randn(32, 3, 16, 16).cumsum(3) / 4

    def error(network: nn.Module) -> float:
        with torch.no_grad():
            pairs = zip(*(torch.utils._pytree.tree_leaves(each(test)) for each in (network, model)), strict=True)
            return sum(float((a - b).square().mean() / b.var()) for a, b in pairs)

    alone = fxfactor.transform(model, level=2, example_inputs=images[:1])
    fitted = fxfactor.transform(model, level=2, calibration=[images])
    assert error(fitted) < error(alone)


def test_each_call_gets_the_range_of_what_enters_it() -> None:
    class TwoScales(OneLayer):
        def forward(self, x: Tensor) -> Tensor:
            return self.a(self.first(x)) * self.a(100 * torch.tanh(self.first(x)))

    model = TwoScales(_two_calls).eval()
    qmodel = fxfactor.transform(model, bits=8, calibration=[torch.randn(8, 16, 8, 8)])
    quantizers = [module_of(call[0].all_input_nodes[0]) for call in sites(qmodel)["a"].calls]
    first, second = (get_limit(quantizer) for quantizer in quantizers)
    assert second > 20 * first


def test_distributions_tell_the_calls_apart() -> None:
    model, images = trained(Recurrent), torch.randn(4, 3, 16, 16)
    table = fxfactor.distributions(model, fxfactor.transform(model, level=1, bits=4, calibration=[images]), [images])
    assert {"block.c1", "block.c1 (call 2)", "block.c1 (call 3)"} <= set(table.sites)
    for call in ("block.c1", "block.c1 (call 2)"):
        rows = {row.tensor for row in table.where(variant="transformed", site=call)}
        assert {"input", "between", "output"} <= rows
        assert ("composed weight" in rows) == (call == "block.c1")


def test_search_sees_all_calls() -> None:
    model, images = trained(Siamese), torch.randn(8, 3, 16, 16)
    plan = fxfactor.search(model, [images], budget=fxfactor.Budget(bops=0.05), levels=(0, 2), bits=(4, 8))
    qmodel = fxfactor.transform(model, plan=plan, calibration=[images])
    assert fxfactor.cost(qmodel).bops <= 0.05 * 1024 * fxfactor.cost(fxfactor.capture(model, images)).macs


def test_explore_sees_all_calls(tmp_path: Path) -> None:
    model, images = trained(Recurrent), torch.randn(8, 3, 16, 16)

    def metric(network: nn.Module, loader: Iterable[Tensor]) -> float:
        with torch.no_grad():
            return -sum(float((network(x) - model(x)).square().mean()) for x in loader)

    result = fxfactor.explore(
        model, [images], [images], levels=(0, 1), bits=(4, 8), metric=metric, state=tmp_path / "e.sqlite"
    )
    assert {row.status for row in result.candidates} == {"done"}


def test_with_a_board_a_layer_is_called_once() -> None:
    graph = fxfactor.capture(trained(Recurrent), torch.zeros(SHAPE))
    with pytest.raises(PreconditionError, match=r"every layer must be called once.*'block\.c1' is called 3 times"):
        HardwareLayers(graph, 8)


def test_batch_norms_are_not_folded_into_a_layer_that_is_called_again() -> None:
    for kind in (Recurrent, SharedWithNormsOfItsOwn):
        graph = fxfactor.capture(trained(kind), torch.zeros(SHAPE))
        result = FoldBatchNorm()(graph)
        assert not result.changes and "called" in result.skips[0].reason
        assert difference_in_float64(result.graph, graph, SHAPE) < 1e-12


def test_grouped_layers_are_split_at_every_call() -> None:
    qmodel = fxfactor.transform(trained(Recurrent), level=1, bits=4, example_inputs=torch.zeros(SHAPE))
    result = LegalizeForFinn()(qmodel)
    assert {change.site for change in result.changes} == {"block.c1.spatial", "block.c2.spatial"}
    assert difference_in_float64(result.graph, copy.deepcopy(qmodel), SHAPE) < 1e-10


@pytest.mark.finn
def test_exported_and_taken_by_finn(tmp_path: Path) -> None:
    qmodel = fxfactor.transform(trained(Recurrent), level=1, bits=4, example_inputs=torch.zeros(1, *SHAPE[1:]))
    found = fxfactor.export(qmodel, tmp_path / "model.onnx")
    assert found.relative_difference < 1e-5
    assert not fxfactor.finn.check(tmp_path / "model.onnx")
