"""What `fxfactor.finn.compare` found: a table of layers, and in words where the numbers part."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

SAME = 1e-4
"""Relative difference up to which float32 sums of another order are the same."""


@dataclass(frozen=True)
class ComparedLayer:
    """One tensor of the file beside the others'. None where there is nothing to compare with.

    site: module path. kind: ONNX operation. values: how many were compared. torch_error: file against PyTorch, root mean
    square of the difference over that of PyTorch's values. torch_levels, integer_levels: share of the activations that have
    another level in the file than in PyTorch, and in integers than in the file. torch_ties, integer_ties: share of those that
    have it because they lie in the middle between two levels.
    """

    site: str
    kind: str
    values: int
    torch_error: float | None = None
    torch_levels: float | None = None
    integer_levels: float | None = None
    torch_ties: float = 0.0
    integer_ties: float = 0.0


@dataclass(frozen=True)
class Comparison:
    """The layers in the order of the file, and in words where the numbers part first, and why."""

    file: str
    images: int
    layers: tuple[ComparedLayer, ...]
    findings: tuple[str, ...]

    def to_json(self) -> str:
        """As JSON text."""
        return json.dumps(asdict(self), indent=1)

    def __rich__(self) -> Any:
        """A table, and the findings below it."""
        from rich.console import Group

        return Group(self._table(), *(f"• {finding}" for finding in self.findings))

    def _table(self) -> Table:
        from fxfactor.rich_table import new_table

        table = new_table(title=f"{self.file}, {self.images} image{'s' if self.images > 1 else ''}")
        table.add_column("layer", overflow="fold")
        table.add_column("operation")
        for head in ("error against PyTorch", "other levels", "in integers"):
            table.add_column(head, justify="right")
        for layer in self.layers:
            shares = (layer.torch_levels, layer.integer_levels)
            parted = (layer.torch_error or 0) > SAME or any(shares)
            error = "" if layer.torch_error is None else f"{layer.torch_error:.1e}"
            told = ["" if share is None else f"{share:.3%}" if share else "0" for share in shares]
            table.add_row(layer.site, layer.kind, error, *told, style="yellow" if parted else "")
        return table
