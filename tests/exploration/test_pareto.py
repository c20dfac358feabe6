"""The Pareto front and its hypervolume."""

from __future__ import annotations

import pytest
from small_exploration import RESULT

from fxfactor.exploration.pareto import hypervolume, pareto_front


def test_hypervolume_counts_dominated_area() -> None:
    assert hypervolume([(20, 0.6), (60, 0.92), (30, 0.5)], (100, 0.0)) == pytest.approx(40 * 0.6 + 40 * 0.92)
    assert hypervolume([(120, 0.9)], (100, 0.0)) == 0
    assert RESULT.hypervolume() == pytest.approx(40 * 0.6 + 40 * 0.92)
    assert pareto_front([], lambda x: x, lambda x: x) == []


def test_of_equal_points_the_first_stays() -> None:
    points = [("a", 1, 0.5), ("b", 1, 0.5), ("c", 2, 0.5), ("d", 1, 0.4), ("e", 3, 0.9)]
    assert [name for name, _, _ in pareto_front(points, lambda x: x[1], lambda x: x[2])] == ["a", "e"]
