"""What the report says in words."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from fxfactor.analysis.table import Distribution, Distributions
from fxfactor.report.findings import findings

ZERO = Distribution(
    variant="v", site="a", tensor="output", path="a", bits=None, count=10, channels=4, min=0, max=1, mean=0, std=1, p0_1=0, p1=0,
    p25=0, p50=0, p75=0, p99=1, p99_9=1, dynamic_range=1, peak_to_std=1, channel_range_ratio=0.4, zeros=0, dead_channels=0,
)  # fmt: skip


def row(**values: Any) -> Distribution:
    return replace(ZERO, **values)


def said(*rows: Distribution, count: int = 3) -> list[str]:
    return findings(Distributions(rows, 8), "v", count)


def test_the_layers_that_lose_most_come_first_and_the_end_last() -> None:
    losses = {"a": 0.1, "b": 0.4, "c": 0.3, "d": 0.2}
    rows = [row(site=name, layer_error=loss, accumulated_error=2 * loss) for name, loss in losses.items()]
    found = said(*rows, count=2)
    assert [each.partition(" ")[0] for each in found] == ["b", "c", "At"]
    assert found[0].startswith("b alone is off by 40%: nothing at it is rounded.")
    assert found[-1] == "At the end of the network, d, 40% have gathered."
    assert said() == []


def test_the_cause_is_the_factors_or_the_tensor_with_the_least_sqnr() -> None:
    weights = [
        row(tensor=name, sqnr_db=db, bits=4)
        for name, db in (("spatial.weight", 12.0), ("between", 7.0), ("input", 30.0))
    ]
    factors = said(row(layer_error=0.5, unrounded_error=0.45), *weights)
    assert "its factors lose 45% before anything is rounded" in factors[0]
    rounding = said(row(layer_error=0.5, unrounded_error=0.1), *weights)
    assert "its factors lose 10%, and the weakest of its tensors is between with 7.0 dB at 4 bits" in rounding[0]
    assert "use 40% of its range" in rounding[0]
    assert "clipped" not in rounding[0]
    (clipped, _) = said(row(layer_error=0.5), row(tensor="input", sqnr_db=3.0, bits=2, clipped=0.25))
    assert "25.0% of its values are clipped" in clipped
    assert "factors" not in clipped
    elsewhere = said(row(layer_error=0.5), row(site="b", tensor="input", sqnr_db=1.0, bits=2))
    assert "nothing at it is rounded" in elsewhere[0]


def test_channels_that_rounding_makes_constant_are_counted() -> None:
    dying = [row(site=f"s{i}", tensor="weight", dead_channels=1, dead_after=3) for i in range(6)]
    (told,) = (each for each in said(*dying) if "constant" in each)
    assert (
        told
        == "Rounding makes channels constant: "
        + ", ".join(f"2 of 4 in s{i} (weight)" for i in range(4))
        + " and 2 more."
    )
    assert said(row(tensor="weight", dead_channels=2, dead_after=2)) == []


def test_three_layers_are_named_where_no_number_is_given() -> None:
    rows = [row(site=f"s{index}", layer_error=0.1 + index / 100) for index in range(6)]
    found = findings(Distributions(tuple(rows), 8), "v")
    assert [each.partition(" ")[0] for each in found] == ["s5", "s4", "s3", "At"]
