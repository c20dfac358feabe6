"""What a compression answers: accuracy and hardware of every candidate in one row, and which was taken."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.plan.plan import Plan
from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import RenderableType

RESOURCES = ("lut", "bram18", "dsp", "uram")


@dataclass(frozen=True)
class Row:
    """One candidate after one stage. `metric`: measured on the validation data after `epochs` epochs of training in all.

    `lut` … `fps`: our estimates of the whole network on the board (`fxfactor.finn.estimate`), before synthesis; `share`: the
    sum of the shares of the board's resources, 1.0 for all of one of them. They are None where no folding gives the network
    on this board, and `message` says why. `fits`: whether it is within the board and its limits. `kept`: whether it went on
    to the next stage; of those of the last stage, whether nothing cheaper is as good. `whole`: no layer is factorized.
    `by_speed`: the target was as many frames per second as fit: then cheaper means faster.
    """

    name: str
    whole: bool
    epochs: int
    metric: float | None
    share: float | None = None
    lut: int | None = None
    bram18: int | None = None
    dsp: int | None = None
    uram: int | None = None
    fps: float | None = None
    fits: bool = False
    message: str = ""
    kept: bool = False
    by_speed: bool = False

    @property
    def cost(self) -> float | None:
        """What candidates are ordered by: the share of the board, or seconds per frame; None where there is no estimate."""
        if self.share is None or not self.by_speed:
            return self.share
        return None if self.fps is None else 1 / self.fps

    @property
    def lost(self) -> bool:
        """Whether nothing can become of it."""
        return not self.fits or self.metric is None


@dataclass(frozen=True)
class Compressed:
    """The result of `fxfactor.compress`: every candidate after every stage, the one that was taken, and where it lies.

    rows: stage by stage. best: the row of the network in `folder`, the cheapest at most `tolerance` below the best metric.
    target: board, clock and speed, in words. plans: by name.
    """

    rows: tuple[Row, ...]
    best: Row
    folder: Path
    target: str
    original: float
    plans: dict[str, str]
    tolerance: float = 0.0

    @property
    def plan(self) -> Plan:
        """The plan of the best, for `fxfactor.transform(model, plan=…)`."""
        return Plan.from_json(self.plans[self.best.name])

    def front(self) -> list[Row]:
        """Of every candidate its best row, where no cheaper one is as good; from cheap to good."""
        return front_of(self.candidates())

    def candidates(self) -> list[Row]:
        """Of every candidate its best row; of rows that are as good the later one."""
        return best_rows(self.rows)

    def remarks(self) -> list[tuple[Row, str]]:
        """Of every candidate its best row and what is to be said of it; from cheap to expensive."""
        front = {row.name for row in self.front()}
        told = []
        for row in sorted(self.candidates(), key=lambda row: (row.cost is None, row.cost or 0)):
            notes = [row.message] if row.message else [] if row.fits else ["too large"]
            notes += ["taken"] if row.name == self.best.name else ["on the front"] if row.name in front else []
            told.append((row, "; ".join(notes)))
        return told

    def to_dict(self) -> dict[str, Any]:
        """All of it as numbers, texts and lists."""
        return {
            "target": self.target,
            "original": self.original,
            "tolerance": self.tolerance,
            "best": asdict(self.best),
            "front": [row.name for row in self.front()],
            "candidates": [{**asdict(row), "remark": remark} for row, remark in self.remarks()],
            "rows": [asdict(row) for row in self.rows],
            "plans": {name: json.loads(plan) for name, plan in self.plans.items()},
        }

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def __rich__(self) -> RenderableType:
        table = new_table(title=f"{self.target}; the network given: {self.original:.2%}")
        for head in ("candidate", "epochs", "metric", "LUT", "BRAM18", "DSP", "URAM", "frames/s", ""):
            table.add_column(head, justify="left" if head in ("candidate", "") else "right", no_wrap=bool(head))
        for row, remark in self.remarks():
            costs = (f"{value:,.0f}" if value is not None else "" for value in
                     (row.lut, row.bram18, row.dsp, row.uram, row.fps))  # fmt: skip
            metric = "" if row.metric is None else f"{row.metric:.2%}"
            table.add_row(row.name, str(row.epochs), metric, *costs, remark)
        return table


def best_rows(rows: Iterable[Row]) -> list[Row]:
    """Of every candidate the row with the best metric; of rows that are as good the later one."""
    best: dict[str, Row] = {}
    for row in rows:
        known = best.get(row.name)
        if known is None or known.lost or (not row.lost and _metric(row) >= _metric(known)):
            best[row.name] = row
    return list(best.values())


def front_of(rows: Iterable[Row]) -> list[Row]:
    """Rows that fit and beat all cheaper ones; from cheap to good. Of equals the first."""
    front: list[Row] = []
    for row in sorted((row for row in rows if not row.lost), key=_cost):
        if not front or _metric(row) > _metric(front[-1]):
            front.append(row)
    return front


def taken(rows: Iterable[Row], tolerance: float) -> Row:
    """The cheapest row whose metric is at most `tolerance` below the best."""
    front = front_of(best_rows(rows))
    return next(row for row in front if _metric(row) >= _metric(front[-1]) - tolerance)


def best_half(rows: Sequence[Row]) -> set[str]:
    """Names of the half (rounded up) that stands out most: by how much each beats all that are no more expensive.

    The cheapest has to beat the worst of all instead. Who beats none of the cheaper ones is behind them by as much as it is worse
    than the best of them. The best of all is always among the half.
    """
    living = sorted((row for row in rows if not row.lost), key=_cost)
    margins: list[tuple[float, int]] = []
    best = min(map(_metric, living), default=0.0)
    for index, row in enumerate(living):
        margins.append((_metric(row) - best, -index))
        best = max(best, _metric(row))
    order = sorted(range(len(living)), key=lambda index: margins[index], reverse=True)
    chosen = order[: (len(living) + 1) // 2]
    top = max(range(len(living)), key=lambda index: (_metric(living[index]), -index), default=None)
    if top is not None and top not in chosen:
        chosen[-1] = top
    return {living[index].name for index in chosen}


def _cost(row: Row) -> tuple[float, str]:
    assert row.cost is not None
    return row.cost, row.name


def _metric(row: Row) -> float:
    assert row.metric is not None
    return row.metric
