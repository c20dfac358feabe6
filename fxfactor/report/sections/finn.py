"""The hardware on the page: candidates, estimates, a simulation, counts by Yosys, as objects or as their JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, is_dataclass
from html import escape
from typing import Any, cast

from fxfactor.finn.result import CAVEAT
from fxfactor.finn.synthesis.result import CAVEAT as SYNTHESIS_CAVEAT
from fxfactor.report import hardware_plots
from fxfactor.report.html import cards, figure, folded, table
from fxfactor.report.style import to_svg

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
            parts.append(f'<p class="bad">{what}: {escape(", ".join(map(str, data[key])))}</p>')
    layers = (
        [_as_mapping(each) for each in data.get("layers", ())] if isinstance(data.get("layers"), list | tuple) else []
    )
    if any(layers):
        parts.append(folded(f"{len(layers)} hardware layers", _layer_table([each for each in layers if each])))
    return "".join(parts)


def candidates_section(compressed: Any) -> str:
    """What a `fxfactor.Compressed`, or its JSON, has of candidates: what was taken and why, and all beside it."""
    data = _as_mapping(compressed)
    if not data:
        return ""
    best, rows = data["best"], data["candidates"]
    fitting = sum(row["fits"] and row["metric"] is not None for row in rows)
    facts = [
        ("metric", f"{best['metric']:.2%}", f"{data['original']:.2%} before"),
        ("LUT", _number(best["lut"]), "estimated"),
        ("BRAM18", _number(best["bram18"]), "estimated"),
        ("DSP", _number(best["dsp"]), "estimated"),
        ("frames/s", _number(best["fps"]), data["target"]),
    ]
    why = _why(data, f"of {fitting} of {len(rows)} candidates that are within the board")
    heads = ("candidate", "factorized", "epochs", "metric", *(_KNOWN[name] for name in _RESOURCES), "frames/s", "")
    cells = [_candidate(row) for row in rows]
    svg = to_svg(hardware_plots.candidates(data), "candidates")
    caption = "Each candidate at its best stage of training; hollow: more than the board has."
    return "".join([
        cards(facts), f"<p>{escape(why)}</p>", figure(svg, caption),
        folded(f"{len(rows)} candidates", table(heads, cells, left=2, long=(len(heads) - 1,))),
    ])  # fmt: skip


def _why(data: Mapping[str, Any], among: str) -> str:
    """What was taken, and what it is the best in."""
    best, tolerance = data["best"], data.get("tolerance", 0.0)
    least = "the fastest" if best.get("by_speed", False) else "the one that takes the least"
    if tolerance:
        return f"Taken: {best['name']}, {least} {among} and at most {tolerance:g} below the best metric."
    return f"Taken: {best['name']}, the best {among}; of equals {least}."


def _candidate(row: Mapping[str, Any]) -> tuple[Any, ...]:
    metric = "" if row["metric"] is None else f"{row['metric']:.2%}"
    costs = (_number(row[name]) for name in (*_RESOURCES, "fps"))
    return row["name"], "no" if row["whole"] else "yes", row["epochs"], metric, *costs, row["remark"]


def simulation_section(simulation: Any) -> str:
    """What a `fxfactor.finn.Simulation`, or its JSON, showed: whether words were right, the speed, where the pipeline waits."""
    data = _as_mapping(simulation)
    if not data:
        return ""
    wrong = sum(stream["wrong"] for stream in data["streams"])
    facts = [
        ("words compared", _number(data["words"]), f"{wrong:,} wrong"),
        ("cycles a frame", _number(data["cycles"]), f"FINN estimates {data['estimated_cycles']:,}"),
        ("frames/s", _number(data["fps"]), f"{data['board']}, {1000 / data['clock_ns']:.0f} MHz"),
        ("latency, ms", _number(data["latency_ms"]), "of an empty pipeline"),
    ]
    parts = [cards(facts)]
    if not data["is_right"]:
        parts.append(
            '<p class="bad">The hardware differs from the network, or stopped: see the simulation\'s own output.</p>'
        )
    if data["cycles"]:
        svg = to_svg(hardware_plots.pipeline(data), "pipeline")
        parts.append(figure(svg, "When the words of each frame leave each site, in the order of the pipeline. Bars that "
                            "touch their like in the next frame have no time to spare: there is the bottleneck."))  # fmt: skip
    if data["models"]:
        parts.append(f'<p class="soft">Models stood for {len(data["models"])} layers that FINN has in HLS only.</p>')
    return "".join(parts)


def synthesis_section(synthesis: Any) -> str:
    """What a `fxfactor.finn.Synthesis`, or its JSON, counted, beside the estimates of the same layers."""
    data = _as_mapping(synthesis)
    if not data:
        return ""
    names = (*_RESOURCES, "ff")
    rows = [(what, *(_number(data[key].get(name)) for name in names))
            for what, key in (("by Yosys", "total"), ("our estimate", "ours"), ("FINN's estimate", "finn"))]  # fmt: skip
    svg = to_svg(hardware_plots.areas(data), "areas")
    return "".join([
        f'<p class="soft">{SYNTHESIS_CAVEAT}</p>',
        table(("", *(_KNOWN[name] for name in _RESOURCES), "flip-flops"), rows),
        figure(svg, "Look-up tables of the layers in RTL, by site."),
    ])  # fmt: skip


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
    if callable(to_dict := getattr(value, "to_dict", None)):
        return cast(Mapping[str, Any], to_dict())
    if is_dataclass(value) and not isinstance(value, type):
        return asdict(value)
    return value if isinstance(value, Mapping) else {}


def _number(value: Any) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        return f"{value:,.0f}" if value == int(value) or value >= 100 else f"{value:,.2f}"
    return "" if value is None else str(value)


def _share(used: Any, there: Any) -> str:
    return f"{used / there:.0%}" if isinstance(used, int | float) and there else ""
