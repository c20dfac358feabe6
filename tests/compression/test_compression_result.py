"""Which candidates go on, and what the table says of them."""

from __future__ import annotations

import io
import json
from pathlib import Path

from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console

from fxfactor.compression.result import Compressed, Row, best_half, best_rows, front_of


def row(name: str, metric: float | None, share: float | None, *, fits: bool = True, whole: bool = False) -> Row:
    return Row(name, whole, 1, metric, share, lut=10, bram18=1, dsp=2, uram=0, fps=100.0, fits=fits)


ROWS = [
    row("cheap", 0.5, 0.1),
    row("worse and dearer", 0.4, 0.2),
    row("good", 0.9, 0.3),
    row("a little better", 0.91, 0.9),
    row("too large", 0.99, 2.0, fits=False),
    row("not a number", None, 0.01),
]


def test_the_front_holds_what_nothing_cheaper_beats() -> None:
    assert [each.name for each in front_of(ROWS)] == ["cheap", "good", "a little better"]
    equal = [row("b", 0.5, 0.1), row("a", 0.5, 0.1)]
    assert [each.name for each in front_of(equal)] == ["a"]


def test_the_half_that_stands_out_goes_on() -> None:
    # margins: good 0.4, cheap 0.1, a little better 0.01, worse -0.1; the best of all is always among them
    assert best_half(ROWS) == {"good", "a little better"}
    assert best_half(ROWS[:3]) == {"cheap", "good"}
    assert best_half([row("cheap and useless", 0.1, 0.01), *ROWS[:3]]) == {"cheap", "good"}
    assert best_half([]) == set()
    assert best_half(ROWS[4:]) == set()


def test_of_every_candidate_the_best_row_counts() -> None:
    rows = [
        row("a", 0.5, 0.1),
        row("b", None, 0.1),
        row("c", 0.7, 0.1),
        row("a", 0.4, 0.1),
        row("b", 0.2, 0.1),
        row("c", 0.7, 0.2),
    ]
    assert [(each.name, each.metric, each.share) for each in best_rows(rows)] == [
        ("a", 0.5, 0.1), ("b", 0.2, 0.1), ("c", 0.7, 0.2)
    ]  # fmt: skip


@given(st.lists(st.tuples(st.floats(0, 1), st.floats(0.001, 1)), min_size=1, max_size=12))
def test_half_goes_on_with_the_best_among_them(values: list[tuple[float, float]]) -> None:
    rows = [row(f"{index:02}", metric, share) for index, (metric, share) in enumerate(values)]
    chosen = best_half(rows)
    assert len(chosen) == (len(rows) + 1) // 2
    best = max(metric for metric, _ in values)
    assert best in [each.metric for each in rows if each.name in chosen]
    front = front_of(rows)
    assert front[-1].metric == best
    for each in rows:  # nothing outside is both cheaper and better than something on the front
        assert not any(each.share < other.share and each.metric > other.metric for other in front)  # type: ignore[operator]


def test_the_table_has_a_row_for_each_candidate(tmp_path: Path) -> None:
    first = [row("whole 1", 0.8, 0.5, whole=True), row("factorized 1", 0.7, 0.2), row("free 1", 0.6, 3.0, fits=False)]
    later = [row("factorized 1", 0.85, 0.2)]
    found = Compressed((*first, *later), later[0], tmp_path, "ZCU104 at 200 MHz", 0.9, {"factorized 1": "{}"})
    console = Console(width=120, record=True, file=io.StringIO())
    console.print(found)
    text = console.export_text()
    assert "ZCU104 at 200 MHz; the network given: 90.00%" in text
    lines = [line for line in text.splitlines() if "1 " in line and "%" in line and "network" not in line]
    assert [line.split()[0] for line in lines] == ["factorized", "whole", "free"]
    assert "85.00%" in lines[0] and lines[0].rstrip().endswith("taken")
    assert "too large" in lines[2]
    assert [each.name for each in found.front()] == ["factorized 1"]
    data = json.loads(found.to_json())
    assert data["best"]["metric"] == 0.85
    assert len(data["rows"]) == 4


def test_a_row_of_nothing_but_a_name_has_no_place_and_did_not_go_on() -> None:
    new = Row("new", whole=True, epochs=0, metric=0.9)
    assert (new.fits, new.kept, new.by_speed, new.cost, new.lost) == (False, False, False, None, True)
