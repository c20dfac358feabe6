"""Progress bars let everything through, and are silent where nobody looks."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from fxfactor.progress import track


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
