"""FINN's estimates on the page, from whatever form they are given in."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from typing import Any

from fxfactor.finn.result import CAVEAT, Estimate
from fxfactor.report.html import cards, folded, table

_RESOURCES = ("lut", "bram18", "dsp", "uram")
_KNOWN = {"fps": "frames/s", "latency_ms": "latency, ms", "bottleneck": "bottleneck",
          "lut": "LUT", "bram18": "BRAM18", "dsp": "DSP", "uram": "URAM", "board": "board", "part": "part",
          "clock_ns": "clock, ns", "target_fps": "wanted frames/s"}  # fmt: skip


def finn_section(estimate: Any) -> str:
    """Facts, resources and layers of an Estimate, of its JSON (`Estimate.to_dict`), or of a mapping with some of its fields."""
    data = _as_mapping(estimate)
    if not data:
        return ""
    facts = [(_KNOWN[key], _number(data[key]), "") for key in _KNOWN if isinstance(data.get(key), str | int | float)]
    parts = [f'<p class="soft">{CAVEAT}</p>', cards(facts)]
    total, theirs, available = (_as_mapping(data.get(key)) for key in ("total", "finn_total", "available"))
    if total:
        rows = [("total", *(_number(total.get(name)) for name in _RESOURCES))]
        if theirs:
            rows.append(("FINN's own estimate", *(_number(theirs.get(name)) for name in _RESOURCES)))
        if available:
            rows.append(("board has", *(_number(available.get(name)) for name in _RESOURCES)))
            rows.append(("used", *(_share(total.get(name), available.get(name)) for name in _RESOURCES)))
        parts.append(table(("", *(_KNOWN[name] for name in _RESOURCES)), rows))
    for key, what in (("software", "Left in software"), ("floating", "Floating point in hardware")):
        if data.get(key):
            parts.append(f'<p class="bad">{what}: {", ".join(map(str, data[key]))}</p>')
    layers = (
        [_as_mapping(each) for each in data.get("layers", ())] if isinstance(data.get("layers"), list | tuple) else []
    )
    if any(layers):
        parts.append(folded(f"{len(layers)} hardware layers", _layer_table([each for each in layers if each])))
    return "".join(parts)


def _layer_table(layers: list[Mapping[str, Any]]) -> str:
    both, rows = any("finn" in each for each in layers), []
    for each in layers:
        ours, theirs = _as_mapping(each.get("resources")) or each, _as_mapping(each.get("finn"))
        rows.append((each.get("site"), each.get("kind"), _number(each.get("cycles")),
                     *(_number(ours.get(name)) for name in _RESOURCES),
                     *(_number(theirs.get(name)) for name in _RESOURCES if both)))  # fmt: skip
    names = [_KNOWN[name] for name in _RESOURCES]
    return table(("site", "kind", "cycles", *names, *(f"FINN's {name}" for name in names if both)), rows, left=2)


def _as_mapping(value: Any) -> Mapping[str, Any]:
    if isinstance(value, Estimate):
        return value.to_dict()
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.2f}"
    return "" if value is None else str(value)


def _share(used: Any, there: Any) -> str:
    return f"{used / there:.0%}" if isinstance(used, int | float) and there else ""
