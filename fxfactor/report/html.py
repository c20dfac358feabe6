"""Small pieces of HTML, and the one style sheet of the page."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape

CSS = """
:root { color-scheme: light dark; --ink: #1c2530; --soft: #5b6a7a; --paper: #ffffff; --card: #f3f6f9; --line: #d8e0e8;
        --accent: #1f6fb2; --bad: #b3381f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e3e9ef; --soft: #9aa9b8; --paper: #14191f; --card: #1e262f;
        --line: #34404d; --accent: #6db3ec; --bad: #ff8a6b; } }
@media print { :root { color-scheme: light; --ink: #000; --soft: #444; --paper: #fff; --card: #f4f4f4; --line: #bbb;
        --accent: #004a87; --bad: #a02000; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 74rem; padding: 1.5rem 1.25rem 4rem; background: var(--paper); color: var(--ink);
       font: 15px/1.5 system-ui, "Segoe UI", "DejaVu Sans", sans-serif; }
h1 { font-size: 1.7rem; margin: 0 0 .2rem; } h2 { font-size: 1.25rem; margin: 2.6rem 0 .6rem; padding-top: .6rem;
       border-top: 1px solid var(--line); } h3 { font-size: 1rem; margin: 1.4rem 0 .3rem; }
p { max-width: 62rem; margin: .4rem 0; } .soft { color: var(--soft); } a { color: var(--accent); }
nav { margin: .6rem 0 0; display: flex; flex-wrap: wrap; gap: .2rem 1rem; }
.cards { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .7rem; margin: 1rem 0; }
.card { background: var(--card); border-radius: .5rem; padding: .6rem .8rem; }
.card span { color: var(--soft); font-size: .85rem; }
.card b { display: block; font-size: 1.2rem; line-height: 1.3; overflow-wrap: anywhere; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .85rem; font-variant-numeric: tabular-nums; margin: .5rem 0; }
th, td { padding: .2rem .7rem .2rem 0; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--soft); font-weight: 600; vertical-align: bottom; } td.text, th.text { text-align: left; }
td.long { white-space: normal; text-align: left; min-width: 16rem; }
figure { margin: 1rem 0; } figure svg { max-width: 100%; height: auto; display: block; }
figcaption { color: var(--soft); max-width: 62rem; margin-bottom: .4rem; }
ul { padding-left: 1.2rem; max-width: 62rem; } li { margin: .25rem 0; }
details { margin: .6rem 0; } summary { cursor: pointer; color: var(--accent); }
details.part > summary { border-top: 1px solid var(--line); margin-top: 1.4rem; padding-top: .5rem; }
details.part > summary h2 { display: inline; border: 0; margin: 0; padding: 0; color: var(--accent); }
label { color: var(--soft); font-size: .85rem; display: inline-block; margin: .4rem 0; }
input, select { font: inherit; color: inherit; background: var(--card); border: 1px solid var(--line); border-radius: .3rem;
       padding: .15rem .4rem; }
th button { all: unset; cursor: pointer; } th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort=ascending] button::after { content: " ▲"; } th[aria-sort=descending] button::after { content: " ▼"; }
pre { background: var(--card); padding: .8rem; border-radius: .5rem; overflow-x: auto; font-size: .8rem; }
.bad { color: var(--bad); }
@media print { body { max-width: none; padding: 0; font-size: 11px; } nav, label { display: none; }
       figure svg { min-width: 0 !important; }
       figure, .card, tr { break-inside: avoid; }
       h2, h3, summary { break-after: avoid; }
       .part::details-content, .part details::details-content { content-visibility: visible; block-size: auto; }
       .scroll { overflow: visible; } #rows, #plan { display: none; }
       table { font-size: 9.5px; } th, td { white-space: normal; padding-right: .35rem; } }
"""


SCRIPT = """
const cells = (row, index) => row.children[index].textContent.trim();
const sizes = { k: 1e3, M: 1e6, G: 1e9, T: 1e12, KiB: 2 ** 10, MiB: 2 ** 20 };
const number = (said) => { const found = said.replaceAll(",", "").match(/^([-+]?[\\d.]+)(?: ([kMGT]|[KM]iB)$)?/);
  return found ? parseFloat(found[1]) * (sizes[found[2]] || 1) : NaN; };
function sort(head, index) {
  const body = head.closest("table").tBodies[0], down = head.getAttribute("aria-sort") !== "descending";
  for (const other of head.parentElement.children) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", down ? "descending" : "ascending");
  const order = (a, b) => { const [x, y] = [cells(a, index), cells(b, index)], [m, n] = [number(x), number(y)];
    return isNaN(m) || isNaN(n) ? isNaN(m) - isNaN(n) || y.localeCompare(x) : n - m; };
  body.append(...[...body.rows].sort((a, b) => (down ? 1 : -1) * order(a, b)));
}
for (const table of document.querySelectorAll("table")) {
  const rows = [...table.tBodies[0].rows];
  if (rows.length < 2) continue;
  [...table.tHead.rows[0].children].forEach((head, index) => {
    if (!head.textContent) return;
    const button = document.createElement("button");
    button.append(...head.childNodes); head.append(button);
    button.addEventListener("click", () => sort(head, index)); });
  if (rows.length < 9) continue;
  const label = document.createElement("label"), input = document.createElement("input");
  input.type = "search"; label.append("only rows with ", input);
  input.addEventListener("input", () => { for (const row of rows)
    row.hidden = !row.textContent.toLowerCase().includes(input.value.toLowerCase()); });
  table.closest(".scroll").before(label);
}
const parts = [...document.querySelectorAll("[data-network]")], names = [...new Set(parts.map((part) => part.dataset.network))];
if (names.length > 1) {
  const label = document.createElement("label"), chooser = document.createElement("select");
  for (const name of ["all networks", ...names]) chooser.add(new Option(name, name === "all networks" ? "" : name));
  chooser.addEventListener("change", () => { for (const part of parts) {
    part.hidden = chooser.value !== "" && part.dataset.network !== chooser.value;
    if (chooser.value !== "" && part.tagName === "DETAILS") part.open = !part.hidden; } });
  label.append("show ", chooser); document.querySelector("nav").after(label);
}
const unfold = () => { const at = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const fold = at && at.querySelector(":scope > details.part"); if (fold) fold.open = true; };
addEventListener("hashchange", unfold); unfold();
addEventListener("beforeprint", () => { for (const fold of document.querySelectorAll("details.part")) fold.open = true; });
"""
"""Sorting, filtering and choosing; without it the page shows the same, as it was written."""

OPEN = ("candidates", "findings", "costs", "finn")
"""Sections that are not folded: what fits on the first screen or two. The others are printed whole, but all rows and plans."""


def text(value: object) -> str:
    """Escaped, and an en dash where there is nothing."""
    return "–" if value is None or value == "" else escape(str(value))


def table(heads: Sequence[str], rows: Iterable[Sequence[object]], left: int = 1, long: Sequence[int] = ()) -> str:
    """A table; the first `left` columns are text, those in `long` may wrap, the others are numbers."""
    classes = ["long" if index in long else "text" if index < left else "" for index in range(len(heads))]
    head = "".join(
        f'<th class="{"text" if kind else ""}">{escape(each)}</th>' if each else "<td></td>"
        for kind, each in zip(classes, heads, strict=True)
    )
    body = "".join(
        "<tr>"
        + "".join(f'<td class="{kind}">{text(each)}</td>' for kind, each in zip(classes, row, strict=True))
        + "</tr>"
        for row in rows
    )
    return f'<div class="scroll" tabindex="0"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'.replace(
        ' class=""', ""
    )


def cards(facts: Iterable[tuple[str, str, str]]) -> str:
    """(what, number, remark) as a row of cards."""
    return '<div class="cards">' + "".join(
        f'<div class="card"><span>{escape(what)}</span><b>{escape(number)}</b><span>{escape(remark)}</span></div>'
        for what, number, remark in facts
    ) + "</div>"  # fmt: skip


def figure(svg: str, caption: str) -> str:
    """A picture under what it shows."""
    svg = svg.replace("<svg ", f'<svg aria-label="{escape(caption)}" ', 1)
    return f'<figure><figcaption>{escape(caption)}</figcaption><div class="scroll" tabindex="0">{svg}</div></figure>'


def folded(title: str, content: str, network: str | None = None) -> str:
    """Content that opens on a click; in folded sections it is printed all the same. network: whose it is, for the chooser."""
    whose = "" if network is None else f' data-network="{escape(network)}"'
    return f"<details{whose}><summary>{escape(title)}</summary>{content}</details>"


def document(title: str, sections: Sequence[tuple[str, str, str]], head: str) -> str:
    """The page: (id, heading, content) one after the other below `head`; empty contents are left out."""
    there = [section for section in sections if section[2]]
    links = "".join(f'<a href="#{name}">{escape(heading)}</a>' for name, heading, _ in there)
    body = "".join(_section(*section) for section in there)
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{CSS}</style></head>\n"
        f"<body><header><h1>{escape(title)}</h1>{head}<nav>{links}</nav></header>\n<main>{body}</main><script>{SCRIPT}</script></body></html>\n"
    )


def _section(name: str, heading: str, content: str) -> str:
    title = f"<h2>{escape(heading)}</h2>"
    shown = (
        f"{title}{content}" if name in OPEN else f'<details class="part"><summary>{title}</summary>{content}</details>'
    )
    return f'<section id="{name}">{shown}</section>'
