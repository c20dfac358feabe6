"""Which of several networks no other one beats, and how good a set of them is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

T = TypeVar("T")


def pareto_front(items: Iterable[T], cost: Callable[[T], float], value: Callable[[T], float]) -> list[T]:
    """The items that no other one beats, by rising cost: none costs as little and is worth more.

    Of several with equal cost and value the first one stays.

    >>> pareto_front([(3, 0.9), (1, 0.5), (2, 0.4), (3, 0.8)], lambda i: i[0], lambda i: i[1])
    [(1, 0.5), (3, 0.9)]
    """
    front: list[T] = []
    for item in sorted(items, key=lambda each: (cost(each), -value(each))):
        if not front or value(item) > value(front[-1]):
            front.append(item)
    return front


def hypervolume(points: Sequence[tuple[float, float]], reference: tuple[float, float]) -> float:
    """Area that points (cost, value) dominate, up to a reference of the largest cost and the smallest value.

    Zitzler and Thiele 1999. Points beyond the reference add nothing.

    >>> hypervolume([(1, 0.5), (3, 0.9)], (4, 0.0))
    1.9
    """
    largest, smallest = reference
    inside = [point for point in points if point[0] < largest and point[1] > smallest]
    front = pareto_front(inside, lambda p: p[0], lambda p: p[1])
    ends = [*(cost for cost, _ in front[1:]), largest][: len(front)]
    return sum((end - cost) * (value - smallest) for (cost, value), end in zip(front, ends, strict=True))
