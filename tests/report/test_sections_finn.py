"""The hardware on the page: estimates, simulation and synthesis, and their pictures."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from typing import Any

import pytest
from hardware_results import COMPRESSED, SIMULATION, SYNTHESIS, layer

from fxfactor.report.sections.finn import candidates_section, finn_section, simulation_section, synthesis_section

DATA: dict[str, Any] = {
    "board": "ZCU104", "fps": 1234.5, "latency_ms": 0.25, "bottleneck": "stem", "total": {"lut": 57600, "bram18": 3, "dsp": 0},
    "available": {"lut": 230400, "bram18": 624, "dsp": 1728}, "software": ["Transpose", "MatMul"],
    "layers": [{"site": "stem", "kind": "MVAU", "cycles": 99, "resources": {"lut": 1200, "bram18": 1.5}}, 3],
}  # fmt: skip


def rows(html: str) -> list[list[str]]:
    root = ElementTree.fromstring(f"<div>{html}</div>")
    return [[cell.text or "" for cell in row.iter("td")] for row in root.iter("tr")]


def test_facts_resources_shares_and_layers() -> None:
    html = finn_section(DATA)
    found = rows(html)
    assert ["total", "57,600", "3", "0", "–"] in found
    assert ["board has", "230,400", "624", "1,728", "–"] in found
    assert ["used", "25%", "0%", "0%", "–"] in found
    assert ["stem", "MVAU", "99", "1,200", "1.50", "–", "–"] in found
    assert "2 hardware layers" in html
    assert "<b>1,234</b>" in html or "<b>1,235</b>" in html
    assert "<b>0.25</b>" in html
    assert "Left in software: Transpose, MatMul" in html
    assert "Floating point" not in html


def test_what_is_missing_leaves_no_trace() -> None:
    assert finn_section({}) == ""
    assert finn_section(None) == ""
    html = finn_section({"fps": 7, "total": {"lut": 10}, "floating": ["Mul"]})
    assert rows(html)[1:] == [["total", "10", "–", "–", "–"]]
    assert "hardware layers" not in html
    assert "Floating point in hardware: Mul" in html


@pytest.mark.parametrize("form", ["object", "JSON"])
def test_candidates_on_the_page(form: str) -> None:
    pytest.importorskip("matplotlib")
    html = candidates_section(COMPRESSED if form == "object" else json.loads(COMPRESSED.to_json()) | {"new": 1})
    found = rows(html)
    assert "Taken: factorized 1, the best of 3 of 5 candidates that are within the board" in html
    assert [cells[0] for cells in found[1:]] == ["<factorized> 2", "factorized 1", "whole 1", "whole 2", "whole 3"]
    assert ["factorized 1", "yes", "1", "93.75%", "4,000", "3", "20", "0", "2,500", "taken"] in found
    assert ["<factorized> 2", "yes", "1", "88.00%", "3,000", "2", "10", "0", "2,500", "on the front"] in found
    assert ["whole 1", "no", "1", "93.00%", "5,000", "60", "50", "0", "2,000", "–"] in found
    assert found[4][-1] == "too large" and found[5][-1] == "no folding is as fast"
    assert candidates_section(None) == ""


@pytest.mark.parametrize("form", ["object", "JSON"])
def test_a_simulation_on_the_page(form: str) -> None:
    pytest.importorskip("matplotlib")
    html = simulation_section(SIMULATION if form == "object" else SIMULATION.to_dict())
    for words in ("768", "0 wrong", "1,000", "FINN estimates 990", "ZCU104, 200 MHz", "for 1 layers", "frame 3"):
        assert words in html, words
    assert "differs" not in html
    assert "&lt;pool&gt;" in html and "<pool>" not in html


def test_a_simulation_that_stopped_is_on_the_page_without_a_picture() -> None:
    """Nothing came out of the network: there are no frames to draw."""
    changed = {**SIMULATION.to_dict(), "cycles": 0, "is_right": False, "stopped": "nothing moved"}
    html = simulation_section(changed)
    assert 'class="bad">The hardware differs from the network, or stopped' in html
    assert "<svg" not in html


def test_the_layer_that_waits_least_sets_the_pace() -> None:
    """Parts of each layer's own time are compared; a layer that no second frame reached has no part in it."""
    assert SIMULATION.busiest.name == "MVAU_rtl_0"
    assert layer("late", "late", (0, 0), watched=0).waiting == 1.0
    assert layer("short", "short", (10, 10), watched=40).waiting > layer("long", "long", (30, 10), watched=400).waiting


@pytest.mark.parametrize("form", ["object", "JSON"])
def test_a_synthesis_on_the_page(form: str) -> None:
    pytest.importorskip("matplotlib")
    html = synthesis_section(SYNTHESIS if form == "object" else SYNTHESIS.to_dict())
    cells = [
        [cell.text or "" for cell in row.iter("td")] for row in ElementTree.fromstring(f"<div>{html}</div>").iter("tr")
    ]
    assert ["by Yosys", "1,234", "1", "2", "0", "330"] in cells
    assert [
        "our estimate",
        "1,040",
        "1",
        "2",
        "0",
        "–",
    ] in cells  # the same layers: not the pooling, which has no count
    assert ["FINN's estimate", "950", "1", "0", "0", "–"] in cells
    assert "Not counted: layers in HLS" in html


def test_nothing_simulated_or_synthesized_leaves_no_trace() -> None:
    assert simulation_section(None) == synthesis_section({}) == ""


def test_what_a_file_from_a_stranger_says_is_text() -> None:
    odd = "<script>alert(1)</script>"
    section = finn_section(
        {"board": odd, "software": [odd], "floating": [odd], "layers": [{"site": odd, "kind": odd, "cycles": 1}]}
    )
    assert "<script" not in section
    assert section.count("&lt;script&gt;") == 5
