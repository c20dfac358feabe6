"""The sections of the page about networks: figures as the summary and the plan have them."""

from __future__ import annotations

import html
import json
import xml.etree.ElementTree as ElementTree

import pytest

pytest.importorskip("matplotlib")

from report_helpers import images, make_net

import fxfactor
from fxfactor.report.sections import network
from fxfactor.rich_table import amount, bytes_as_text


def variants(*levels: int) -> dict[str, fxfactor.graph.GraphModule]:  # type: ignore[name-defined]
    return {f"level {each}": fxfactor.transform(make_net(), each, 4, example_inputs=images()[:1]) for each in levels}


def rows(piece: str) -> list[list[str]]:
    root = ElementTree.fromstring(f"<div>{piece}</div>")
    return [[cell.text or "" for cell in row.iter("td")] for row in root.iter("tr") if row.find("td") is not None]


def test_the_cards_are_those_of_the_first_network() -> None:
    both = variants(2, 0)
    first, total = fxfactor.cost(both["level 2"]), fxfactor.summary(both["level 2"], show=False)
    piece = network.head(both, {"level 2": 0.5, "original": 0.75, "level 0": None})
    assert "2 networks side by side, input 3×12×12. The cards are those of “level 2”, the first." in piece
    for number in (
        amount(first.macs),
        amount(first.bops),
        bytes_as_text(first.total_weight_bits / 8),
    ):
        assert f"<b>{number}</b>" in piece
    assert f"{first.macs / total.macs_before:.0%} of" in piece
    assert f"{first.bops / (total.macs_before * 1024):.1%} of the original" in piece
    assert "<b>1 of 3</b>" in piece
    assert "<b>50.0%</b><span>original 75.0%</span>" in piece
    alone = network.head(variants(0), {})
    assert "one network, input" in alone
    assert "accuracy" not in alone


def test_costs_have_a_row_for_each_network_and_the_original() -> None:
    both = variants(2, 0)
    found = rows(network.costs(both, {"level 2": 0.5, "original": 0.75}))
    cost = fxfactor.cost(both["level 2"])
    assert found[0][:4] == ["level 2", amount(cost.macs), amount(cost.bops), f"{cost.parameters:,}"]
    assert found[0][5:] == ["50.0%", "-25.0"]
    assert found[1][5:] == ["–", "–"]
    assert found[2] == ["original", "–", "–", "–", "–", "75.0%", "–"]
    assert len(rows(network.costs(both, {}))) == 2
    assert "<figure>" not in network.costs(both, {"level 2": 0.5, "original": 0.75})
    assert network.costs(both, {"level 2": 0.5, "level 0": 0.75}).count("<figure>") == 1


def test_layers_skips_and_plans_are_those_of_the_networks() -> None:
    one = variants(2)
    table = fxfactor.summary(one["level 2"], show=False).rows
    found = rows(network.layer_tables(one))
    assert [row[0] for row in found] == [row.site for row in table]
    assert [row[2] for row in found] == [row.after or row.note or "–" for row in table]
    assert [row[5] for row in found] == [f"{row.macs_before / 1e6:,.3f}" for row in table]
    assert "details" not in network.layer_tables(one)
    assert network.layer_tables(variants(0, 2)).count("<summary>") == 2
    reasons = dict(rows(network.skips(one)))
    assert "stem" in reasons["the first convolution"]
    plan = network.plans(one)
    assert "<summary>plan of level 2</summary>" in plan
    text = html.unescape(plan[plan.index('<pre tabindex="0">') + 18 : plan.index("</pre>")])
    assert fxfactor.Plan.from_json(text) == fxfactor.Plan.of(one["level 2"])
    assert json.loads(text)["layers"]["conv"]["groups"] == 4
