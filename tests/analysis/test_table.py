"""The table of distributions: its files, columns and looks."""

from __future__ import annotations

import csv
import io
import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor import PreconditionError
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import COLUMNS, Distribution, Distributions
from fxfactor.rich_table import as_text


def images(count: int = 24, seed: int = 1) -> Tensor:
    return torch.randn(count, 3, 12, 14, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="module")
def model() -> nn.Module:
    torch.manual_seed(0)
    return randomized(ResidualNet(16))


@pytest.fixture(scope="module")
def qmodel(model: nn.Module) -> GraphModule:
    made = fxfactor.transform(model, level=2, bits=3, example_inputs=images(1))
    return fxfactor.calibrate(made, [images(8, seed=2)])


@pytest.fixture(scope="module")
def table(model: nn.Module, qmodel: GraphModule) -> Distributions:
    return distributions(model, qmodel, images().split(10))


def one(table: Distributions, **wanted: Any) -> Distribution:
    (row,) = table.where(**wanted)
    return row


def test_a_table_survives_its_files(table: Distributions, tmp_path: Path) -> None:
    table.to_json(tmp_path / "table.json")
    again = Distributions.from_json(tmp_path / "table.json")
    assert again.to_dicts() == table.to_dicts()
    assert again.images == 24
    table.to_csv(tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == len(table)
    assert [float(row["max"]) for row in rows] == [row.max for row in table]
    table.channels_to_csv(tmp_path / "channels.csv")
    with open(tmp_path / "channels.csv", newline="") as file:
        assert sum(1 for _ in file) == 1 + sum(row.channels for row in table)


def test_infinities_survive_json(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU()).eval()
    same = fxfactor.capture(model, images(1))
    table = distributions(model, same, [images()])
    table.to_json(tmp_path / "table.json")
    json.loads((tmp_path / "table.json").read_text(), parse_constant=lambda name: pytest.fail(name))
    assert (
        one(Distributions.from_json(tmp_path / "table.json"), variant="transformed", tensor="output").sqnr_db
        == math.inf
    )


def test_pandas_takes_the_rows(table: Distributions) -> None:
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas()
    assert isinstance(frame, pandas.DataFrame)
    assert list(frame.columns) == list(COLUMNS)
    assert len(frame) == len(table)


def test_rich_prints_a_table_per_variant(table: Distributions) -> None:
    from rich.console import Console

    console = Console(width=200, record=True, file=io.StringIO())
    console.print(table)
    text = console.export_text()
    assert "block.conv2" in text
    assert "24 images" in text


def test_an_unknown_column_is_refused_with_the_known_ones(table: Distributions) -> None:
    with pytest.raises(PreconditionError, match="no column 'layer' in the table; known are variant, site"):
        table.where(layer="x")


@pytest.mark.parametrize(
    "text", ["", "[]", '{"schema_version": 1}', '{"schema_version": 1, "images": 1, "rows": [{}]}']
)
def test_another_file_is_not_a_table(tmp_path: Path, text: str) -> None:
    path = tmp_path / "table.json"
    path.write_text(text)
    with pytest.raises(PreconditionError, match=r"table\.json"):
        Distributions.from_json(path)


def test_columns_variants_and_channels(table: Distributions) -> None:
    assert "original" not in table.variants
    assert len(table.channels()) == sum(row.channels for row in table)
    channel = table.channels()[1]
    first = table.rows[0]
    assert (channel["variant"], channel["site"], channel["channel"]) == (first.variant, first.site, 1)
    assert channel["range_ratio"] == pytest.approx((channel["max"] - channel["min"]) / (first.max - first.min))
    assert list(table.to_dicts()[0]) == list(COLUMNS)


def test_a_printed_row_has_its_numbers(table: Distributions) -> None:
    wide, narrow = (as_text(table, width) for width in (130, 100))
    row = next(row for row in table if row.variant != "original" and row.tensor == "output")
    assert f"{row.layer_error:.1%}" in wide and f"{row.accumulated_error:.1%}" in wide
    assert f"{row.max:.3g}" in wide
    assert "levels" in wide and "levels" not in narrow
    assert "columns from 126" in narrow and "columns from" not in wide
    assert f"{table.images} images" in narrow
