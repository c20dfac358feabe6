"""What an exploration answers."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from small_exploration import RESULT, candidate

from fxfactor import Exploration, LayerPlan, Plan, PreconditionError
from fxfactor.exploration.result import cells, plan_of


def test_the_front_and_the_best() -> None:
    assert [each.level for each in RESULT.front()] == ["3", "1"]
    assert RESULT.best(max_bops=50).level == "3"
    assert RESULT.best(min_accuracy=0.9).level == "1"
    assert RESULT.best().level == "1"
    with pytest.raises(PreconditionError, match=r"at least 0\.9 within bops ≤ 50: the best of those has 0\.6"):
        RESULT.best(min_accuracy=0.9, max_bops=50)
    with pytest.raises(PreconditionError, match="no candidate is within the costs"):
        RESULT.best(max_macs=1)
    with pytest.raises(PreconditionError, match="cost must be one of bops, macs, total_weight_bits"):
        RESULT.front("latency")


def test_the_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = RESULT.plot(tmp_path / "front.svg")
    assert path.read_text().startswith("<?xml")


PRICED = Exploration(
    (
        replace(candidate(1, 100, 0.9), lut=500, bram18=3, dsp=0, fps=2000.0, plan="{}"),
        replace(candidate(2, 60, 0.9), lut=800, bram18=2, dsp=9, fps=900.0, width=2.0),
        replace(candidate(3, 60, 0.8), weight_bits=None, message="no FINN estimates: too wide"),
        replace(
            candidate(4, 1, 0.0),
            status="failed",
            metric=None,
            bops=None,
            macs=None,
            total_weight_bits=None,
            message="broke",
        ),
    )
)


def test_limits_of_hardware_exclude_what_has_no_estimate() -> None:
    assert [each.level for each in PRICED.done] == ["1", "2", "3"]
    assert PRICED.best().level == "2"  # of equal metrics the one of fewer BOPs
    assert PRICED.best(max_lut=500).level == "1"
    assert PRICED.best(min_fps=2000).level == "1"
    assert PRICED.best(max_dsp=0).level == "1"
    assert PRICED.best(max_bram18=2).level == "2"
    assert PRICED.best(max_weight_bits=60, min_accuracy=0.5).level == "2"  # of equal BOPs the one of the better metric
    with pytest.raises(
        PreconditionError, match=r"within lut ≤ 499 and frames/s ≥ 10: no candidate is within the costs"
    ):
        PRICED.best(max_lut=499, min_fps=10)
    assert [each.level for each in PRICED.front("dsp")] == ["1"]
    assert [each.level for each in PRICED.front("bram18")] == ["2"]


def test_the_table_says_what_each_candidate_costs_and_why_one_failed() -> None:
    text = str(PRICED)
    rows = [line.split() for line in text.splitlines() if line.strip()[:1].isdigit()]
    assert rows[0] == ["1", "4/4", "0.9000", "100", "100", "12", "B", "0.0", "500", "3", "0", "2,000"]
    assert rows[1][:4] == ["2", "×2", "4/4", "0.9000"]
    assert rows[1][-1] == "front"
    assert rows[2][1] == "32/4"
    assert "no FINN estimates: too wide" in text
    assert "broke" in text
    assert "3 of 4 evaluated" in text
    assert "LUT" not in str(RESULT)
    assert cells(replace(candidate(1, 2_500_000, 0.5), total_weight_bits=8192 * 3))[3:6] == (
        "2.50 M",
        "2.50 M",
        "3.0 KiB",
    )


def test_hypervolume_goes_up_to_the_dearest_or_to_what_is_asked() -> None:
    assert PRICED.hypervolume() == pytest.approx((100 - 60) * 0.9)
    assert PRICED.hypervolume(most=160, least=0.5) == pytest.approx((160 - 60) * 0.4)
    assert Exploration(()).hypervolume() == 0


def test_a_plan_comes_back_from_its_candidate() -> None:
    plan = Plan({"a": LayerPlan(2, None, 4, 4)}, 4)
    assert plan_of(replace(candidate(1, 1, 1.0), plan=plan.to_json())) == plan
