"""Pieces of HTML: what is text stays text."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

from fxfactor.report.html import cards, document, figure, folded, table, text

ODD = '<b>"&'


def test_everything_is_escaped() -> None:
    pieces = [
        table((ODD, "n"), [(ODD, 1)]), cards([(ODD, ODD, ODD)]), figure("<svg></svg>", ODD), folded(ODD, "<p></p>"),
        document(ODD, [("one", ODD, "<p></p>")], ""), text(ODD),
    ]  # fmt: skip
    for piece in pieces:
        assert '<b>"' not in piece
        assert "&lt;b&gt;" in piece


def test_a_table_has_text_left_and_numbers_right() -> None:
    root = ElementTree.fromstring(
        table(("site", "kind", "why", "n"), [("a", "b", None, 3), ("c", "", "d", 0)], left=2, long=(2,))
    )
    heads = [(cell.get("class"), cell.text) for cell in root.iter("th")]
    assert heads == [("text", "site"), ("text", "kind"), ("text", "why"), (None, "n")]
    cells = [(cell.get("class"), cell.text) for cell in root.iter("td")]
    assert cells[:4] == [("text", "a"), ("text", "b"), ("long", "–"), (None, "3")]
    assert cells[4:] == [("text", "c"), ("text", "–"), ("long", "d"), (None, "0")]


def test_a_document_links_to_the_sections_that_have_something() -> None:
    page = document(
        "title", [("one", "One", "<p>1</p>"), ("two", "Two", ""), ("three", "Three", "<p>3</p>")], "<p>head</p>"
    )
    assert page.startswith("<!doctype html>")
    assert '<nav><a href="#one">One</a><a href="#three">Three</a></nav>' in page
    opening = '<section id="one"><details class="part"><summary><h2>One</h2></summary><p>1</p></details>'
    assert page.index("head</p>") < page.index(opening) < page.index('id="three"')
    assert '<section id="costs"><h2>Costs</h2><p>1</p></section>' in document(
        "title", [("costs", "Costs", "<p>1</p>")], ""
    )
    assert "Two" not in page


def test_a_picture_says_what_it_shows_and_a_fold_whose_it_is() -> None:
    assert figure("<svg a><svg b>", ODD).count('<svg aria-label="&lt;b&gt;&quot;&amp;" a>') == 1
    assert folded("plan", "<p></p>", ODD).startswith('<details data-network="&lt;b&gt;&quot;&amp;"><summary>')


def test_an_empty_head_is_no_head() -> None:
    assert "<tr><td></td><th>n</th></tr>" in table(("", "n"), [("a", 1)])
