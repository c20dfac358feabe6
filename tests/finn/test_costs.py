"""What FINN's layers cost, asked one by one: the same as in whole networks, and a search that keeps to a board."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized

import fxfactor
from fxfactor import Budget, FinnError, Plan, PreconditionError
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.layer_costs import (
    EMPHASES,
    Geometry,
    chains,
    cheapest,
    price,
    price_foldings,
    summed,
    thresholds,
    total,
)
from fxfactor.finn.target import Target
from fxfactor.planning import board as module
from fxfactor.planning.board import (
    HardwareLayers,
    board_limits,
    chains_in,
    estimate_plan,
    plan_within,
    price_space,
    target_of,
)
from fxfactor.planning.plans import best_plan, for_all
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import Shape, space_of
from fxfactor.workers import Crew

CONV = Geometry(16, 32, 1, (8, 8), (3, 3), (1, 1), (1, 1, 1, 1))


def _kinds(layer: Geometry, form: Form = "block") -> list[tuple[str, ...]]:
    return [tuple(kind for kind, _ in chain) for chain in chains(layer, 4, "UINT4", 12, form)]


def _images() -> list[torch.Tensor]:
    return list(torch.randn(16, 3, 16, 16, generator=torch.Generator().manual_seed(3)).split(8))


def test_the_hardware_layers_of_a_convolution() -> None:
    padding, windows, unit = ("FMPadding",), ("ConvolutionInputGenerator",), ("MVAU",)
    assert _kinds(CONV) == [padding, windows, unit]
    assert _kinds(Geometry(64, 10)) == [unit]
    assert _kinds(Geometry(16, 32, 1, (8, 8))) == [unit]
    assert _kinds(Geometry(16, 32, 1, (8, 8), stride=(2, 2))) == [windows, unit]
    grouped, depthwise = replace(CONV, groups=4), ("ConvolutionInputGenerator", "VVAU")
    block = ("ConvolutionInputGenerator", "MVAUGrouped")
    assert _kinds(grouped) == _kinds(replace(CONV, groups=16)) == [padding, block]
    assert _kinds(replace(grouped, kernel=(1, 1), padding=(0, 0, 0, 0))) == [("MVAUGrouped",)]
    assert _kinds(replace(grouped, kernel=(1, 1), stride=(2, 2))) == [padding, windows, ("MVAUGrouped",)]
    split, joined, reshape = ("StreamingSplit",), ("StreamingConcat",), ("Reshape",)
    assert _kinds(grouped, "branches") == [split, *[padding, windows] * 4, *[unit] * 4, joined]
    assert _kinds(grouped, "split") == [padding, windows, reshape, split, *[reshape] * 4, *[unit] * 4, joined]
    assert _kinds(replace(CONV, groups=16, out_channels=16), "branches") == [padding, depthwise]
    assert _kinds(replace(CONV, groups=16), "branches") == [*[padding, depthwise] * 2, joined]


def test_weights_of_one_bit_are_bipolar_where_the_layer_is_finns() -> None:
    """A block of groups reads integers: there they take two bits."""

    def types(groups: int, form: Form) -> set[str]:
        found = [
            dict(node) for chain in chains(replace(CONV, groups=groups), 1, "UINT4", 12, form) for _, node in chain
        ]
        return {each["weightDataType"] for each in found if "weightDataType" in each}

    assert types(1, "block") == types(4, "branches") == types(16, "branches") == {"BIPOLAR"}
    assert types(4, "block") == {"INT2"}


def test_sizes_and_fan_in() -> None:
    layer = Geometry(16, 32, 4, (9, 8), (3, 5), (2, 1), (1, 0, 1, 1), (1, 2))
    wanted = torch.nn.functional.conv2d(
        torch.nn.functional.pad(torch.zeros(1, 16, 9, 8), (0, 1, 1, 1)), torch.zeros(32, 4, 3, 5), stride=(2, 1),
        dilation=(1, 2), groups=4,
    )  # fmt: skip
    assert (1, 32, *layer.out_size) == wanted.shape
    assert layer.fan_in == 4 * 15


def test_refusals() -> None:
    with pytest.raises(FinnError, match="a board that FINN knows; found: 'Arty'"):
        Target("Arty")
    with pytest.raises(FinnError, match='clock_ns > 0 and target_fps > 0 or "max"; found: 0 and 1000'):
        Target("ZCU104", clock_ns=0)
    with pytest.raises(FinnError, match="required: a Python interpreter; found: '/no/python'"):
        price([thresholds(4, (8, 8), 12, 4, False)], Target("ZCU104", python="/no/python"))
    with pytest.raises(PreconditionError, match=r"Budget\(dsp=…\), DSP slices, needs a board"):
        fxfactor.search(randomized(ResidualNet(16)), _images(), Budget(dsp=0.5))
    with pytest.raises(PreconditionError, match="FINN computes in integers"):
        fxfactor.search(randomized(ResidualNet(16)), _images(), Budget(lut=0.5), bits=(None,), board="ZCU104")
    graph = fxfactor.capture(
        torch.nn.Sequential(torch.nn.Conv1d(3, 8, 3), torch.nn.ReLU()), torch.randn(1, 3, 8)
    ).eval()
    with pytest.raises(PreconditionError, match="is a Conv1d, which FINN has no hardware for"):
        price_space(graph, space_of(graph, (0,), (4,)), Target("ZCU104"))


def test_a_target_in_cycles_and_limits_of_a_board() -> None:
    target = Target("Pynq-Z2", clock_ns=10, target_fps=500)
    assert target.cycles == 200_000
    limits = board_limits(Budget(lut=0.5, dsp=100), {"lut": 53_200, "bram": 280, "dsp": 220}, target)
    assert limits == {"lut": 26_600, "bram": 280, "dsp": 100, "cycles": 200_000}


def test_a_budget_limits_what_folding_may_use() -> None:
    target = target_of("Pynq-Z2", 10, 500, Budget(lut=0.5, bram=20, bops=0.1), None)
    assert target == Target("Pynq-Z2", 10, 500, limits={"lut": 26_600, "bram18": 20})
    assert target_of("Pynq-Z2", 10, 500, Budget(cycles=100_000), None) == Target("Pynq-Z2", 10, 1000)


@pytest.mark.finn
@pytest.mark.parametrize("board", ["ZCU104", pytest.param("Pynq-Z2", marks=pytest.mark.slow)])
def test_sites_cost_what_finn_estimates_for_them_in_the_whole_network(board: str, tmp_path: Path) -> None:
    model, target = randomized(ResidualNet(16)), Target(board, target_fps=20_000)
    graph = fxfactor.capture(model, _images()[0][:1]).eval()
    plan = replace(Plan.uniform(graph, 2, 4, 4), join_bits=8).with_layer("block.conv2", groups=16, weight_bits=3)
    made = fxfactor.transform(model, plan=plan, example_inputs=_images()[0][:1])
    fxfactor.export(made, tmp_path / "model.onnx", target="finn")
    whole = fxfactor.finn.estimate(tmp_path / "model.onnx", board, 20_000, cache=tmp_path)
    layers = HardwareLayers(graph, 8)
    every = {name: list(layers.parts(name, Shape(x.groups, x.mid), x)) for name, x in plan.layers.items()}
    prices = price([chain for part in every.values() for chain in chains_in(part)], target)
    parts = {
        name: [
            chain
            for forms in part
            for chain in forms[cheapest({form: total(found, prices) for form, found in forms.items()}, target)]
        ]
        for name, part in every.items()
    }
    # look-up tables differ: in the network a layer is folded so that width converters, which cost much, go
    quantizers = ("Thresholding", "IntegerRequant")  # in the network their inputs are known to be narrower
    for name, counts in parts.items():
        mine = [prices[chain] for chain in counts if chain[-1][0] not in quantizers]
        there = [each for each in whole.layers if each.site.startswith(name) and not each.kind.startswith(quantizers)]
        assert there
        readers = {f"StreamingFIFO before {each.name}" for each in there}
        there += [each for each in whole.layers if each.name in readers]
        assert sum(each["bram"] for each in mine) == sum(each.resources.bram18 for each in there)
        assert sum(each["dsp"] for each in mine) == sum(each.resources.dsp for each in there)
        for name, ours in (("bram", "bram18"), ("dsp", "dsp"), ("lut", "lut")):
            finns = sum(getattr(each.finn, ours) for each in there)
            assert sum(each[f"finn_{name}"] for each in mine) == pytest.approx(finns, rel=0.02)
        assert max(each["cycles"] for each in mine) == max(each.cycles for each in there)
        assert sum(each["lut"] for each in mine) == pytest.approx(sum(each.resources.lut for each in there), rel=0.1)
    luts = sum(prices[chain]["lut"] for counts in parts.values() for chain in counts)
    assert luts == pytest.approx(whole.total.lut, rel=0.3)  # thresholds are as wide as the sums that bits allow


@pytest.mark.finn
def test_a_matrix_unit_of_one_bit_takes_no_dsps() -> None:
    target, several, one = (
        Target("ZCU104", target_fps=20_000),
        list(chains(CONV, 4, "UINT4", 12)),
        list(chains(CONV, 1, "UINT4", 9)),
    )
    prices = price([*several, *one], target)
    assert prices[one[-1]]["cycles"] <= target.cycles
    assert (prices[one[-1]]["dsp"], prices[one[-1]]["finn_dsp"]) == (0, 0)
    assert prices[one[-1]]["lut"] > prices[one[-1]]["finn_lut"] > 300  # with the queues between its stages
    assert prices[several[-1]]["dsp"] > 0


@pytest.mark.slow
@pytest.mark.finn
def test_a_searched_plan_is_within_the_budget_as_finn_estimates_it() -> None:
    model, images = randomized(ResidualNet(16)), _images()
    settings: dict[str, Any] = {"board": "Pynq-Z2", "target_fps": 20_000, "bits": (2, 8), "measure": "both"}
    roomy = fxfactor.search(model, images, Budget(lut=0.5), **settings)
    taken = roomy.explain().totals
    budget = Budget(lut=round(0.9 * taken["lut"]), dsp=int(taken["dsp"]) + 1, bram=int(taken["bram"]) + 1)
    plan = fxfactor.search(model, images, budget, **settings)
    assert plan != roomy  # else other folding alone would have done, with more DSPs or block RAMs
    totals = plan.explain().totals
    assert all(totals[name] <= limit for name, limit in budget.given().items())
    found = estimate_plan(model, plan, images[0][:1], target_of("Pynq-Z2", 5, 20_000, budget, None))
    assert {name: totals[name] for name in found} == found
    assert Plan.from_json(plan.to_json()).explain() == plan.explain()
    assert "Pynq-Z2 at 200 MHz and 20,000 frames/s" in str(plan.explain())
    with pytest.raises(PreconditionError, match="cycles per frame, the fastest takes"):
        fxfactor.search(model, images, Budget(cycles=20), **settings)


@pytest.mark.slow
@pytest.mark.finn
def test_for_resnet20_the_answer_differs_by_board(realdata: Any) -> None:
    model, images = realdata.cifar_resnet(20).eval(), realdata.cifar10("train")[0][:32]
    graph = fxfactor.capture(model, images[:1]).eval()
    space = space_of(graph, (*range(7), "depthwise"), (2, 3, 4, 5, 6, 8))
    errors = measure_errors(graph, [images], space)
    plans = {}
    for board in ("Pynq-Z2", "ZCU104"):
        budget = Budget(lut=40_000)  # as many LUTs for both: what is left differs
        target = target_of(board, 10, 3000, budget, None)
        priced = price_space(graph, space, target)
        limits = board_limits(budget, priced.whole, target)
        plans[board] = best_plan(priced, errors, for_all(priced.join_bits, limits), "both")
    assert plans["Pynq-Z2"] != plans["ZCU104"]
    loss = {board: sum(each.loss for each in plan.explain().layers.values()) for board, plan in plans.items()}
    assert loss["ZCU104"] < loss["Pynq-Z2"]
    assert plans["Pynq-Z2"].explain().totals["dsp"] <= 220


@pytest.mark.finn
def test_several_processes_give_the_prices_of_one() -> None:
    asked = [chain for form in ("block", "branches") for chain in chains(replace(CONV, groups=4), 4, "UINT4", 12, form)]
    target = Target("ZCU104")
    found = price_foldings(asked, target, crew=Crew(2))
    assert found == price_foldings(asked, target)
    assert list(found) == list(dict.fromkeys(asked))
    assert all(len(prices) == len(EMPHASES) for prices in found.values())


@pytest.mark.finn
def test_a_choice_has_several_foldings_of_which_the_first_is_that_of_a_whole_board() -> None:
    graph = fxfactor.capture(randomized(ResidualNet(16)), _images()[0][:1]).eval()
    target = Target("Pynq-Z2", target_fps=20_000)
    space = price_space(graph, space_of(graph, (2,), (4,)), target)
    layers, least = HardwareLayers(graph, 8), {}
    for (name, shape, layer, _), foldings in space.hardware.items():
        part = list(layers.parts(name, shape, layer))
        prices = price([chain for forms in part for each in forms.values() for chain in each], target)
        plain = []
        for forms in part:
            sums = {form: total(found, prices) for form, found in forms.items()}
            plain.append(sums[cheapest(sums, target)])
        assert foldings[0] == {key: pytest.approx(value) for key, value in summed(plain).items()}
        for index, each in enumerate(foldings):
            assert each["cycles"] <= target.cycles
            for before in foldings[:index]:
                assert any(each[key] < before[key] for key in ("lut", "bram", "dsp", "uram", "cycles"))
        least[name, shape] = [min(each[key] for each in foldings) for key in ("lut", "bram", "dsp")]
        assert any(least[name, shape][i] < foldings[0][key] for i, key in enumerate(("lut", "bram", "dsp")))
    first = replace(space, hardware={key: foldings[:1] for key, foldings in space.hardware.items()})
    roomy = {"lut": 1e9, "bram": 1e9, "dsp": 1e9}
    errors = measure_errors(graph, _images(), space)
    taken = best_plan(first, errors, {8: roomy}, "both").explain().totals
    tight = {8: {**roomy, "lut": 0.8 * taken["lut"]}}
    plans = [best_plan(each, errors, tight, "both") for each in (first, space)]
    losses = [sum(each.loss for each in plan.explain().layers.values()) for plan in plans]
    assert losses[1] < losses[0]


def test_what_is_beside_the_sites_is_taken_off_for_each_number_of_bits(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = fxfactor.capture(randomized(ResidualNet(16)), _images()[0][:1]).eval()
    space = space_of(graph, (0,), (2, 4), join_bits=(4, 8))
    costs = {
        (name, shape, layer, bits): ({"lut": 100.0 * layer.weight_bits, "cycles": 1.0},)
        for name in space.shapes
        for shape, layer in space.layers(name)
        for bits in (4, 8)
    }
    space = replace(space, hardware={key: tuple({**each, "bram": 0.0, "dsp": 0.0, "uram": 0.0} for each in found)
                                     for key, found in costs.items()})  # fmt: skip
    errors = measure_errors(graph, _images(), space)
    sites = len(space.shapes)
    ends = 2 * 100 * 8  # the first layer and the last have 8 bits
    fine, coarse = (ends + 100 * bits * (sites - 2) for bits in (4, 2))
    asked: list[Any] = []

    def whole(model: Any, plan: Plan, example: Any, target: Any) -> dict[str, float]:
        asked.append(plan.join_bits)
        mine = sum(100.0 * (layer.weight_bits or 0) for layer in plan.layers.values())
        return {"lut": mine + beside[plan.join_bits], "bram": 0, "dsp": 0, "uram": 0, "cycles": 1}

    monkeypatch.setattr(module, "estimate_plan", whole)

    def found(limit: float) -> Plan:
        def planner(limits: Any) -> Plan:
            return best_plan(space, errors, limits, "both")

        model, example = randomized(ResidualNet(16)), _images()[0][:1]
        return plan_within(space, {"lut": limit}, planner, planner, model, example, Target("ZCU104"))

    beside: dict[Any, float] = {8: 500, 4: 300}
    assert found(fine + 501).join_bits == 8
    assert set(asked) == {8}  # fewer bits are looked at where they are needed only
    kept = found(fine + 301)
    assert (kept.join_bits, kept.explain().totals["lut"]) == (4, fine + 300)
    assert found(coarse + 301).explain().totals["lut"] == coarse + 300
    with pytest.raises(
        PreconditionError, match=r"FINN counts \+300 look-up tables beside the layers .*; or lower join_bits"
    ):
        found(coarse + 299)
