"""FINN's estimates on the page."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from typing import Any

from fxfactor.report.sections.finn import finn_section

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
