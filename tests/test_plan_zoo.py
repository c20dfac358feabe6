"""Every plan of the zoo loads, fits its network, and has its row; the page is what the rows say."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

import fxfactor

ROOT = Path(__file__).parent.parent
ROWS: list[dict[str, Any]] = json.loads((ROOT / "zoo" / "rows.json").read_text())


@pytest.fixture(scope="module")
def benchmarks() -> dict[str, ModuleType]:
    found = {}
    for name in ("data", "plan_zoo"):
        spec = importlib.util.spec_from_file_location(f"benchmarks_{name}", ROOT / "benchmarks" / f"{name}.py")
        assert spec is not None and spec.loader is not None
        found[name] = importlib.util.module_from_spec(spec)
        sys.modules[spec.name] = found[name]  # dataclasses look there
        spec.loader.exec_module(found[name])
    return found


def test_every_plan_has_its_row_and_every_row_its_plan() -> None:
    plans = {path.stem for path in (ROOT / "zoo").glob("*.json")} - {"rows"}
    assert plans == {row["name"] for row in ROWS}
    assert len(plans) >= 3


def test_the_page_is_what_the_rows_say(benchmarks: dict[str, ModuleType]) -> None:
    assert benchmarks["plan_zoo"].page(ROWS) == (ROOT / "docs" / "zoo.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_plans_fit_their_networks_and_are_what_their_rows_say(
    row: dict[str, Any], benchmarks: dict[str, ModuleType]
) -> None:
    plan = fxfactor.Plan.load(ROOT / "zoo" / f"{row['name']}.json")
    blocks = {"ResNet-20": 3, "ResNet-32": 5}[row["network"]]
    network = fxfactor.transform(
        benchmarks["data"].CifarResNet(blocks).eval(), plan=plan, example_inputs=torch.zeros(1, 3, 32, 32)
    )
    changes = [each for each in fxfactor.summary(network, show=False).rows if each.after]
    assert (len(changes), len(plan.layers)) == (row["split"], row["layers"])
    weight_bits = [layer.weight_bits for layer in plan.layers.values()]
    assert sum(weight_bits) / len(weight_bits) == pytest.approx(row["weight_bits"])
    assert row["wrong"] == 0 and row["words"] > 1e6
