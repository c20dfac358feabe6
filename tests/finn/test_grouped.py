"""Grouped convolutions: the verdict of check, FINN's steps bit by bit, the hardware's order, refusals and costs."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from finn_helpers import export_to, outputs_in_float64, relative
from grouped_networks import FAST, GROUPED
from small_networks import build, chain, conv, norm, relu

import fxfactor.finn
from fxfactor.errors import FinnError
from fxfactor.finn.boards import BOARDS
from fxfactor.finn.integer.execute import execute
from fxfactor.finn.integer.forms import FORMS, Choices, Form, GroupedConvolution
from fxfactor.finn.integer.streams import Window
from fxfactor.finn.process.load import IntegerNetwork, load_integers
from fxfactor.finn.process.start import WORKER, environment
from fxfactor.finn.target import Target

Write = Callable[..., Path]
SLOW = tuple(name for name in GROUPED if name not in FAST)
TARGETS = (1, 300_000)
"""Frames per second: serial, and beyond what goes without a parallel window."""
FEASIBLE = 40_000
"""Frames per second that every one of these networks can reach: our folding refuses what none can."""


def _as(form: Form) -> Choices:
    """A form where a layer has it, else what `grouped=` gives in its place."""
    return Choices(lambda layer: form if form in layer.forms else "branches" if "branches" in layer.forms else "block")


# ---- without FINN ----


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", GROUPED)
def test_every_form_computes_what_torch_computes(name: str, form: Form, write: Write) -> None:
    make, shape = GROUPED[name]
    model = build(make)
    file = write(model, (1, *shape))
    assert fxfactor.finn.check(file) == []
    images = torch.randn(4, *shape)
    network = load_integers(file, _as(form))
    assert relative(network(images.numpy()), outputs_in_float64(model, images)) < 1e-6
    kinds = {node.op_type for node in network.model.graph.node}
    assert ("MVAUGrouped" in kinds) == (form == "block" or name == "on the input")


def test_the_table_is_large_enough() -> None:
    assert len(GROUPED) >= 40
    assert len(FAST) >= 25


def test_a_layer_has_the_forms_that_finn_has_hardware_for(write: Write) -> None:
    def forms(name: str) -> list[tuple[str, ...]]:
        make, shape = GROUPED[name]
        return [layer.forms for layer in load_integers(write(build(make), (1, *shape))).grouped]

    assert forms("4 groups") == [FORMS]
    assert forms("depthwise, two outputs a channel") == [("block", "branches")]
    assert forms("on the input") == [("block",)]
    assert len(forms("a group for each branch")) == 3


def test_a_group_of_channels_in_another_order_is_refused(write: Write) -> None:
    model = build(lambda: chain(conv(8, 16, groups=8), relu(), conv(16, 8, groups=2), norm(8), relu()))
    with pytest.raises(FinnError, match=r'the channels of a group lie side by side.*give grouped="block"'):
        load_integers(write(model), _as("branches"))
    assert fxfactor.finn.check(write(model)) == []


def test_scales_differ_between_groups_but_not_in_one(write: Write) -> None:
    from small_networks import Parallel

    model = build(lambda: chain(Parallel([conv(8, 8), conv(8, 8)], [relu(), relu()]), conv(16, 8, groups=1), relu()))
    found = [finding.found for finding in fxfactor.finn.check(write(model))]
    assert found == ["2 scales"]
    make, shape = GROUPED["a group for each branch"]
    assert fxfactor.finn.check(write(build(make), (1, *shape))) == []


def test_wrong_forms_are_named(write: Write, tmp_path: Path) -> None:
    file = write(build(GROUPED["4 groups"][0]))
    with pytest.raises(FinnError, match="required: grouped='block', 'split', 'branches' or None.*found: 'blocks'"):
        fxfactor.finn.estimate(file, grouped="blocks", cache=tmp_path)  # type: ignore[arg-type]


def _layer(narrow: bool, forms: tuple[Form, ...]) -> GroupedConvolution:
    return GroupedConvolution("conv", "y", 8, 8, 4, Window((3, 3)), (8, 8), 4, narrow, "UINT4", 12, forms)


def test_boards_with_old_dsps_take_blocks_of_narrow_weights_only() -> None:
    from fxfactor.finn.grouped import choose_forms, forms_on
    from fxfactor.finn.target import Target

    wide = _layer(False, FORMS)
    assert forms_on("ZCU104", wide) == FORMS
    assert forms_on("Pynq-Z2", _layer(True, FORMS)) == FORMS
    assert forms_on("Pynq-Z2", wide) == ("split", "branches")
    with pytest.raises(
        FinnError, match=r"conv: required for a block on Pynq-Z2: weights above .* narrow weight quantizer"
    ):
        choose_forms([wide], Target("Pynq-Z2"), "block", {})
    with pytest.raises(FinnError, match=r"conv: required on Pynq-Z2: .* choose a larger board"):
        choose_forms([_layer(False, ("block",))], Target("Pynq-Z2"), None, {})


def test_the_cheapest_form_is_fast_enough_first_and_then_small() -> None:
    from fxfactor.finn.layer_costs import cheapest
    from fxfactor.finn.target import Target

    def cost(lut: float, cycles: float, dsp: float = 0) -> dict[str, float]:
        return {"lut": lut, "bram": 0, "dsp": dsp, "uram": 0, "cycles": cycles}

    target = Target("ZCU104", target_fps=1000)  # 200,000 cycles
    assert cheapest({"block": cost(300, 100_000), "branches": cost(1000, 10)}, target) == "block"
    assert cheapest({"block": cost(300, 300_000), "branches": cost(1000, 200_000)}, target) == "branches"
    assert cheapest({"block": cost(300, 300_000), "branches": cost(1000, 400_000)}, target) == "block"
    assert cheapest({"block": cost(300, 1, dsp=173), "branches": cost(1000, 1)}, target) == "branches"


# ---- with FINN ----


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Gives a network's folder, after a process took it and its like through FINN's steps."""
    folders: dict[str, Path] = {}

    def folder_of(name: str) -> Path:
        if name not in folders:
            group = FAST if name in FAST else SLOW
            root = tmp_path_factory.mktemp("grouped")
            prepared = {each: _prepared(root / f"{index:02}", each) for index, each in enumerate(group)}
            done = subprocess.run(
                [sys.executable, str(Path(__file__).with_name("run_many.py")), str(WORKER), str(root)],
                capture_output=True,
                text=True,
                env={**environment(), "FINN_BUILD_DIR": str(root)},
                cwd=root,
            )
            assert done.returncode == 0, done.stderr[-3000:]
            folders.update(prepared)
        return folders[name]

    return folder_of


def _prepared(folder: Path, name: str) -> Path:
    folder.mkdir()
    make, shape = GROUPED[name]
    network: IntegerNetwork = load_integers(export_to(folder / "network.onnx", build(make), (1, *shape)))
    onnx.save(network.model, str(folder / "integers.onnx"))
    images = network.to_integers(torch.randn(2, *shape).numpy())
    np.savez(folder / "images.npz", inputs=images, outputs0=execute(network.model, images))
    request = {"board": "ZCU104", "clock_ns": 5.0, "folder": str(folder), "model": str(folder / "integers.onnx"),
               "images": str(folder / "images.npz"), "images_per_step": 2, "generate": True}  # fmt: skip
    request |= {"available": asdict(BOARDS["ZCU104"]), "must_fit": False}
    first = {**request, "target_fps": TARGETS[0], "keep": str(folder / "kept"), "fold_by": "finn"}
    second = {**request, "target_fps": TARGETS[1], "cached": str(folder / "keep"), "fold_by": "finn"}
    for number, each in enumerate((first, second, {**second, "fold_by": "fxfactor", "target_fps": FEASIBLE})):
        (folder / f"request-{number}.json").write_text(json.dumps(each))
    return folder


def _events(folder: Path, number: int) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / f"events-{number}.jsonl").read_text().splitlines()]


CASES = [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)]


@pytest.mark.finn
@pytest.mark.parametrize("name", CASES)
def test_finns_graph_gives_the_same_integers_after_every_step(name: str, runs: Callable[[str], Path]) -> None:
    for number in (0, 1, 2):
        events = _events(runs(name), number)
        assert [event for event in events if event["event"] == "stop"] == []
        ended = {event["step"]: event.get("images", 0) for event in events if event["event"] == "end"}
        steps = ["integers", "step_apply_folding_config", "step_minimize_bit_width"]
        if number < 2:  # FINN's rule, not ours
            steps.append("step_target_fps_parallelization")
        if number == 0:
            steps += ["step_convert_to_hw", "step_minimize_bit_width_initial", "step_create_dataflow_partition",
                      "step_specialize_layers"]  # fmt: skip
        assert {step: ended.get(step) for step in steps} == dict.fromkeys(steps, 2)
        assert "step_hw_codegen" in ended
        partition = [event for event in events if event["event"] == "partition"]
        assert all(not event["software"] and not event["floating"] for event in partition)


@pytest.mark.finn
@pytest.mark.parametrize("name", CASES)
def test_the_weight_file_is_in_the_order_of_the_windows(name: str, runs: Callable[[str], Path]) -> None:
    for number in (2, 0, 1):
        blocks = json.loads((runs(name) / f"blocks-{number}.json").read_text())
        assert blocks
        for block in blocks:
            assert block["integers"] > 0
            assert (block["wrong in Python"], block["wrong in hardware's order"]) == (0, 0), block
    folding = json.loads((runs(name) / "folding-1.json").read_text())
    for block in blocks:  # a stock build gets the same folding from folding.json
        assert folding[block["name"]]["parallel_window"] == block["parallel_window"]


@pytest.mark.finn
def test_both_kinds_of_windows_are_tried(runs: Callable[[str], Path]) -> None:
    found = [
        [
            block["parallel_window"]
            for name in FAST
            for block in json.loads((runs(name) / f"blocks-{n}.json").read_text())
        ]
        for n in (0, 1)
    ]
    assert not any(found[0])
    assert sum(found[1]) >= 15


@pytest.mark.finn
def test_an_estimate_takes_the_cheapest_form_and_says_why(write: Write, cache: Path) -> None:
    from rich.console import Console

    make, shape = GROUPED["4 groups"]
    model = build(make)
    images = torch.randn(2, *shape)
    found = fxfactor.finn.estimate(
        write(model, (1, *shape)), verify=(images, outputs_in_float64(model, images)), target_fps=20_000, cache=cache
    )
    (layer,) = found.grouped
    assert (layer.site, layer.form) == ("4", "block")
    assert all(f"{form} " in layer.why for form in FORMS)
    blocks = [each for each in found.layers if each.kind == "MVAUGrouped_rtl"]
    assert [each.site for each in blocks] == ["4"]
    assert blocks[0].resources.dsp == 1
    console = Console(width=160, record=True)
    with console.capture() as capture:
        console.print(found)
    assert "Grouped convolutions" in capture.get()


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("form", ["split", "branches"])
@pytest.mark.parametrize("name", ["4 groups", "3 x 5, stride 2", "depthwise, two outputs a channel", "1 x 1, stride 2"])
def test_the_other_forms_go_to_generated_code_too(
    name: str, form: Form, write: Write, tmp_path: Path, cache: Path
) -> None:
    make, shape = GROUPED[name]
    model = build(make)
    images = torch.randn(2, *shape)
    verify = (images, outputs_in_float64(model, images))
    for fps in (1, 80_000):  # what splitting a frame of windows allows at most is a little more
        file, folder = write(model, (1, *shape)), tmp_path / f"{fps}"
        prepared = fxfactor.finn.prepare(folder, file, target_fps=fps, grouped=form, verify=verify, cache=cache)
        assert {each.form for each in prepared.estimate.grouped} <= {form, "branches"}
        assert not (folder / "grouped_mvau.py").exists()


def test_where_groups_follow_a_multiplier_it_keeps_its_order(
    write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from fxfactor.finn import estimation, grouped
    from fxfactor.finn.result import GroupedForm

    def branches(layers: Any, target: Any, wanted: Any, prices: Any) -> dict[str, GroupedForm]:
        return {layer.tensor: GroupedForm(layer.site, "branches", "cheap") for layer in layers}

    monkeypatch.setattr(grouped, "choose_forms", branches)
    file = write(build(lambda: chain(conv(8, 16, groups=8), relu(), conv(16, 8, groups=2), norm(8), relu())))
    target = Target("ZCU104")
    network = load_integers(file)
    _, forms = estimation.Job(file, target)._built(network)
    assert [each.form for each in forms] == ["block", "branches"]
    assert "in their order; by cost: cheap" in forms[0].why
    with pytest.raises(FinnError, match='give grouped="block"'):
        estimation.Job(file, target, grouped="branches")._built(network)
