"""What an estimate says: resources, cycles and frames per second, per layer and in total."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from fxfactor.finn.boards import Resources
from fxfactor.finn.integer.forms import Form
from fxfactor.finn.target import Folding, Frames
from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

SCHEMA_VERSION = 2
"""Of `Estimate.to_json`."""

CAVEAT = (
    "Estimates before synthesis; nobody has run Vivado on this network. Ours: FINN's analytic figures with DSP lanes, look-up "
    "tables of matrix units, comparators, FIFOs and width converters added (fxfactor/finn/process/folding/formulas.py says "
    "whose count each is). FINN's own leave these out. The shell is in neither, nor control logic of HLS layers."
)

FIFOS, CONVERTERS = "(FIFOs)", "(width converters)"
"""Sites of what stands between hardware layers. FINN puts it in after its estimates."""


@dataclass(frozen=True)
class HardwareLayer:
    """One hardware layer: FINN's `name` for it, its `kind`, and the module or node of the network it belongs to (`site`).

    `cycles` are per frame. `resources` is our estimate, `finn` FINN's own.
    """

    name: str
    kind: str
    site: str
    cycles: int
    resources: Resources
    finn: Resources


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
    """What one network costs on one board; print it with rich, or read the fields.

    `total` is our estimate and `finn_total` FINN's own for the same folding. `silent` names hardware layers for which FINN's
    estimators say 0 of everything. `folding`: whose rule chose the folding. `available` is what the board has, None for a
    part that is not in `fxfactor.finn.boards`. `software` names what FINN left out of the hardware, `floating` the hardware
    layers that touch floating point: both should be empty. `grouped` says in which form each grouped convolution went, and why.
    """

    board: str
    part: str
    clock_ns: float
    target_fps: Frames
    folding: Folding
    layers: tuple[HardwareLayer, ...]
    total: Resources
    finn_total: Resources
    silent: tuple[str, ...]
    notes: tuple[str, ...]
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
        """Whether our estimate stays below what the board has; True is no promise, since it is a lower bound."""
        return None if self.shares is None else all(share <= 1 for share in self.shares.values())

    def to_dict(self) -> dict[str, Any]:
        """All fields under their own names, with `bottleneck` (a site), `shares` and `fits`; numbers, texts and lists only."""
        derived = {"bottleneck": self.bottleneck.site, "shares": self.shares, "fits": self.fits}
        return {"schema_version": SCHEMA_VERSION, "caveat": CAVEAT, **asdict(self), **derived}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def by_site(self) -> dict[str, tuple[Resources, Resources, int]]:
        """Site -> the sum of its hardware layers' resources by our count and by FINN's, and the most cycles among them."""
        none = Resources(0, 0, 0, 0)
        sums: dict[str, tuple[Resources, Resources, int]] = {}
        for layer in self.layers:
            ours, finns, cycles = sums.get(layer.site, (none, none, 0))
            sums[layer.site] = (ours + layer.resources, finns + layer.finn, max(cycles, layer.cycles))
        return sums

    def table(self) -> Table:
        """One row per site, a row for the total, and one for what the board has; our figures, FINN's in brackets."""
        wanted = "as fast as fits" if self.target_fps == "max" else f"target {self.target_fps} frames/s"
        by = {"fxfactor": "folded by fxfactor", "finn": "folded by FINN's rule"}[self.folding]
        title = f"{self.board} ({self.part}), {1000 / self.clock_ns:.0f} MHz, {wanted}, {by}"
        table = new_table(title=title, caption=CAVEAT)
        table.add_column("site")
        for name in ("LUT", "BRAM18", "DSP", "URAM", "cycles", "frames/s"):
            table.add_column(name, justify="right")
        slowest = self.bottleneck.site
        for site, (ours, finns, cycles) in self.by_site().items():
            fps = f"{1e9 / self.clock_ns / cycles:,.0f}" if cycles else ""
            shown = f"{cycles:,}" if cycles else ""
            table.add_row(site, *_both(ours, finns), shown, fps, style="bold" if site == slowest else "")
        table.add_section()
        total = _both(self.total, self.finn_total)
        table.add_row("total", *total, f"{self.bottleneck.cycles:,}", f"{self.fps:,.0f}", style="bold")
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
        if self.silent:
            yield f"FINN's estimators say 0 for: {', '.join(self.silent)}."
        yield from self.notes
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


def _both(ours: Resources, finns: Resources) -> tuple[str, ...]:
    """Our figures, and FINN's in brackets where they differ."""
    pairs = zip(_cells(ours), _cells(finns), strict=True)
    return tuple(mine if mine == theirs else f"{mine} ({theirs})" for mine, theirs in pairs)


def _cells(resources: Resources) -> tuple[str, str, str, str]:
    return (f"{resources.lut:,}", f"{resources.bram18:,}", f"{resources.dsp:,}", f"{resources.uram:,}")
