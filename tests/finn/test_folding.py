"""Folding by us: the best choice there is, legal, within the board, and FINN's own step applies it from the file."""

from __future__ import annotations

import itertools
import json
import math
import random
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from grouped_networks import GROUPED
from small_networks import TAKEN, build

import fxfactor.finn
from fxfactor.errors import FinnError, InfeasibleError
from fxfactor.finn.boards import BOARDS, Resources
from fxfactor.finn.process.folding.candidates import NEVER, Member, divisors, settings, words
from fxfactor.finn.process.folding.connections import waiting_pixels
from fxfactor.finn.process.folding.fold import is_narrow
from fxfactor.finn.process.folding.program import (
    Candidate,
    Costs,
    Infeasible,
    Stream,
    choose,
    fastest,
    pareto,
    total,
)
from fxfactor.finn.target import Target

Write = Callable[..., Path]
BOARD = (150.0, 12.0, 10.0, 0.0)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache of these tests alone: others count the steps of a first run."""
    return tmp_path_factory.mktemp("folding")


def converter(written: int, read: int) -> Costs:
    return (0.0 if written == read else float(max(written, read)), 0.0, 0.0, 0.0)


def drawn(seed: int) -> tuple[list[list[Candidate]], list[Stream]]:
    """Four units in a row and one that leaves out two of them, with five candidates each."""
    draw = random.Random(seed)
    tensors = [("a", 0, 1), ("b", 1, 2), ("c", 2, 3), ("skip", 0, 3)]

    def candidate(unit: int) -> Candidate:
        mine = {name: draw.choice([4, 8, 16]) for name, *ends in tensors if unit in ends}
        costs = (float(draw.randint(1, 60)), float(draw.randint(0, 6)), float(draw.randint(0, 6)), 0.0)
        return Candidate({}, draw.choice([10, 20, 40]), costs, mine)

    return [[candidate(unit) for _ in range(5)] for unit in range(4)], [Stream(*each, converter) for each in tensors]


def shares(chosen: Sequence[Candidate], streams: Sequence[Stream]) -> float:
    return sum(cost / there for cost, there in zip(total(chosen, streams), BOARD, strict=True) if there)


def everything(units: list[list[Candidate]], streams: list[Stream], cycles: int) -> list[float]:
    """The sums of shares of all choices that are fast enough and fit."""
    fast = [[each for each in unit if each.cycles <= cycles] for unit in units]
    fitting = [
        chosen
        for chosen in itertools.product(*fast)
        if all(a <= b for a, b in zip(total(chosen, streams), BOARD, strict=True))
    ]
    return [shares(chosen, streams) for chosen in fitting]


@pytest.mark.parametrize("seed", range(25))
def test_the_choice_is_the_best_of_all(seed: int) -> None:
    units, streams = drawn(seed)
    for cycles in (10, 20, 40):
        known = everything(units, streams, cycles)
        if not known:
            with pytest.raises(Infeasible):
                choose(units, streams, cycles, BOARD, BOARD)
            continue
        chosen = choose(units, streams, cycles, BOARD, BOARD)
        assert shares(chosen, streams) == pytest.approx(min(known), rel=1e-3)
        assert all(a <= b + 1e-6 for a, b in zip(total(chosen, streams), BOARD, strict=True))
        assert all(each.cycles <= cycles for each in chosen)
        assert chosen == choose(units, streams, cycles, BOARD, BOARD)


@pytest.mark.parametrize("seed", range(25))
def test_the_fastest_that_fits(seed: int) -> None:
    units, streams = drawn(seed)
    fitting = [cycles for cycles in (10, 20, 40) if everything(units, streams, cycles)]
    if not fitting:
        with pytest.raises(Infeasible):
            fastest(units, streams, BOARD, BOARD)
        return
    cycles, chosen = fastest(units, streams, BOARD, BOARD)
    assert cycles == min(fitting)
    assert shares(chosen, streams) == pytest.approx(min(everything(units, streams, cycles)), rel=1e-3)
    assert fastest(units, streams, BOARD, BOARD, at_least=min(fitting)) == (cycles, chosen)


def test_what_is_left_out_is_never_better() -> None:
    for seed in range(25):
        units, streams = drawn(seed)
        kept = pareto(units, streams)
        assert min(everything(kept, streams, 40), default=0) == min(everything(units, streams, 40), default=0)
    assert sum(map(len, kept)) < sum(map(len, units))


def test_what_binds_is_named_with_the_least_it_needs() -> None:
    small, large = Candidate({}, 10, (50.0, 9.0, 1.0, 0.0)), Candidate({}, 10, (90.0, 1.0, 1.0, 0.0))
    with pytest.raises(Infeasible) as error:
        choose([[small, large]] * 2, [], 10, (90.0, 99.0, 99.0, 0.0), BOARD)
    assert error.value.facts == {"resource": "lut", "limit": 90.0, "least": 100.0, "beside": False}
    with pytest.raises(Infeasible) as error:
        choose([[small, large]] * 2, [], 10, (120.0, 9.0, 99.0, 0.0), BOARD)
    assert error.value.facts == {"resource": "bram18", "limit": 9.0, "least": 18.0, "beside": True}
    with pytest.raises(Infeasible) as error:
        choose([[small], [Candidate({}, 30, small.costs), Candidate({}, 20, small.costs)]], [], 15, BOARD, BOARD)
    assert error.value.facts == {"unit": 1, "fastest": 20}


def test_divisors() -> None:
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]


class Layer:
    """What folding asks of one of FINN's layers."""

    def __init__(self, kind: str, shape: tuple[int, ...], attributes: dict[str, Any], name: str = "") -> None:
        self.onnx_node = SimpleNamespace(op_type=kind, name=name or kind, input=[], output=[], attribute=[])
        self.shape, self.attributes = shape, attributes

    def get_nodeattr_types(self) -> dict[str, Any]:
        return self.attributes

    def get_nodeattr_def(self, name: str) -> tuple[str, bool]:
        return "i", False

    def get_nodeattr(self, name: str) -> Any:
        return self.attributes[name]

    def get_normal_output_shape(self, index: int = 0) -> tuple[int, ...]:
        return self.shape

    get_normal_input_shape = get_normal_output_shape

    def get_input_datatype(self, index: int = 0) -> Any:
        return SimpleNamespace(bitwidth=lambda: 4)

    get_output_datatype = get_input_datatype


def test_a_skip_branch_holds_what_its_neighbour_is_behind_with() -> None:
    padding = Layer("FMPadding_rtl", (1, 10, 10, 8), {"ImgDim": [8, 8], "Padding": [1, 1, 1, 1]})
    window = {"ConvKernelDim": [3, 3], "Dilation": [1, 1], "IFMDim": [10, 10]}
    windows = Layer("ConvolutionInputGenerator_rtl", (1, 8, 8, 72), window)
    add = Layer("ElementwiseAdd_hls", (1, 8, 8, 8), {})
    chain = [(Layer("DuplicateStreams_hls", (1, 8, 8, 8), {}), ["x"], ["skip", "a"]), (padding, ["a"], ["b"]),
             (windows, ["b"], ["c"]), (Layer("MVAU_rtl", (1, 8, 8, 8), {}), ["c", "weights"], ["d"]), (add, ["skip", "d"], ["y"])]  # fmt: skip
    for layer, read, written in chain:
        layer.onnx_node.input, layer.onnx_node.output = read, written
    layers = {layer.onnx_node.name: layer for layer, _, _ in chain}
    model = SimpleNamespace(graph=SimpleNamespace(node=[layer.onnx_node for layer, _, _ in chain]))
    found = waiting_pixels(model, lambda node: layers[node.name])
    # the window starts 2 rows and 2 pixels into the padded image, 1 row and 1 pixel of which are padding: 11 of 100, and a
    # pixel for each layer on the way
    behind = (22 - 11) / 100 + 1 / 100 + 2 / 64
    assert found == {("ElementwiseAdd_hls", "skip"): math.ceil(behind * 64)}
    assert words(add, 0, found["ElementwiseAdd_hls", "skip"], 16) == 2 * math.ceil(behind * 64)
    assert words(add, 0, 0, 16) == 2


def legal(member: Layer, generator: Layer | None = None, ultra: bool = False) -> list[tuple[dict[str, Any], ...]]:
    members = [Member(each, True) for each in (generator, member) if each is not None]
    return list(settings(members, ultra))


def test_what_finn_allows() -> None:
    unit = Layer("MVAU_rtl", (1, 8, 8, 6), {"MW": 12, "MH": 6})
    pairs = {(each["PE"], each["SIMD"]) for (each,) in legal(unit)}
    assert pairs == set(itertools.product((1, 2, 3, 6), (1, 2, 3, 4, 6, 12)))
    assert {(each["ram_style"], each["runtime_writeable_weights"]) for (each,) in legal(unit, ultra=True)} == {
        ("block", 0), ("distributed", 0), ("ultra", 1)}  # fmt: skip
    in_hls = Layer("MVAU_hls", (1, 8, 8, 6), {"MW": 4096, "MH": 6})
    assert {each["resType"] for (each,) in legal(in_hls)} == {"lut", "dsp"}
    assert max(each["PE"] * each["SIMD"] * 4 for (each,) in legal(in_hls)) <= 8191
    dense = Layer("ConvolutionInputGenerator_rtl", (1, 8, 8, 54), {"IFMChannels": 6, "ConvKernelDim": [3, 3]})
    assert {(each["SIMD"], each["parallel_window"]) for (each,) in legal(dense)} == {
        (1, 0),
        (2, 0),
        (3, 0),
        (6, 0),
        (6, 1),
    }
    depthwise = Layer("VVAU_hls", (1, 8, 8, 4), {"Channels": 4, "Kernel": [3, 3]})
    for before, each in legal(depthwise, dense):
        assert before["SIMD"] == each["PE"]
        assert before["parallel_window"] == (each["SIMD"] > 1)
        assert each["SIMD"] == 1 or each["PE"] == 4
    split = Layer("StreamingSplit_hls", (1, 8, 8, 4), {"ChannelsPerStream": [8, 12], "SIMD": 1})
    assert [each["SIMD"] for (each,) in legal(split)] == [1, 2, 4]
    thresholds = Layer("Thresholding_rtl", (1, 8, 8, 64), {"NumChannels": 64})
    triggers = {each["depth_trigger_bram"] for (each,) in legal(thresholds) if each["PE"] == 1}
    assert triggers == {128, 256, 512, NEVER}


def test_a_grouped_block_and_its_window_generator_agree() -> None:
    attributes = {"MW": 36, "MH": 4, "Groups": 2, "Kernel": [3, 3]}
    block, generator = (
        Layer("MVAUGrouped_rtl", (1, 8, 8, 8), attributes),
        Layer("ConvolutionInputGenerator_rtl", (1,), {}),
    )
    found = legal(block, generator)
    assert {(each["PE"], each["SIMD"], each["parallel_window"]) for _, each in found} == set(
        itertools.chain(itertools.product((1, 2, 4), (1, 2, 4), (0,)), itertools.product((1, 2, 4), (9, 18, 36), (1,)))
    )
    for before, each in found:
        assert before["SIMD"] * (9 if each["parallel_window"] else 1) == each["SIMD"]
        assert before["parallel_window"] == each["parallel_window"]


# ---- with FINN ----


@pytest.mark.finn
@pytest.mark.parametrize("name", ["residual, stride 2, more channels", "depthwise separable"])
def test_finns_step_makes_the_same_network_of_the_file(name: str, write: Write, tmp_path: Path, cache: Path) -> None:
    folder = tmp_path / "build"
    prepared = fxfactor.finn.prepare(folder, write(build(TAKEN[name])), "ZCU104", 20_000, cache=cache)
    config = json.loads((folder / "folding.json").read_text())
    found = _stock(folder, tmp_path)
    known = {layer.name: layer for layer in prepared.estimate.layers if layer.kind in found["kinds"].values()}
    assert set(known) == set(found["kinds"]) == set(config) - {"Defaults"}
    for layer, attributes in config.items():
        for key, value in attributes.items() if layer != "Defaults" else ():
            assert found["attributes"][layer][key] == value, (layer, key)
    for layer, estimate in known.items():
        lut, bram18, dsp, uram = found["costs"][layer]
        assert (round(lut), round(bram18), round(dsp), round(uram)) == (
            estimate.finn.lut, estimate.finn.bram18, estimate.finn.dsp, estimate.finn.uram)  # fmt: skip
        assert found["cycles"][layer] == estimate.cycles
    assert any(attributes.get("inFIFODepths", [2]) != [2] for attributes in config.values()) == ("residual" in name)
    written = json.loads((folder / "estimate.json").read_text())
    assert written["total"]["lut"] == prepared.estimate.total.lut > written["finn_total"]["lut"]


def _stock(folder: Path, tmp_path: Path) -> dict[str, Any]:
    """What FINN's own steps make of model.onnx and folding.json."""
    code = """
import json, os, sys
os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
import finn.xsi
finn.xsi.SimEngine = object
from finn.builder.build_dataflow_config import DataflowBuildConfig
from finn.builder.build_dataflow_steps import build_dataflow_step_lookup as known
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
sys.path.insert(0, sys.argv[1])
for own in ("grouped_mvau", "integer_requant"):
    if os.path.exists(f"{sys.argv[1]}/{own}.py"):
        __import__(own)
os.makedirs("out/intermediate_models"), os.makedirs("out/report")
config = DataflowBuildConfig(output_dir="out", board="ZCU104", synth_clk_period_ns=5.0, generate_outputs=[],
                             folding_config_file=sys.argv[1] + "/folding.json", standalone_thresholds=True)
model = ModelWrapper(sys.argv[1] + "/model.onnx")
for step in ("step_convert_to_hw", "step_minimize_bit_width_initial", "step_create_dataflow_partition",
             "step_specialize_layers", "step_apply_folding_config", "step_minimize_bit_width"):
    model = known[step](model, config)
part = config._resolve_fpga_part()
layers = {node.name: getCustomOp(node) for node in model.graph.node}
json.dump({
    "kinds": {name: layer.onnx_node.op_type for name, layer in layers.items()},
    "cycles": {name: int(layer.get_exp_cycles()) for name, layer in layers.items()},
    "costs": {name: [float(getattr(layer, each + "_estimation")(part)) for each in ("lut", "bram", "dsp", "uram")]
              for name, layer in layers.items()},
    "attributes": {name: {key: layer.get_nodeattr(key) for key in layer.get_nodeattr_types() if key in
                   ("PE", "SIMD", "ram_style", "resType", "parallel_window", "depth_trigger_bram", "depth_trigger_uram",
                    "runtime_writeable_weights", "inFIFODepths")} for name, layer in layers.items()},
}, open("found.json", "w"))
"""
    import os

    done = subprocess.run([sys.executable, "-c", code, str(folder)], cwd=tmp_path, capture_output=True, text=True,
                          env={**os.environ, "FINN_BUILD_DIR": str(tmp_path)})  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    found: dict[str, Any] = json.loads((tmp_path / "found.json").read_text())
    return found


@pytest.mark.finn
def test_less_of_the_board_than_by_finns_rule_at_the_same_speed(write: Write, cache: Path) -> None:
    file = write(build(TAKEN["residual, stride 2, more channels"]))
    ours = fxfactor.finn.estimate(file, "Pynq-Z2", 20_000, cache=cache)
    theirs = fxfactor.finn.estimate(file, "Pynq-Z2", 20_000, folding="finn", cache=cache)
    assert (ours.folding, theirs.folding) == ("fxfactor", "finn")
    assert min(ours.fps, theirs.fps) >= 20_000
    assert ours.shares is not None
    assert theirs.shares is not None
    assert sum(ours.shares.values()) < sum(theirs.shares.values())
    assert ours.total.dsp < theirs.total.dsp
    assert any("Zynq-7000" in note for note in ours.notes)
    kinds = {layer.kind for layer in ours.layers}
    assert {"StreamingFIFO", "StreamingDataWidthConverter"} <= kinds
    assert all(layer.finn == Resources(0, 0, 0, 0) for layer in ours.layers if layer.kind.startswith("StreamingFIFO"))
    assert any(name.startswith("MVAU_rtl") or name.startswith("FMPadding_rtl") for name in ours.silent)


@pytest.mark.finn
def test_the_same_answer_every_time(write: Write, cache: Path) -> None:
    file = write(build(TAKEN["residual, stride 2, more channels"]))
    first, second = (fxfactor.finn.estimate(file, "ZCU104", "max", cache=cache) for _ in range(2))
    times = ("steps", "seconds")
    one, other = (
        {name: value for name, value in each.to_dict().items() if name not in times} for each in (first, second)
    )
    assert one == other
    assert first.fits
    assert first.fps > 20_000


@pytest.mark.finn
def test_what_does_not_fit_and_what_is_too_fast(write: Write, cache: Path) -> None:
    torch.manual_seed(0)
    file = write(build(TAKEN["residual, stride 2, more channels"]))
    with pytest.raises(
        InfeasibleError,
        match=r"required: 900,000,000 frames/s on ZCU104 at 200 MHz; found: \w+ \(.+\) takes [\d,]+ cycles",
    ):
        fxfactor.finn.estimate(file, "ZCU104", 900_000_000, cache=cache)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(BOARDS, "Pynq-Z2", Resources(500, 280, 2, 0))
        with pytest.raises(
            FinnError,
            match=r"required: at most 500 LUTs for 100 frames/s on Pynq-Z2 .*; found: every folding needs at least [\d,]+",
        ):
            fxfactor.finn.estimate(file, "Pynq-Z2", 100, cache=cache)


@pytest.mark.finn
def test_no_more_of_the_board_is_used_than_is_allowed(write: Write, cache: Path) -> None:
    file = write(build(TAKEN["residual, stride 2, more channels"]))
    free = fxfactor.finn.estimate(file, "ZCU104", 20_000, cache=cache)
    limits = {"lut": round(0.9 * free.total.lut), "bram18": 300}
    within = fxfactor.finn.estimate(file, "ZCU104", 20_000, limits=limits, cache=cache)
    assert within.total.lut <= limits["lut"] < free.total.lut
    assert within.fps >= 20_000
    assert within.available == replace(BOARDS["ZCU104"], **limits)
    with pytest.raises(InfeasibleError, match=r"required: at most 500 LUTs for 20,000 frames/s on ZCU104 .*at least"):
        fxfactor.finn.estimate(file, "ZCU104", 20_000, limits={"lut": 500}, cache=cache)


@pytest.mark.slow
@pytest.mark.finn
def test_the_fastest_network_is_looked_for_among_several_forms(write: Write, cache: Path) -> None:
    """A block takes at least a cycle for each group and pixel; where that is too slow, a unit for each group is faster."""
    make, shape = GROUPED["4 groups"]
    file = write(build(make), (1, *shape))
    free, block = (fxfactor.finn.estimate(file, "ZCU104", "max", grouped=form, cache=cache) for form in (None, "block"))
    assert [each.form for each in block.grouped] == ["block"]
    assert [each.form for each in free.grouped] != ["block"]
    assert free.fps > block.fps


@pytest.mark.parametrize("limits", [{"luts": 5}, {"dsp": -1}, {"dsp": True}, {"dsp": 2.5}])
def test_wrong_limits_are_named(limits: Any) -> None:
    with pytest.raises(
        FinnError, match=r"required: limits, a whole number ≥ 0 for any of lut, bram18, dsp, uram; found: "
    ):
        Target("ZCU104", limits=limits)


def test_limits_beyond_the_board_change_nothing() -> None:
    assert Target("Pynq-Z2", limits={"dsp": 10**6}).available == BOARDS["Pynq-Z2"]


def test_refusals(write: Write, tmp_path: Path) -> None:
    file = write(build(TAKEN["chain"]))
    with pytest.raises(FinnError, match='required: folding="fxfactor" or "finn"; found: \'ours\''):
        fxfactor.finn.estimate(file, folding="ours", cache=tmp_path)  # type: ignore[arg-type]
    with pytest.raises(FinnError, match='a number of frames per second with folding="finn"; found: "max"'):
        fxfactor.finn.estimate(file, target_fps="max", folding="finn", cache=tmp_path)
    with pytest.raises(FinnError, match="target_fps > 0 or \"max\"; found: 5.0 and 'fast'"):
        fxfactor.finn.estimate(file, target_fps="fast", cache=tmp_path)  # type: ignore[arg-type]


def test_weights_are_narrow_where_they_leave_out_the_lowest_number_of_their_type() -> None:
    """Of the weights' type, not of the inputs'."""

    def narrow(weights: list[int], kind: str = "MVAU_rtl") -> bool:
        datatypes = {"x": SimpleNamespace(min=lambda: 0), "w": SimpleNamespace(min=lambda: -8)}
        model = SimpleNamespace(
            get_initializer={"w": np.array(weights)}.get, get_tensor_datatype=lambda name: datatypes[name]
        )
        return is_narrow(model, SimpleNamespace(op_type=kind, input=["x", "w"]))

    assert narrow([-7, 7])
    assert not narrow([-8, 7])
    assert not narrow([-7, 7], "Pool_hls")
