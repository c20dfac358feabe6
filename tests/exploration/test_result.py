"""What an exploration answers."""

from __future__ import annotations

from pathlib import Path

import pytest
from small_exploration import RESULT

from fxfactor import PreconditionError


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
