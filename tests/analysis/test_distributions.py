"""The walk over two networks: every number against numpy, every row there, every refusal with its words."""

from __future__ import annotations

import copy
import math
from typing import Any

import numpy as np
import pytest
import torch
from networks import Lambda, ResidualNet, fingerprint, randomized
from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

import fxfactor
from fxfactor import PreconditionError
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import COLUMNS, Distribution, Distributions
from fxfactor.graph import is_quantizer, module_of
from fxfactor.passes import FactorizeDepth, FoldBatchNorm, Quantize


def images(count: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 12, 14, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomized(ResidualNet(16))


@pytest.fixture(scope="module")
def qmodel(model: nn.Module) -> GraphModule:
    made = fxfactor.transform(model, level=2, bits=3, example_inputs=images(1))
    return fxfactor.calibrate(made, [images(8, seed=2)])


@pytest.fixture(scope="module")
def table(model: nn.Module, qmodel: GraphModule) -> Distributions:
    return distributions(model, qmodel, images().split(10))


class _All(Interpreter):
    def __init__(self, graph: GraphModule) -> None:
        super().__init__(graph)
        self.values: dict[str, np.ndarray] = {}

    def run_node(self, node: Node) -> Any:
        value = super().run_node(node)
        if isinstance(value, Tensor):
            self.values[node.name] = value.detach().double().numpy()
        return value


def all_values(graph: GraphModule) -> dict[str, np.ndarray]:
    run = _All(graph)
    with torch.no_grad():
        run.run(images())
    return run.values


def one(table: Distributions, **wanted: Any) -> Distribution:
    (row,) = table.where(**wanted)
    return row


def relative(found: np.ndarray, wanted: np.ndarray) -> float:
    return float(np.linalg.norm(found - wanted) / np.linalg.norm(wanted))


def assert_spread(row: Distribution, values: np.ndarray, axis: int = 1) -> None:
    channels = np.moveaxis(values, axis, 0).reshape(values.shape[axis], -1)
    ranges = np.ptp(channels, axis=1)
    assert (row.count, row.channels, row.min, row.max) == (values.size, len(channels), values.min(), values.max())
    assert row.mean == pytest.approx(values.mean(), rel=1e-6, abs=1e-9)
    assert row.std == pytest.approx(values.std(), rel=1e-9)
    assert row.dynamic_range == pytest.approx(np.ptp(values), rel=1e-12)
    assert row.channel_range_ratio == pytest.approx(ranges.mean() / np.ptp(values), rel=1e-9)
    assert row.channel_min == pytest.approx(channels.min(1).tolist())
    assert row.channel_max == pytest.approx(channels.max(1).tolist())
    assert row.zeros == (values == 0).mean()
    resolution = np.abs(values).max() / 2000
    for name, percent in (("p1", 1), ("p50", 50), ("p99", 99)):
        low, high = (np.percentile(values, percent, method=method) for method in ("lower", "higher"))
        assert low - resolution <= getattr(row, name) <= high + resolution


SITE = "block.conv2"


def test_the_original_is_what_its_nodes_compute(model: nn.Module, table: Distributions) -> None:
    values = all_values(fxfactor.capture(model, images(1)))
    assert_spread(one(table, variant="original", site=SITE, tensor="output"), values["block_bn2"])
    assert_spread(one(table, variant="original", site=SITE, tensor="input"), values["block_relu"])
    weight = model.block.conv2.weight.detach().double().numpy()
    assert_spread(one(table, variant="original", site=SITE, tensor="weight"), weight, axis=0)


def test_outputs_and_accumulated_error(model: nn.Module, qmodel: GraphModule, table: Distributions) -> None:
    wanted = all_values(fxfactor.capture(model, images(1)))["block_bn2"]
    found = all_values(qmodel.eval())["block_bn2"]
    row = one(table, variant="transformed", site=SITE, tensor="output")
    assert_spread(row, found)
    assert row.compared_with == "original"
    assert row.accumulated_error == pytest.approx(relative(found, wanted), rel=1e-6)
    assert row.qmse == pytest.approx(np.mean((found - wanted) ** 2), rel=1e-6)
    assert row.sqnr_db == pytest.approx(-20 * math.log10(relative(found, wanted)), rel=1e-6)
    assert row.kl is not None
    assert row.kl > 0


def test_error_of_a_layer_alone(model: nn.Module, qmodel: GraphModule, table: Distributions) -> None:
    values = all_values(fxfactor.capture(model, images(1)))
    inputs, wanted = torch.from_numpy(values["block_relu"]).float(), values["block_bn2"]
    block, plain = qmodel.block, copy.deepcopy(model).block
    with torch.no_grad():
        middle = block.conv2.spatial_quant(block.conv2.spatial(block.relu(inputs)))
        found = block.bn2(block.conv2.pointwise(middle)).double().numpy()
        conv = FactorizeDepth(level=2)(fxfactor.capture(model, images(1))).graph.block.conv2
        exact = plain.bn2(conv.pointwise(conv.spatial(inputs))).double().numpy()
    row = one(table, variant="transformed", site=SITE, tensor="output")
    assert row.layer_error == pytest.approx(relative(found, wanted), rel=1e-5)
    assert row.unrounded_error == pytest.approx(relative(exact, wanted), rel=1e-5)
    assert row.unrounded_error < row.layer_error  # type: ignore[operator]


@pytest.mark.parametrize(("tensor", "before", "after"), [
    ("input", "block_bn1", "block_relu"),
    ("between", "block_conv2_spatial", "block_conv2_spatial_quant"),
])  # fmt: skip
def test_what_the_quantizers_do(
    model: nn.Module, qmodel: GraphModule, table: Distributions, tensor: str, before: str, after: str
) -> None:
    values = all_values(qmodel.eval())
    wanted, found = values[before], values[after]
    if tensor == "input":
        wanted = np.maximum(wanted, 0)  # the quantizer is the ReLU as well
    row = one(table, variant="transformed", site=SITE, tensor=tensor)
    assert_spread(row, wanted)
    assert (row.bits, row.compared_with) == (3, "itself before rounding")
    assert row.qmse == pytest.approx(np.mean((found - wanted) ** 2), rel=1e-6)
    grid = np.array(row.bins.grid)  # type: ignore[union-attr]
    assert len(grid) == 8
    assert np.abs(found[..., None] - grid).min(-1).max() < 1e-6  # every value is on the grid that was found
    step = grid[1] - grid[0]
    assert row.clipped == ((wanted < grid[0] - step / 2) | (wanted > grid[-1] + step / 2)).mean()
    assert row.levels_used == len(np.unique(found.round(6))) / 8
    assert row.dead_after == sum(np.ptp(found[:, c]) == 0 for c in range(found.shape[1]))
    assert list(row.bins.after) == [int((np.abs(found - level) < step / 2).sum()) for level in grid]  # type: ignore[union-attr]


def test_weights_of_both_factors_and_what_they_stand_for(
    model: nn.Module, qmodel: GraphModule, table: Distributions
) -> None:
    conv = qmodel.block.conv2
    for tensor, layer in (("spatial.weight", conv.spatial), ("pointwise.weight", conv.pointwise)):
        row = one(table, variant="transformed", site=SITE, tensor=tensor)
        weight, rounded = layer.weight.detach().double().numpy(), layer.quant_weight().value.detach().double().numpy()
        assert_spread(row, weight, axis=0)
        assert row.qmse == pytest.approx(np.mean((rounded - weight) ** 2), rel=1e-9)
        scale = layer.quant_weight().scale.detach().double().numpy()
        assert row.levels_used == len(np.unique(np.rint(rounded / scale))) / 7
        assert row.clipped == 0.0
    spatial, pointwise = (
        layer.quant_weight().value.detach().double().numpy() for layer in (conv.spatial, conv.pointwise)
    )
    dense = np.zeros((16, 16, 3, 3))  # 4 groups of 4 channels
    for channel in range(16):
        dense[channel, channel // 4 * 4 : channel // 4 * 4 + 4] = spatial[channel]
    composed = np.einsum("om,mikl->oikl", pointwise[:, :, 0, 0], dense)
    row = one(table, variant="transformed", site=SITE, tensor="composed weight")
    weight = model.block.conv2.weight.detach().double().numpy()
    assert row.sqnr_db == pytest.approx(-20 * math.log10(relative(composed, weight)), rel=1e-5)
    assert row.min == pytest.approx(composed.min(), rel=1e-5)


def test_every_quantizer_call_has_a_row(qmodel: GraphModule, table: Distributions) -> None:
    calls = [node for node in qmodel.graph.nodes if fxfactor.graph.is_quantizer(fxfactor.graph.module_of(node))]
    counted = [row for row in table if row.bits and "weight" not in row.tensor]
    assert len(counted) == len(calls)
    joins = [row for row in table if row.tensor.startswith("join")]
    assert {row.tensor for row in joins} == {"join", "join 1", "join 2"}


def test_the_size_of_the_batches_does_not_show(model: nn.Module, qmodel: GraphModule, table: Distributions) -> None:
    for row, again in zip(table, distributions(model, qmodel, [images()]), strict=True):
        for name in COLUMNS:
            first, second = getattr(row, name), getattr(again, name)
            # a convolution may round differently for another batch size, and a percentile move within its bin
            wanted = pytest.approx(second, rel=1e-3, abs=1e-5) if isinstance(second, float) else second
            assert first == wanted, (row.site, row.tensor, name)


def test_two_runs_give_the_same_and_change_nothing(model: nn.Module, qmodel: GraphModule, table: Distributions) -> None:
    qmodel.train()
    before = fingerprint(model), fingerprint(qmodel)
    again = distributions(model, qmodel, images().split(10))
    assert (fingerprint(model), fingerprint(qmodel)) == before
    assert again == table
    qmodel.eval()


def test_the_ladder_side_by_side(model: nn.Module) -> None:
    levels: tuple[Any, ...] = (0, 1, "depthwise")
    made = {f"level {level}": fxfactor.transform(model, level, 4, example_inputs=images(1)) for level in levels}
    table = distributions(model, made, [images()])
    assert table.variants == ("level 0", "level 1", "level depthwise")
    assert table.sites == ("stem.0", "block.conv1", "block.conv2", "classifier")
    for site in table.sites:
        rows = table.where(site=site, tensor="output")
        assert [row.variant for row in rows] == ["original", *table.variants]
    alone = distributions(model, made["level 1"], [images()])
    for row, same in zip(alone.where(variant="transformed"), table.where(variant="level 1"), strict=True):
        assert row.qmse == same.qmse


def test_a_network_in_floating_point_has_rows_too(model: nn.Module) -> None:
    factorized = fxfactor.transform(model, level=1, example_inputs=images(1))
    table = distributions(model, factorized, [images()])
    row = one(table, variant="transformed", site=SITE, tensor="between")
    assert (row.note, row.bits, row.qmse) == ("in floating point", None, None)
    output = one(table, variant="transformed", site=SITE, tensor="output")
    assert output.layer_error == pytest.approx(output.unrounded_error)
    first = one(table, variant="transformed", site="stem.0", tensor="output")
    assert (first.accumulated_error, first.layer_error) == (0.0, 0.0)


def test_a_folded_batch_norm_is_compared_behind_it(model: nn.Module) -> None:
    graph = fxfactor.capture(model, images(1))
    folded = FoldBatchNorm()(FactorizeDepth(level=1)(graph).graph).graph
    table = distributions(model, folded, [images()])
    plain = distributions(model, FactorizeDepth(level=1)(graph).graph, [images()])
    wanted = {"variant": "transformed", "site": SITE, "tensor": "output"}
    assert one(table, **wanted).accumulated_error == pytest.approx(one(plain, **wanted).accumulated_error, rel=1e-4)
    composed = one(table, variant="transformed", site=SITE, tensor="composed weight")
    assert "a batch norm is folded" in composed.note


def test_a_captured_graph_may_stand_for_the_original(model: nn.Module) -> None:
    floating = fxfactor.transform(model, level=2, example_inputs=images(1))
    quantized = Quantize(weight_bits=4, activation_bits=4)(floating).graph
    table = distributions(floating, quantized, [images()])
    row = one(table, variant="transformed", site=SITE, tensor="output")
    assert row.unrounded_error == pytest.approx(0, abs=1e-5)
    assert one(table, variant="original", site=SITE, tensor="spatial.weight").count == 16 * 4 * 9


def test_branches_that_are_concatenated_each_have_a_row() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 8, 3), "c": nn.Conv2d(16, 16, 3)}
    model = Lambda(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), **layers).eval()
    qmodel = fxfactor.transform(model, level=1, bits=4, example_inputs=images(1))
    table = distributions(model, qmodel, [images()])
    assert [row.tensor for row in table.where(variant="transformed", site="c")][-4:] == [
        "input 1", "input 2", "between", "output",
    ]  # fmt: skip


def test_a_layer_that_is_never_called_gets_a_row_that_says_so() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "unused": nn.Conv2d(8, 8, 3)}
    model = Lambda(lambda m, x: m.a(x), **layers).eval()
    qmodel = fxfactor.transform(model, bits=4, example_inputs=images(1))
    row = distributions(model, qmodel, [images()]).rows[-1]
    assert (row.site, row.count) == ("unused", 8 * 8 * 9)
    assert "never reached" in row.note


# ── refusals ──────────────────────────────────────────────────────────────────────────────────────────────────────────


def test_networks_that_do_not_belong_together_are_refused(qmodel: GraphModule) -> None:
    pooled = (nn.AdaptiveAvgPool2d(1), nn.Flatten())
    other = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 10, 1), *pooled).eval()
    with pytest.raises(PreconditionError, match=r"it lacks '0', '2' and it has 'stem\.0'.*pass the model"):
        distributions(other, qmodel, [images()])
    with pytest.raises(PreconditionError, match=r"outputs of the same shapes; found: .* pass the model that was"):
        distributions(other[:3], qmodel, [images()])


def test_the_same_sites_of_another_width_are_refused(qmodel: GraphModule) -> None:
    with pytest.raises(
        PreconditionError, match=r"gives \(16, 12, 14\) at 'stem\.0' .* the original gives \(32, 12, 14\)"
    ):
        distributions(ResidualNet(32).eval(), qmodel, [images()])


def test_an_empty_loader_is_refused(model: nn.Module, qmodel: GraphModule) -> None:
    with pytest.raises(PreconditionError, match="at least one batch of images, found an empty loader"):
        distributions(model, qmodel, [])


def test_nan_images_are_refused(model: nn.Module, qmodel: GraphModule) -> None:
    bad = images()
    bad[3, 1, 2, 2] = math.nan
    with pytest.raises(PreconditionError, match="needs images whose values are numbers, found NaN"):
        distributions(model, qmodel, [bad])


def test_nan_weights_are_refused_with_the_variant_and_layer(model: nn.Module, qmodel: GraphModule) -> None:
    broken = copy.deepcopy(qmodel)
    with torch.no_grad():
        broken.block.bn1.bias[0] = math.inf
    with pytest.raises(PreconditionError, match=r"'broken' computes .* at 'block\.bn1'"):
        distributions(model, {"broken": broken}, [images()])


@pytest.mark.parametrize(("given", "message"), [
    (nn.Linear(2, 2), "found Linear"),
    ({}, "found dict without entries"),
    ({"level 1": nn.Linear(2, 2)}, "found Linear under 'level 1'"),
    ({"original": GraphModule(nn.Module(), torch.fx.Graph())}, "no variant can be called 'original'"),
])  # fmt: skip
def test_what_is_no_transformed_network_is_refused(model: nn.Module, given: Any, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        distributions(model, given, [images()])


@pytest.mark.parametrize(("batch", "message"), [
    (torch.zeros(4, 1, 12, 14), r"\(N, 3, 12, 14\), found \(4, 1, 12, 14\)"),
    ({"image": 1}, "must be a tensor of images"),
])  # fmt: skip
def test_a_batch_of_something_else_is_refused(model: nn.Module, qmodel: GraphModule, batch: Any, message: str) -> None:
    with pytest.raises(PreconditionError, match=message):
        distributions(model, qmodel, [batch])


def test_a_network_with_two_inputs_is_refused() -> None:
    graph = fxfactor.capture(_TwoInputs().eval(), (images(1), images(1)))
    with pytest.raises(PreconditionError, match="one input, found 2"):
        distributions(graph, graph, [images()])


class _TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 8, 3), nn.Conv2d(3, 8, 3)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.a(x) + self.b(y)


def test_inputs_through_several_quantizers_are_said_to_be_unrounded_where_a_layer_is_alone() -> None:
    layers = {"a": nn.Conv2d(3, 8, 3), "b": nn.Conv2d(3, 8, 3), "c": nn.Conv2d(16, 16, 3)}
    model = Lambda(lambda m, x: m.c(torch.cat([m.a(x), m.b(x)], 1)), **layers).eval()
    qmodel = fxfactor.transform(model, level=0, bits=4, example_inputs=images(1))
    notes = [
        one(distributions(model, qmodel, [images()]), variant="transformed", site=x, tensor="output").note for x in "ac"
    ]
    assert notes == ["", ""]  # both branches go through one
    second = [node for node in qmodel.graph.nodes if is_quantizer(module_of(node))][-1]
    qmodel.add_submodule("another_quantizer", copy.deepcopy(module_of(second)))
    second.target = "another_quantizer"
    qmodel.recompile()
    table = distributions(model, qmodel, [images()])
    notes = [one(table, variant="transformed", site=site, tensor="output").note for site in "ac"]
    assert notes == ["", "alone without the rounding of its inputs: they go through several quantizers"]
