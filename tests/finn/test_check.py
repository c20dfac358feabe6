"""check says of every small network what FINN does with it; what is taken computes what PyTorch computes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from finn_helpers import outputs_in_float64, relative
from small_networks import REFUSED, TAKEN, build
from support_matrix import OPERATIONS, Function, around, conv, page, row, shuffled
from torch import nn

import fxfactor.finn
from fxfactor.errors import FinnError
from fxfactor.finn.process.load import load_integers

Write = Callable[..., Path]


@pytest.mark.parametrize("name", TAKEN)
def test_what_finn_takes_has_no_findings_and_equals_torch(name: str, write: Write) -> None:
    model = build(TAKEN[name])
    file = write(model)
    assert fxfactor.finn.check(file) == []
    images = torch.randn(8, 3, 8, 8)
    assert relative(load_integers(file)(images.numpy()), outputs_in_float64(model, images)) < 1e-6


@pytest.mark.parametrize("name", REFUSED)
def test_what_finn_refuses_is_found_by_its_rule(name: str, write: Write) -> None:
    make, rule = REFUSED[name]
    file = write(build(make))
    blocking = [finding for finding in fxfactor.finn.check(file) if finding.blocks]
    assert rule in [finding.rule for finding in blocking]
    assert all(finding.found and finding.remedy and finding.site for finding in blocking)
    with pytest.raises(FinnError, match="Broken rules"):
        load_integers(file)


def test_the_table_is_large_enough() -> None:
    assert len(TAKEN) + len(REFUSED) >= 40


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("name", TAKEN)
def test_the_flow_takes_what_check_lets_pass(name: str, write: Write, cache: Path) -> None:
    model = build(TAKEN[name])
    images = torch.randn(3, 3, 8, 8)
    estimate = fxfactor.finn.estimate(write(model), verify=(images, outputs_in_float64(model, images)), cache=cache)
    assert not estimate.software
    assert not estimate.floating


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("name", sorted(set(REFUSED) - {"two outputs"}))  # FINN takes two outputs, fxfactor does not
def test_finn_itself_refuses_what_check_blocks(name: str, write: Write, tmp_path: Path) -> None:
    from finns_own_flow import why_refused

    model = build(REFUSED[name][0])
    images = torch.randn(2, 3, 8, 8)
    outputs = None if name == "an output that is read" else outputs_in_float64(model, images)
    reasons = why_refused(write(model), images, outputs, tmp_path)
    print(f"\n{name}: {reasons}")
    assert all(reasons.values()), reasons


def test_every_broken_rule_is_found_not_only_the_first(write: Write) -> None:
    from small_networks import chain, conv, norm, quantizer, relu

    model = chain(conv(8, 8), norm(8), conv(8, 8), relu(), conv(8, 8), nn.Hardswish(), quantizer(), conv(8, 8), norm(8),
                  quantizer(9))  # fmt: skip
    found = {finding.found for finding in fxfactor.finn.check(write(build(lambda: model)))}
    assert {"8 scales", "HardSwish", "9 bits"} <= found


def test_groups_of_any_number_pass_and_a_gate_has_a_name() -> None:
    ahead, behind = (
        [nn.Conv2d(3, 64, 3), nn.BatchNorm2d(64), nn.ReLU()],
        [nn.BatchNorm2d(64), nn.SiLU(), nn.Conv2d(64, 8, 1)],
    )
    model = nn.Sequential(*ahead, nn.Conv2d(64, 64, 3, groups=32), *behind).eval()
    qmodel = fxfactor.transform(model, level=0, bits=4, example_inputs=torch.randn(1, 3, 8, 8))
    found = {finding.found: finding for finding in fxfactor.finn.check(qmodel)}
    assert list(found) == ["SiLU, x · sigmoid(x)"]
    silu = found["SiLU, x · sigmoid(x)"]
    assert (silu.site, silu.blocks) == ("5", True)
    assert "ReLU" in silu.remedy


SUPPORT = Path(__file__).parents[2] / "docs" / "support.md"


@pytest.mark.slow
def test_the_support_matrix_is_true() -> None:
    assert page().splitlines() == SUPPORT.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", ["Conv2d 3×3", "Mish", "channel shuffle, 2 groups behind"])
def test_some_of_the_support_matrix_is_true(name: str) -> None:
    build = {**OPERATIONS["Layers"], **OPERATIONS["Activations"], **OPERATIONS["Joins and channels"]}[name]
    assert row(name, build) in SUPPORT.read_text(encoding="utf-8").splitlines()


def test_the_support_matrix_has_every_operation() -> None:
    listed = [line.split(" | ")[0].removeprefix("| ") for line in SUPPORT.read_text(encoding="utf-8").splitlines()]
    assert all(name in listed for operations in OPERATIONS.values() for name in operations)


def test_a_network_is_checked_as_its_file_is(tmp_path: Path) -> None:
    model = around(Function(shuffled), *conv(kernel=1)).eval()
    qmodel = fxfactor.transform(model, level=1, bits=4, example_inputs=torch.randn(1, 3, 16, 16))
    fxfactor.export(qmodel, tmp_path / "shuffled.onnx", target="finn")
    assert fxfactor.finn.check(qmodel) == fxfactor.finn.check(tmp_path / "shuffled.onnx") == []
