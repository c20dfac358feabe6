"""What a synthesis says: what each layer takes by Yosys, beside the estimates of it."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxfactor.finn.boards import Resources
from fxfactor.finn.synthesis.cells import Area
from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

SCHEMA_VERSION = 1
"""Of `Synthesis.to_json`."""

CAVEAT = (
    "Counted by Yosys before placement: it packs less tightly than Vivado. Ours and FINN's are estimates of the same layers. "
    "Not counted: layers in HLS, FIFOs, the shell."
)
_NO_AREA, _NO_RESOURCES = Area(0, 0, 0, 0, 0, 0), Resources(0, 0, 0, 0)
Sum = tuple[Area, Resources, Resources]
"""By Yosys, by our estimate, by FINN's."""


@dataclass(frozen=True)
class SynthesizedLayer:
    """A hardware layer: FINN's `name` and `kind` for it, its `site` in the network, and what it takes by each count.

    `yosys` is None for a layer in HLS. `ours` and `finn` are the estimates of the same layer, as in `fxfactor.finn.estimate`.
    """

    name: str
    kind: str
    site: str
    yosys: Area | None
    ours: Resources
    finn: Resources


@dataclass(frozen=True)
class Synthesis:
    """What the RTL of a network takes; print it with rich, or read the fields.

    `yosys` is the version that counted; `counted` layers were counted for this, the others were in the cache or equal to one.
    """

    board: str
    part: str
    clock_ns: float
    yosys: str
    layers: tuple[SynthesizedLayer, ...]
    counted: int
    seconds: float

    @property
    def total(self) -> Area:
        """The sum over all layers in RTL."""
        return self._sum(self.layers)[0]

    @property
    def ours(self) -> Resources:
        """Our estimate of the same layers."""
        return self._sum(self.layers)[1]

    @property
    def finn(self) -> Resources:
        """FINN's estimate of the same layers."""
        return self._sum(self.layers)[2]

    @property
    def not_counted(self) -> tuple[str, ...]:
        """Layers that FINN has in HLS only."""
        return tuple(layer.name for layer in self.layers if layer.yosys is None)

    def by_site(self) -> dict[str, Sum]:
        """Site -> the sums over its layers in RTL."""
        return self._by(lambda layer: layer.site)

    def by_kind(self) -> dict[str, Sum]:
        """Kind of layer -> the sums over the layers in RTL of that kind."""
        return self._by(lambda layer: layer.kind)

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them; numbers, texts and lists only."""
        sums = {"total": asdict(self.total), "ours": asdict(self.ours), "finn": asdict(self.finn)}
        not_counted = {"not_counted": self.not_counted}
        return {"schema_version": SCHEMA_VERSION, "caveat": CAVEAT, **asdict(self), **sums, **not_counted}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def table(self) -> Table:
        """One row per site and one for the total: by Yosys, in brackets our estimate and FINN's."""
        table = new_table(title=f"{self.board} ({self.part}), by Yosys {self.yosys} (ours, FINN's)", caption=CAVEAT)
        table.add_column("site")
        for name in ("LUT", "BRAM18", "DSP", "URAM", "FF"):
            table.add_column(name, justify="right")
        for site, found in self.by_site().items():
            table.add_row(site, *_cells(found))
        table.add_section()
        table.add_row("total", *_cells(self._sum(self.layers)), style="bold")
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, and what is not in it."""
        yield self.table()
        if self.not_counted:
            yield f"Not counted, since FINN has them in HLS only: {', '.join(self.not_counted)}."

    def _by(self, name: Callable[[SynthesizedLayer], str]) -> dict[str, Sum]:
        counted = [layer for layer in self.layers if layer.yosys is not None]
        names = dict.fromkeys(name(layer) for layer in counted)
        return {each: self._sum(layer for layer in counted if name(layer) == each) for each in names}

    @staticmethod
    def _sum(layers: Iterable[SynthesizedLayer]) -> Sum:
        counted = [layer for layer in layers if layer.yosys is not None]
        return (
            sum((layer.yosys for layer in counted if layer.yosys is not None), _NO_AREA),
            sum((layer.ours for layer in counted), _NO_RESOURCES),
            sum((layer.finn for layer in counted), _NO_RESOURCES),
        )


def _cells(found: Sum) -> tuple[str, ...]:
    area, ours, finn = found
    names = ("lut", "bram18", "dsp", "uram")
    both = [f"{getattr(area, name):,} ({getattr(ours, name):,}, {getattr(finn, name):,})" for name in names]
    return (*both, f"{area.ff:,}")
