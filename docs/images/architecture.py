"""Draws architecture.svg, the way through the house of docs/architecture.md: python docs/images/architecture.py

The floors are read from the import contract in pyproject.toml, so the picture cannot say otherwise than `make lint` checks.
"""

from __future__ import annotations

import re
from html import escape
from pathlib import Path

WIDTH, LEFT, TOP, FLOOR, HEIGHT = 900, 24, 92, 52, 38
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
COLOUR = "#2f6db5"
WORDS = {
    "cli": "the command line",
    "compression": "compress: from a network to a build",
    "report": "one HTML page",
    "planning": "search: a plan under a budget",
    "exploration": "explore: levels × bits",
    "finn": "check, estimate, prepare",
    "recovery": "round, reconstruct, finetune",
    "analysis": "cost, summary, distributions",
    "storage": "save, load, export",
    "recipe": "transform: passes, then recovery",
    "plan_passes": "a plan becomes passes",
    "passes": "graph in, graph out; one file each",
    "pipeline": "Pass, Change, Skip, Pipeline",
    "factors": "a weight becomes two",
    "plan": "what to do at each site",
    "quantization": "Brevitas layers, levels, ranges",
    "graph": "from a model to the normal form; questions and edits",
    "workers": "tasks side by side: processes, or a Ray cluster",
    "arguments": "of the right kind",
    "arrays": "array files of strangers",
    "files": "nothing half-written",
    "progress": "bars",
    "rich_table": "the look of all tables",
    "errors": "what was required, what was found",
}


def floors() -> list[list[str]]:
    """The names of each floor, the highest first."""
    text = (Path(__file__).parents[2] / "pyproject.toml").read_text(encoding="utf-8")
    listed = re.search(r"^layers = \[\n(.*?)^\]", text, re.MULTILINE | re.DOTALL)
    assert listed is not None
    return [line.split(" | ") for line in re.findall(r'"(.+)"', listed[1])]


def words(
    x: float, y: float, text: str, size: int, colour: str = INK, bold: bool = False, anchor: str = "middle"
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x:g}" y="{y:g}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{escape(text)}</text>'


def box(x: float, y: float, width: float, name: str) -> list[str]:
    middle = x + width / 2
    return [
        f'<rect x="{x:g}" y="{y:g}" width="{width:g}" height="{HEIGHT}" rx="5" fill="{COLOUR}" fill-opacity="0.12" '
        f'stroke="{COLOUR}"/>',
        words(middle, y + 16, name, 13, bold=True),
        words(middle, y + 31, WORDS[name], 11, FAINT),
    ]


def draw() -> str:
    house = floors()
    inner, gap = WIDTH - 2 * LEFT - 60, 10
    bottom = TOP + len(house) * FLOOR
    parts = [
        words(
            WIDTH / 2,
            30,
            "nn.Module → graph → Pipeline of passes → PassResult → summary, training, QONNX → FINN",
            16,
            bold=True,
        ),
        words(
            WIDTH / 2,
            54,
            "Each box is a package or a module of fxfactor. What stands higher may import what stands lower,",
            12,
            FAINT,
        ),
        words(WIDTH / 2, 71, "never the other way; boxes of one floor do not know each other.", 12, FAINT),
    ]
    for floor, names in enumerate(house):
        width = (inner - gap * (len(names) - 1)) / len(names)
        for index, name in enumerate(names):
            parts += box(LEFT + 60 + index * (width + gap), TOP + floor * FLOOR, width, name)
    x = LEFT + 22
    parts += [
        f'<path d="M {x} {TOP} V {bottom - 24} m -7 -10 l 7 10 l 7 -10" fill="none" stroke="{FAINT}" stroke-width="2"/>',
        f'<text x="{x - 10}" y="{(TOP + bottom) / 2:g}" font-size="12" text-anchor="middle" fill="{FAINT}" '
        f'transform="rotate(-90 {x - 10} {(TOP + bottom) / 2:g})">imports</text>',
    ]
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {bottom}" width="{WIDTH}" height="{bottom}" '
        f'font-family="Helvetica, Arial, sans-serif">\n  <rect width="100%" height="100%" fill="{PAPER}"/>\n  {body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
