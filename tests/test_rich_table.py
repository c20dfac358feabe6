"""Tables as text."""

from __future__ import annotations

from fxfactor.rich_table import amount, as_text, bytes_as_text, new_table, unit_for


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


def test_units_fit_the_numbers() -> None:
    assert [amount(number) for number in (1_182_000_000, 2.5e13, 43_100, 999, 0)] == [
        "1.18 G",
        "25.0 T",
        "43.1 k",
        "999 ",
        "0 ",
    ]
    assert unit_for(1290.0) == (1e3, "k")
    assert [bytes_as_text(number) for number in (500, 2048, 3 * 2**20)] == ["500 B", "2.0 KiB", "3.00 MiB"]
