"""The table that `fxfactor.distributions` gives: one row for each variant, site and tensor, to look at or to write out."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError
from fxfactor.files import write_text
from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table


ORIGINAL = "original"
"""The variant that stands for the user's network as it was."""

SCHEMA_VERSION = 1


@dataclass(frozen=True)
class Bins:
    """Two distributions to draw over one another: `before` in equal bins over low…high, and what became of it.

    `grid` holds the values of the quantizer's levels, and `after` then the counts at each of them. Where every channel has
    a grid of its own, or the other distribution is that of another network, `grid` is empty and `after` is in the same
    bins as `before`; it is empty where there is nothing to compare with.
    """

    low: float
    high: float
    before: tuple[float, ...]
    after: tuple[float, ...] = ()
    grid: tuple[float, ...] = ()


@dataclass(frozen=True)
class Distribution:
    """One row: how the values of one tensor at one site of one variant are distributed, and what they lost.

    tensor: "weight", "spatial.weight", "pointwise.weight"; "composed weight" is the one convolution that two factors stand
    for, rounded; "input" enters the layer, "between" stands between the factors, "join" enters an addition, a
    concatenation or a pooling but no layer; "output" is what leaves the site, behind its batch norm where it has one.
    path is the module that the tensor belongs to.

    Spread: min … zeros (the share of exact zeros) are those of the tensor before it is rounded
    (`fxfactor.analysis.measures.Spread`). dead_channels counts channels of a weight that are all zero, and of an
    activation that never change; dead_after the same once it is rounded.

    Loss, by `compared_with`: "itself before rounding" is what its quantizer does
    (`fxfactor.analysis.measures.RoundingLoss`), "original" is how far it is from the same tensor in the original
    network (`Difference`, `kl_between`).

    Errors of outputs, each ‖ŷ − y‖/‖y‖ against the original's y: `layer_error` is this layer alone, given the original's
    inputs; `unrounded_error` the same with all rounding off, so what the factors alone lose; `accumulated_error` what has
    gathered from the network's input to here.

    None is what does not apply; `note` says why where that is not plain.
    """

    variant: str
    site: str
    tensor: str
    path: str
    bits: int | None
    count: int
    channels: int
    min: float
    max: float
    mean: float
    std: float
    p0_1: float
    p1: float
    p25: float
    p50: float
    p75: float
    p99: float
    p99_9: float
    dynamic_range: float
    peak_to_std: float
    channel_range_ratio: float
    zeros: float
    dead_channels: int
    compared_with: str = ""
    qmse: float | None = None
    sqnr_db: float | None = None
    kl: float | None = None
    clipped: float | None = None
    levels_used: float | None = None
    dead_after: int | None = None
    layer_error: float | None = None
    unrounded_error: float | None = None
    accumulated_error: float | None = None
    note: str = ""
    channel_min: tuple[float, ...] = ()
    channel_max: tuple[float, ...] = ()
    bins: Bins | None = None

    @property
    def channel_ratios(self) -> tuple[float, ...]:
        """(max_c − min_c)/(max − min) of every channel."""
        whole = self.dynamic_range or 1.0
        return tuple((high - low) / whole for low, high in zip(self.channel_min, self.channel_max, strict=True))


_NESTED = ("channel_min", "channel_max", "bins")
COLUMNS = tuple(each.name for each in fields(Distribution) if each.name not in _NESTED)


@dataclass(frozen=True)
class Distributions:
    """All rows, in the order of execution; `images` says how many images were looked at.

    Print it with rich, hand it to pandas (`to_pandas`), write it (`to_csv`, `to_json`), or pick rows with `where`.
    """

    rows: tuple[Distribution, ...]
    images: int

    def __iter__(self) -> Iterator[Distribution]:
        return iter(self.rows)

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def variants(self) -> tuple[str, ...]:
        """The variants but for the original, in the order they were given."""
        return tuple(name for name in dict.fromkeys(row.variant for row in self.rows) if name != ORIGINAL)

    @property
    def sites(self) -> tuple[str, ...]:
        """The sites of the original network, in the order of execution."""
        return tuple(dict.fromkeys(row.site for row in self.rows if row.variant == ORIGINAL))

    def where(self, **wanted: str | int | None) -> tuple[Distribution, ...]:
        """The rows whose columns have these values: `table.where(site="layer1.0.conv1", tensor="between")`.

        Raises PreconditionError on an unknown column.
        """
        unknown = sorted(set(wanted) - set(COLUMNS))
        if unknown:
            raise PreconditionError(f"no column {unknown[0]!r} in the table; known are {', '.join(COLUMNS)}")
        return tuple(row for row in self.rows if all(getattr(row, name) == value for name, value in wanted.items()))

    def to_dicts(self) -> list[dict[str, Any]]:
        """One flat dict per row, without the channels and the histogram: `pandas.DataFrame(table.to_dicts())`."""
        return [{name: getattr(row, name) for name in COLUMNS} for row in self.rows]

    def channels(self) -> list[dict[str, Any]]:
        """One flat dict per channel of every row: variant, site, tensor, channel, min, max, range_ratio."""
        return [
            {"variant": row.variant, "site": row.site, "tensor": row.tensor, "channel": index, "min": low, "max": high,
             "range_ratio": ratio}
            for row in self.rows
            for index, (low, high, ratio) in enumerate(
                zip(row.channel_min, row.channel_max, row.channel_ratios, strict=True))
        ]  # fmt: skip

    def to_pandas(self) -> Any:
        """The rows as a pandas.DataFrame. Raises PreconditionError where pandas is not installed."""
        try:
            import pandas
        except ImportError as error:
            raise PreconditionError("to_pandas needs pandas: pip install pandas, or use to_dicts()") from error
        return pandas.DataFrame(self.to_dicts(), columns=list(COLUMNS))

    def to_csv(self, path: str | Path) -> None:
        """Write the rows as CSV, whole or not at all; an empty cell is what does not apply."""
        write_text(path, _csv(self.to_dicts()), "writing the distributions")

    def channels_to_csv(self, path: str | Path) -> None:
        """Write the ranges of every channel as CSV (`channels`), whole or not at all."""
        write_text(path, _csv(self.channels()), "writing the channel ranges")

    def to_json(self, path: str | Path) -> None:
        """Write everything, channels and histograms too, for `from_json` and for `fxfactor report`."""
        rows = [asdict(row) for row in self.rows]
        text = json.dumps({"schema_version": SCHEMA_VERSION, "images": self.images, "rows": _shorter(rows)})
        write_text(path, text, "writing the distributions")

    @classmethod
    def from_json(cls, path: str | Path) -> Distributions:
        """Read what `to_json` wrote. Raises PreconditionError where the file is missing or is something else."""
        try:
            data = json.loads(Path(path).read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise PreconditionError(f"cannot read the distributions {str(path)!r}: {error}; check the path") from error
        if not isinstance(data, Mapping) or data.get("schema_version") != SCHEMA_VERSION or "rows" not in data:
            raise PreconditionError(
                f"{str(path)!r} is not a table of distributions of schema_version {SCHEMA_VERSION}; "
                "write it with fxfactor.distributions(...).to_json(path)"
            )
        try:
            return cls(tuple(_row(entry) for entry in data["rows"]), int(data["images"]))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise PreconditionError(
                f"{str(path)!r} is damaged ({error!r}); write it again with to_json(path)"
            ) from error

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        narrow = options.max_width < WIDE
        for variant in self.variants:
            yield self._table(variant, NARROW if narrow else tuple(_CELLS))
        more = f"; {len(_CELLS)} columns from {WIDE} characters on, all in to_csv and to_json" if narrow else ""
        yield f"{self.images} images; error of a layer alone and accumulated: ‖ŷ − y‖/‖y‖ at its output{more}"

    def _table(self, variant: str, heads: tuple[str, ...]) -> Table:
        table = new_table(title=variant)
        for head in heads:
            left = head in ("site", "tensor")
            table.add_column(head, justify="left" if left else "right", overflow="fold", no_wrap=not left)
        for row in self.where(variant=variant):
            table.add_row(*(_CELLS[head](row) for head in heads))
        return table


WIDE = 126
"""Characters that all columns of the printed table need."""

NARROW = ("site", "tensor", "bits", "ratio", "SQNR dB", "clipped", "alone", "sum")
"""Columns that are printed on a terminal that is not that wide."""

_CELLS: dict[str, Callable[[Distribution], str]] = {
    "site": lambda row: row.site,
    "tensor": lambda row: row.tensor,
    "bits": lambda row: "–" if row.bits is None else str(row.bits),
    "min": lambda row: _number(row.min),
    "max": lambda row: _number(row.max),
    "std": lambda row: _number(row.std),
    "ratio": lambda row: _number(row.channel_range_ratio),
    "SQNR dB": lambda row: _number(row.sqnr_db),
    "KL": lambda row: _number(row.kl),
    "clipped": lambda row: _share(row.clipped),
    "levels": lambda row: _share(row.levels_used),
    "dead": lambda row: str((row.dead_channels if row.dead_after is None else row.dead_after) or ""),
    "alone": lambda row: _share(row.layer_error),
    "sum": lambda row: _share(row.accumulated_error),
}
"""The printed table: ratio is that of channel ranges to the layer's, sum the accumulated error."""


def _number(x: float | None) -> str:
    return "" if x is None else f"{x:.3g}"


def _share(x: float | None) -> str:
    return "" if x is None else f"{x:.1%}"


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]) if rows else COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _shorter(value: Any) -> Any:
    """JSON values, with infinities as strings; inside lists (channels, bins) six digits are enough."""
    if isinstance(value, dict):
        return {key: _shorter(each) for key, each in value.items()}
    if isinstance(value, tuple):
        return [float(f"{each:.6g}") for each in value]
    if isinstance(value, list):
        return [_shorter(each) for each in value]
    return str(value) if value in (float("inf"), float("-inf")) else value


def _row(entry: dict[str, Any]) -> Distribution:
    bins = entry.pop("bins", None)
    for name in ("sqnr_db", "layer_error", "unrounded_error", "accumulated_error"):
        entry[name] = None if entry[name] is None else float(entry[name])
    channels: dict[str, Any] = {name: tuple(entry.pop(name, ())) for name in ("channel_min", "channel_max")}
    read = None
    if bins is not None:
        values: dict[str, Any] = {key: tuple(each) if isinstance(each, list) else each for key, each in bins.items()}
        read = Bins(**values)
    return Distribution(**entry, **channels, bins=read)
