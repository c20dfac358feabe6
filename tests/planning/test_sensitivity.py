"""Measured losses of the choices at a site."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from networks import ResidualNet, fingerprint, random_batches, randomized

import fxfactor
from fxfactor import LayerPlan
from fxfactor.graph.dataflow import is_addition
from fxfactor.graph.watching import record
from fxfactor.planning.sensitivity import MEASURES, RECOVERED, Measure, SiteErrors, measure_errors
from fxfactor.planning.space import Shape, space_of
from fxfactor.quantization.histogram import Histogram, best_limit
from fxfactor.quantization.levels import integer_range, round_to_levels, rounded_weight, scale_at
from fxfactor.workers import Crew, Engine

pytest.importorskip("scipy")


def test_errors_fall_with_bits_and_vanish_in_floating_point() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    before = fingerprint(model)
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (1, 3), (2, 4, 8, None))
    errors = measure_errors(graph, images, space)
    assert fingerprint(model) == before
    assert all(parameter.requires_grad for parameter in graph.parameters())
    for measure in MEASURES:
        at = [errors["block.conv1"].of(Shape(), LayerPlan(None, None, b, b), measure) for b in (2, 4, 8, None)]
        assert at == sorted(at, reverse=True)
        assert at[-1] == 0
    coarse, fine = (errors["block.conv2"].of(Shape(g), LayerPlan(g), "output") for g in (2, 8))
    assert 0 < coarse < fine < 1


def test_what_is_left_after_training_counts_the_parts_by_their_weights() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    errors = measure_errors(graph, images, space_of(graph, (2,), (2, 8, None)))["block.conv2"]
    shape = next(each for each in errors.factors if each.groups is not None)

    def of(weight_bits: int | None, activation_bits: int | None, measure: Measure = "recovered") -> float:
        return errors.of(shape, LayerPlan(shape.groups, shape.mid, weight_bits, activation_bits), measure)

    factors = of(None, None, "both")
    assert errors.parts(shape, LayerPlan(shape.groups, shape.mid, None, None)) == (factors, 0, 0)
    assert factors > 0
    both = factors, of(2, None, "both") - factors, of(None, 2, "both") - factors
    wanted = (factors, factors + RECOVERED[1] * both[1], factors + RECOVERED[2] * both[2])
    assert (of(None, None), of(2, None), of(None, 2)) == pytest.approx(wanted, rel=1e-6)
    assert RECOVERED[1] < RECOVERED[0] < RECOVERED[2]
    assert errors.of(Shape(), LayerPlan(None, None, None, None), "recovered") == 0


def test_the_second_order_predicts_the_loss_of_a_small_change() -> None:
    model, images = randomized(ResidualNet(16)), random_batches(64)
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (8, 4), boundary_bits=None)
    errors = measure_errors(graph, images, space)
    predicted = float(errors["block.conv1"].weights[Shape(), 4][0])
    changed = fxfactor.capture(model, images[0][:1]).eval()
    conv = changed.get_submodule("block.conv1")
    conv.weight.data = rounded_weight(conv.weight.data, 4)
    judged = torch.cat(images)[32:]
    with torch.no_grad():
        p, q = ((net(judged) / 4).log_softmax(1) for net in (graph, changed))
    actual = float((p.exp() * (p - q)).sum(1).mean()) * 16
    assert 0.5 < predicted / actual < 2


def test_ranges_come_from_the_first_half_and_errors_from_the_second() -> None:
    """Images ten times as large in the second half go beyond the ranges that the first half gave."""
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0,), (4,), boundary_bits=4)
    together = torch.cat(images)
    first, second = together[:12], together[12:]
    same, larger = (measure_errors(graph, [first, each], space)["stem.0"] for each in (second, 10 * second))
    key = Shape(), 4
    assert larger.activations[key][1] > 10 * same.activations[key][1]


def test_what_rounding_the_inputs_of_an_addition_loses() -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    alone = measure_errors(graph, images, space_of(graph, (0,), (4,)))
    errors = measure_errors(graph, images, space_of(graph, (0,), (4,), join_bits=(2, 4, 8)))
    (join,) = errors.keys() - alone.keys()
    lost = {bits: errors[join].of(Shape(), LayerPlan(activation_bits=bits), "output") for bits in (2, 4, 8)}
    assert lost[2] > 4 * lost[4] > 16 * lost[8] > 0
    assert all(errors[site].of(Shape(), LayerPlan(None, None, 4, 4), "loss") ==
               alone[site].of(Shape(), LayerPlan(None, None, 4, 4), "loss") for site in ("block.conv1", "block.conv2"))  # fmt: skip
    # by hand: the inputs of the addition on the images that are judged, rounded to the limit of the others
    (node,) = [each for each in graph.graph.nodes if is_addition(each)]
    fit, judge = torch.cat(images).chunk(2)
    (_, seen), (_, inner) = (record(graph, (each,), {node, *node.all_input_nodes}) for each in (fit, judge))
    histogram = Histogram()
    for source in node.all_input_nodes:
        histogram.add(seen[source])
    limit = best_limit(histogram, 4, signed=True)
    rounded = [
        round_to_levels(inner[x], scale_at(limit, 4, True), *integer_range(4, True)) for x in node.all_input_nodes
    ]
    y = inner[node].detach()
    change = (rounded[0] + rounded[1]).detach() - y
    assert lost[4] == pytest.approx(float(change.square().sum() / (y - y.mean(0)).square().sum()), rel=0.02)


def _assert_same(found: dict[str, SiteErrors], wanted: dict[str, SiteErrors]) -> None:
    assert list(found) == list(wanted)
    for name, errors in wanted.items():
        for table in ("factors", "weights", "activations"):
            mine, theirs = getattr(found[name], table), getattr(errors, table)
            assert list(mine) == list(theirs)
            assert all(torch.equal(mine[key], theirs[key]) for key in theirs)


@pytest.mark.parametrize("engine", ["local", pytest.param("ray", marks=pytest.mark.slow)])
def test_workers_measure_what_one_process_measures(engine: Engine) -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1, "depthwise"), (2, 4), join_bits=(4, 8))
    alone = measure_errors(graph, images, space)
    if engine == "ray":
        ray = pytest.importorskip("ray")
        try:
            _assert_same(measure_errors(graph, images, space, Crew(2, engine)), alone)
        finally:
            ray.shutdown()
    else:
        _assert_same(measure_errors(graph, images, space, Crew(2)), alone)


def test_sites_are_shared_out_by_their_work(monkeypatch: pytest.MonkeyPatch) -> None:
    model, images = randomized(ResidualNet(16)), random_batches()
    graph = fxfactor.capture(model, images[0][:1]).eval()
    space = space_of(graph, (0, 1), (2, 4))
    given: list[Any] = []

    def here(common: Any, tasks: Any, workers: int, engine: str, caller: str) -> Any:
        given.extend(tasks)
        for task in tasks:
            yield from common.worker().steps(task)

    monkeypatch.setattr("fxfactor.workers.side_by_side", here)
    _assert_same(measure_errors(graph, images, space, Crew(2)), measure_errors(graph, images, space))
    assert sorted(name for task in given for name in task) == sorted(space.shapes)
    work = [sum(len(list(space.layers(name))) * space.macs[name][Shape()] for name in task) for task in given]
    largest = max(len(list(space.layers(name))) * space.macs[name][Shape()] for name in space.shapes)
    assert len(work) == 2 and max(work) - min(work) <= largest
    assert len({"block.conv1", "block.conv2"} & given[0]) == 1  # the two large layers are apart
