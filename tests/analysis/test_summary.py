"""The table of what became of every site: its numbers counted by hand, its words, and what it refuses."""

from __future__ import annotations

import pytest
import torch
from networks import randomized
from torch import Tensor, nn
from torch.nn import functional as F

import fxfactor
from fxfactor.errors import PreconditionError
from fxfactor.rich_table import amount, bytes_as_text

SHAPE = (1, 3, 8, 8)


def _model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16)]
    return randomized(nn.Sequential(*layers, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, 5)))


def test_rows_counted_by_hand() -> None:
    rows = fxfactor.summary(fxfactor.transform(_model(), level=2, bits=4, example_inputs=torch.zeros(SHAPE))).rows
    first, middle, last = rows
    assert (first.site, first.before, first.after, first.note) == ("0", "3→8 3×3", "", "the first convolution")
    assert (first.macs_before, first.macs, first.weight_bits, first.activation_bits) == (27 * 8 * 64, 27 * 8 * 64, 8, 8)
    assert (middle.site, middle.before, middle.after, middle.groups) == ("2", "8→16 3×3", "g4 + 1×1", 4)
    assert middle.macs_before == 8 * 9 * 16 * 64
    assert middle.macs == (2 * 9 * 8 + 8 * 16) * 64
    assert (middle.weight_bits, middle.activation_bits, middle.note) == (4, 4, "")
    assert (last.before, last.groups, last.macs) == ("16→5", None, 80)
    assert (first.error, last.error) == (None, None)


def test_the_error_is_that_of_the_weights_without_images_and_of_the_outputs_with_them() -> None:
    images = torch.randn(32, *SHAPE[1:])
    without = fxfactor.summary(fxfactor.transform(_model(), level=1, bits=None, example_inputs=images[:1]), show=False)
    fitted = fxfactor.summary(fxfactor.transform(_model(), level=1, bits=None, calibration=[images]), show=False)
    by_weights, by_outputs = without.rows[1], fitted.rows[1]
    assert by_weights.error == by_weights.relative_error
    assert by_weights.output_error is None
    assert by_outputs.error == by_outputs.output_error
    assert by_outputs.error != by_outputs.relative_error
    assert "‖W − UV‖ / ‖W‖" in str(without)
    assert "missed on the calibration images" in str(fitted)


def test_what_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    graph = fxfactor.transform(_model(), level=2, width=2, bits=4, example_inputs=torch.zeros(SHAPE))
    assert fxfactor.summary(graph, show=False) is not None
    assert capsys.readouterr().out == ""
    found = fxfactor.summary(graph)
    printed = capsys.readouterr().out
    for text in ("8→16 3×3 → g4 mid 16 + 1×1", "3→8 3×3: the first convolution", "input 1×3×8×8", "4/4", "8/8"):
        assert text in printed
        assert text in str(found)
    assert "assumed" not in printed
    macs = sum(row.macs for row in found.rows)
    assert f"({macs / found.macs_before:.0%})" in printed


def test_floating_point_has_no_bits_and_an_assumed_input_is_said() -> None:
    found = str(fxfactor.summary(fxfactor.capture(_model()), show=False))
    assert "–/–" in found
    assert "(assumed: pass example_inputs= for another)" in found


class Dynamic(nn.Module):
    """A convolution whose weight is computed from the input: no pass can see it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.gate = nn.Conv2d(3, 4, 3), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        weight = self.gate(y.mean((2, 3))).reshape(1, 4, 1, 1)
        return F.conv2d(y, weight)


def test_convolutions_that_no_pass_can_see_are_named() -> None:
    found = fxfactor.summary(fxfactor.capture(Dynamic().eval(), torch.zeros(SHAPE)), show=False)
    assert len(found.hidden) == 1
    assert f"not counted, their weights are computed from the input: {found.hidden[0]}" in str(found)


def test_a_model_that_was_not_captured_is_refused() -> None:
    with pytest.raises(PreconditionError, match="summary needs a captured or transformed graph, found Sequential"):
        fxfactor.summary(_model())  # type: ignore[arg-type]


def test_the_totals_and_errors_that_are_printed() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 16, 3, bias=False), nn.Conv2d(16, 32, 3, bias=False), nn.Conv2d(32, 8, 1, bias=False)
    )
    graph = fxfactor.transform(model.eval(), level=2, bits=(2, 4), example_inputs=torch.zeros(1, 3, 12, 12))
    total = fxfactor.summary(graph, show=False)
    text = str(total)
    cost = fxfactor.cost(graph)
    before = 16 * 27 * 100 + 32 * 144 * 64 + 8 * 32 * 64
    assert total.macs_before == before
    row = next(each for each in total.rows if each.site == "1")
    assert (row.before, row.after, row.groups) == ("16→32 3×3", "g4 + 1×1", 4)
    assert row.macs_before == 32 * 144 * 64
    assert row.macs == (16 * 4 * 9 + 16 * 32) * 64
    assert (row.weight_bits, row.activation_bits) == (2, 4)
    assert row.error == row.relative_error and row.output_error is None
    assert f"MACs {before / 1e3:.1f} → {cost.macs / 1e3:.1f} k ({cost.macs / before:.0%})" in text
    assert (
        f"BOPs {amount(cost.bops)} ({cost.bops / (before * 1024):.1%} of the network in one piece at 32 bits)" in text
    )
    assert f"parameters {cost.parameters:,}, weights {bytes_as_text(cost.total_weight_bits / 8)}" in text
    assert f"{row.relative_error:.1%}" in text
    assert "error: ‖W − UV‖ / ‖W‖" in text
    assert "input 1×3×12×12\n" in text


def test_wider_factors_and_groups_are_described() -> None:
    model = nn.Sequential(nn.Conv2d(3, 16, 1), nn.Conv2d(16, 16, 3, groups=2), nn.Conv2d(16, 16, (1, 5)))
    graph = fxfactor.transform(model.eval(), level=2, width=1.5, example_inputs=torch.zeros(1, 3, 12, 12))
    rows = fxfactor.summary(graph, show=False).rows
    assert [row.before for row in rows] == ["3→16 1×1", "16→16 3×3 g2", "16→16 1×5"]
    assert [row.after for row in rows] == ["", "g4 mid 24 + 1×1 g2", "g4 mid 24 + 1×1"]
    assert "first convolution" in rows[0].note
    assert [row.macs_before for row in rows] == [3 * 16 * 144, 16 * 8 * 9 * 100, 16 * 16 * 5 * 60]


@pytest.mark.parametrize(("width", "macs"), [(1000, "10.0"), (990, "9.90")])
def test_three_digits_are_printed(width: int, macs: str) -> None:
    graph = fxfactor.capture(nn.Conv2d(10, 10, 1, bias=False).eval(), torch.zeros(1, 10, 100, width))
    assert f"MACs {macs} M (100%)" in str(fxfactor.summary(graph, show=False))
