"""Draws convolution.svg, the README's picture of a convolution before and after: python docs/images/convolution.py

Plain SVG, written as text: no drawing library is needed, and the picture can be compared line by line.
"""

from __future__ import annotations

from pathlib import Path

WIDTH, HEIGHT = 900, 440
INK, FAINT, PAPER = "#1f2933", "#7b8794", "#ffffff"
COLOURS = ("#2f6db5", "#d97a1d", "#3a8f5c", "#8e4fa8")
CHANNELS, BAR, GAP, TOP = 8, 16, 6, 108


def bar(x: float, index: int, colour: str) -> str:
    y = TOP + index * (BAR + GAP)
    return f'<rect x="{x}" y="{y}" width="34" height="{BAR}" rx="3" fill="{colour}" fill-opacity="0.85"/>'


def wire(x1: float, first: int, x2: float, second: int, colour: str) -> str:
    y1, y2 = (TOP + index * (BAR + GAP) + BAR / 2 for index in (first, second))
    return f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-opacity="0.45"/>'


def text(
    x: float, y: float, words: str, size: int = 14, anchor: str = "middle", colour: str = INK, bold: bool = False
) -> str:
    weight = ' font-weight="600"' if bold else ""
    return f'<text x="{x}" y="{y}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"{weight}>{words}</text>'


def column(x: float, colours: list[str], label: str) -> list[str]:
    bottom = TOP + CHANNELS * (BAR + GAP) + 16
    return [
        *(bar(x, index, colour) for index, colour in enumerate(colours)),
        text(x + 17, bottom, label, 13, colour=FAINT),
    ]


def between(x1: float, x2: float, groups: int, colours: list[str]) -> list[str]:
    size = CHANNELS // groups
    pairs = [(i, j) for i in range(CHANNELS) for j in range(CHANNELS) if i // size == j // size]
    return [wire(x1 + 34, i, x2, j, colours[i]) for i, j in pairs]


def kernel(x: float, y: float, size: int, colour: str) -> list[str]:
    cells = [(x + 13 * i, y + 13 * j) for i in range(size) for j in range(size)]
    return [
        f'<rect x="{a}" y="{b}" width="11" height="11" rx="2" fill="{colour}" fill-opacity="0.7"/>' for a, b in cells
    ]


def draw() -> str:
    plain, grouped = [FAINT] * CHANNELS, [COLOURS[index // 2] for index in range(CHANNELS)]
    y = TOP + CHANNELS * (BAR + GAP) + 44
    parts = [
        text(195, 34, "before: layer1.0.conv1", 18, bold=True),
        text(195, 58, "one 3×3 convolution, all channels with all", 13, colour=FAINT),
        *between(70, 286, 1, plain),
        *column(70, plain, "C in"),
        *column(286, plain, "C out"),
        *kernel(176, y - 6, 3, FAINT),
        text(195, y + 54, "weight (C, C, 3, 3)"),
        text(195, y + 76, "9 C² MACs at each pixel", 14, bold=True),
        f'<path d="M 378 195 h 42 m -10 -8 l 10 8 l -10 8" fill="none" stroke="{INK}" stroke-width="2.5"/>',
        text(655, 34, "after: layer1.0.conv1.spatial and .pointwise", 18, bold=True),
        text(655, 58, "4 groups of channels (level 2), then a 1×1 convolution that mixes them", 13, colour=FAINT),
        *between(466, 638, 4, grouped),
        *between(638, 810, 1, grouped),
        *column(466, grouped, "C in"),
        *column(638, grouped, "mid = C"),
        *column(810, plain, "C out"),
        *kernel(550, y - 6, 3, COLOURS[0]),
        *kernel(735, y + 7, 1, FAINT),
        text(569, y + 54, "spatial (C, C/4, 3, 3)"),
        text(741, y + 54, "pointwise (C, C, 1, 1)"),
        text(569, y + 76, "9 C² / 4", 14, bold=True),
        text(655, y + 76, "+", 14, bold=True),
        text(741, y + 76, "C²", 14, bold=True),
        text(655, y + 102, "= 3.25 C² MACs at each pixel", 14, bold=True),
    ]
    body = "\n  ".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" '
        f'font-family="Helvetica, Arial, sans-serif">\n  <rect width="100%" height="100%" fill="{PAPER}"/>\n  {body}\n</svg>\n'
    )


if __name__ == "__main__":
    Path(__file__).with_suffix(".svg").write_text(draw(), encoding="utf-8")
