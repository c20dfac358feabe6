"""What an estimate says: resources, cycles and frames per second, per layer and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxfactor.finn.boards import Resources
from fxfactor.finn.integer.forms import Form
from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

SCHEMA_VERSION = 1
"""Of `Estimate.to_json`."""

CAVEAT = (
    "FINN's analytic estimates, before synthesis: lower bounds. FIFOs, width converters and the shell are not in them, "
    "control logic is not, and look-up tables of DSP layers count as 0."
)


@dataclass(frozen=True)
class HardwareLayer:
    """One hardware layer: FINN's `name` for it, its `kind`, and the module or node of the network it belongs to (`site`).

    `cycles` are per frame.
    """

    name: str
    kind: str
    site: str
    cycles: int
    resources: Resources


@dataclass(frozen=True)
class Step:
    """One step of the run. `seconds` without the check, which executed `images` after it and took `check_seconds`.

    `difference` is the largest difference to PyTorch divided by the largest output, `same_argmax` the part of the images
    with the same argmax, both in the first step only; after it integers are compared and have to be equal.
    """

    name: str
    seconds: float
    images: int = 0
    check_seconds: float = 0.0
    difference: float | None = None
    same_argmax: float | None = None


@dataclass(frozen=True)
class GroupedForm:
    """A grouped convolution, the form that it took ("block", "split" or "branches"), and why."""

    site: str
    form: Form
    why: str


@dataclass(frozen=True)
class Estimate:
    """What FINN estimates for one network on one board; print it with rich, or read the fields.

    `available` is what the board has, None for a part that is not in `fxfactor.finn.boards`. `software` names what FINN
    left out of the hardware, `floating` the hardware layers that touch floating point: both should be empty. `grouped` says
    in which form each grouped convolution went, and why.
    """

    board: str
    part: str
    clock_ns: float
    target_fps: int
    layers: tuple[HardwareLayer, ...]
    total: Resources
    available: Resources | None
    fps: float
    latency_ms: float
    software: tuple[str, ...]
    floating: tuple[str, ...]
    steps: tuple[Step, ...]
    seconds: float
    grouped: tuple[GroupedForm, ...] = ()

    @property
    def bottleneck(self) -> HardwareLayer:
        """The layer that takes the most cycles and so sets the frames per second."""
        return max(self.layers, key=lambda layer: layer.cycles)

    @property
    def shares(self) -> dict[str, float] | None:
        """Used part of what the board has (1.0 is all of it); None where that is not known."""
        if self.available is None:
            return None
        names = ("lut", "bram18", "dsp", "uram")
        pairs = {name: (getattr(self.total, name), getattr(self.available, name)) for name in names}
        return {name: used / there if there else float(used > 0) for name, (used, there) in pairs.items()}

    @property
    def fits(self) -> bool | None:
        """Whether the estimate stays below what the board has; True is no promise, since it is a lower bound."""
        return None if self.shares is None else all(share <= 1 for share in self.shares.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields under their own names, with `bottleneck` (a site), `shares` and `fits`; numbers, texts and lists only."""
        derived = {"bottleneck": self.bottleneck.site, "shares": self.shares, "fits": self.fits}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), **derived}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def by_site(self) -> dict[str, tuple[Resources, int]]:
        """Site -> the sum of its hardware layers' resources, and the most cycles among them."""
        sums: dict[str, tuple[Resources, int]] = {}
        for layer in self.layers:
            resources, cycles = sums.get(layer.site, (Resources(0, 0, 0, 0), 0))
            sums[layer.site] = (resources + layer.resources, max(cycles, layer.cycles))
        return sums

    def table(self) -> Table:
        """One row per site, a row for the total, and one for what the board has."""
        title = f"{self.board} ({self.part}), {1000 / self.clock_ns:.0f} MHz, target {self.target_fps} frames/s"
        table = new_table(title=title, caption=CAVEAT)
        for name in ("site", "LUT", "BRAM18", "DSP", "URAM", "cycles", "frames/s"):
            table.add_column(name, justify="left" if name == "site" else "right")
        slowest = self.bottleneck.site
        for site, (resources, cycles) in self.by_site().items():
            fps = f"{1e9 / self.clock_ns / cycles:,.0f}" if cycles else ""
            table.add_row(site, *_cells(resources), f"{cycles:,}", fps, style="bold" if site == slowest else "")
        table.add_section()
        table.add_row("total", *_cells(self.total), f"{self.bottleneck.cycles:,}", f"{self.fps:,.0f}", style="bold")
        if self.available is not None and self.shares is not None:
            table.add_row("board has", *_cells(self.available), "", "")
            table.add_row("used", *(f"{share:.0%}" for share in self.shares.values()), "", "")
        return table

    def forms(self) -> Table:
        """One row per grouped convolution: its form, and what each form costs."""
        table = new_table(title="Grouped convolutions")
        for name in ("site", "form", "why"):
            table.add_column(name)
        for layer in self.grouped:
            table.add_row(layer.site, layer.form, layer.why)
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, then what was checked and what is left to see to."""
        yield self.table()
        yield f"Bottleneck: {self.bottleneck.site} ({self.bottleneck.kind}). Latency at most {self.latency_ms:.2f} ms."
        if self.software:
            yield f"[red]Left in software: {', '.join(self.software)}[/red]"
        if self.floating:
            yield f"[red]Floating point in hardware: {', '.join(self.floating)}[/red]"
        if self.grouped:
            yield self.forms()
        yield self._checked()

    def _checked(self) -> str:
        compared = next((step for step in self.steps if step.difference is not None), None)
        executed = [step for step in self.steps if step.images and step is not compared]
        when = f"after each of {len(executed)} steps executed" if len(executed) > 1 else "at the end"
        same = f"FINN's graph computes the same integers {when}"
        if compared is None:
            return f"{same}. Not compared with PyTorch: give verify=."
        return f"{same}, on up to {compared.images} images; these equal PyTorch within {compared.difference:.1e}."


def _cells(resources: Resources) -> tuple[str, str, str, str]:
    return (f"{resources.lut:,}", f"{resources.bram18:,}", f"{resources.dsp:,}", f"{resources.uram:,}")
