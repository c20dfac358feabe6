"""Tables as text."""

from __future__ import annotations

from fxfactor.rich_table import as_text, new_table


def test_a_table_as_text_has_no_colours_and_the_width_asked_for() -> None:
    table = new_table(title="sizes")
    table.add_column("name")
    table.add_column("size", justify="right")
    table.add_row("[bold]a[/]", "12")
    lines = as_text(table, 40).splitlines()
    assert lines[0].startswith("sizes")
    assert [line.split() for line in lines if "a" in line.split()] == [["a", "12"]]
    assert not any("\x1b" in line or len(line) > 40 for line in lines)
    assert max(map(len, as_text("word " * 30, 25).splitlines())) <= 25
