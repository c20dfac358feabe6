"""Progress bars let everything through, and are silent where nobody looks."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import redirect_stderr

import pytest

from fxfactor import progress
from fxfactor.progress import duration, heartbeat, hidden, time_left, track


def test_items_come_one_by_one_and_nothing_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    taken: list[int] = []

    def numbers() -> Iterator[int]:
        for number in range(3):
            taken.append(number)
            yield number

    for number in track(numbers(), "counting"):
        assert taken == list(range(number + 1))
    assert list(track("abc", "spelling", total=3)) == ["a", "b", "c"]
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_the_bar_knows_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert list(track([1, 2], "fitting")) == [1, 2]
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "fitting" in printed.err
    assert "100%" in printed.err


def test_long_work_off_a_terminal_is_told_in_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))  # six seconds for each item
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    assert list(track(range(8), "fitting")) == list(range(8))
    assert capsys.readouterr().err == (
        "fitting: 12% (1 of 8), 1 min 24 s left\nfitting: 38% (3 of 8), 40 s left\n"
        "fitting: 62% (5 of 8), 22 s left\nfitting: 88% (7 of 8), 7 s left\n"
    )


def test_work_of_unknown_length_says_how_long_it_has_been_where_stderr_was(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = iter(range(0, 1000, 6))
    monkeypatch.setattr(progress, "monotonic", lambda: float(next(clock)))
    beat = heartbeat("exporting")
    with redirect_stderr(io.StringIO()) as elsewhere:
        for _ in range(4):
            beat()
    assert elsewhere.getvalue() == ""
    assert capsys.readouterr().err == "exporting: 12 s so far\nexporting: 24 s so far\n"
    with hidden():
        beat = heartbeat("exporting")
    for _ in range(4):
        beat()
    assert capsys.readouterr().err == ""


def test_hidden_progress_says_nothing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    with hidden():
        assert list(track([1, 2], "fitting")) == [1, 2]
    assert capsys.readouterr() == ("", "")


def test_the_time_left() -> None:
    assert time_left(3, 12, 30.0) == "1 min 30 s left"
    assert time_left(0, 12, 30.0) == "30 s so far"
    assert time_left(3, None, 30.0) == "30 s so far"
    assert [duration(seconds) for seconds in (0.4, 59.6, 80, 7500)] == ["0 s", "1 min 0 s", "1 min 20 s", "2 h 5 min"]
