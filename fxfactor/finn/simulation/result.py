"""What a simulation says: whether every word was right, how many cycles a frame takes, and where the pipeline waits."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from rich.markup import escape

from fxfactor.rich_table import new_table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult
    from rich.table import Table

SCHEMA_VERSION = 2
"""Of `Simulation.to_json`."""


@dataclass(frozen=True)
class Difference:
    """The first word of a stream that is not what the network in integers has there.

    `layer` wrote it, `site` is its module or node in the network. `frame` and `word` count from 0, the word within the frame.
    `found` and `wanted` are the word's elements. `wrong` words of this stream were wrong in all.
    """

    layer: str
    site: str
    stream: str
    frame: int
    word: int
    found: tuple[int, ...]
    wanted: tuple[int, ...]
    wrong: int

    def __str__(self) -> str:
        element = next(
            (at for at, pair in enumerate(zip(self.found, self.wanted, strict=False)) if pair[0] != pair[1]), 0
        )
        values = f"{self.found[element]} instead of {self.wanted[element]}"
        return (
            f"{self.layer} ({self.site}) wrote {values} in frame {self.frame}, word {self.word}, element {element}; "
            f"{self.wrong:,} words of {self.stream} are wrong"
        )


@dataclass(frozen=True)
class SimulatedStream:
    """A FIFO: `words` passed it, it held at most `peak`, and `depth` words fit in.

    `began` and `ended`: cycles, from the network's first word on, in which the first and the last word of each frame
    passed. In the `watched_cycles` from the end of its first frame to that of its last, its writer was held back for
    `full_cycles` since it was full, and it had nothing to give for `empty_cycles`. `wrong` words differ from the network
    in integers; `left` stayed in it at the end. `needed` is the depth that keeps up the full speed, None where it was
    not asked for.
    """

    name: str
    writer: str
    reader: str
    bits: int
    words: int
    words_per_frame: int
    depth: int
    peak: int
    began: tuple[int, ...]
    ended: tuple[int, ...]
    watched_cycles: int
    full_cycles: int
    empty_cycles: int
    wrong: int
    left: int
    needed: int | None


@dataclass(frozen=True)
class SimulatedLayer:
    """A hardware layer: FINN's `name` and `kind` for it, its `site` in the network, FINN's figure of cycles per frame.

    `is_model`: FINN has it in HLS only, and a model of fxfactor stood for it. Of `watched_cycles`, from the end of its
    first frame to that of its last, there was no word for it in `waits_for_input` (in some of them it had enough to do),
    and its readers held it back in `waits_for_output`.
    """

    name: str
    kind: str
    site: str
    is_model: bool
    estimated_cycles: int
    watched_cycles: int
    waits_for_input: int
    waits_for_output: int

    @property
    def waiting(self) -> float:
        """The part of the watched time in which it may have waited; all of it where no second frame came."""
        return (self.waits_for_input + self.waits_for_output) / self.watched_cycles if self.watched_cycles else 1.0


@dataclass(frozen=True)
class Simulation:
    """What simulating a network's hardware showed; print it with rich, or read the fields.

    `cycles` are from frame to frame once the pipeline is full, 0 where it never was; `latency_cycles` from the first word of
    the first frame to its last result. `unlimited_cycles` is what `cycles` would be with FIFOs of any size.
    `estimated_cycles` is FINN's figure for its slowest layer. `complaints` are what checks in FINN's RTL said. `stopped` says
    why the simulation ended early, "" where it did not. `compiled` layers were compiled for this; the others were in the cache.
    """

    board: str
    part: str
    clock_ns: float
    frames: int
    cycles: int
    unlimited_cycles: int
    latency_cycles: int
    estimated_cycles: int
    layers: tuple[SimulatedLayer, ...]
    streams: tuple[SimulatedStream, ...]
    differences: tuple[Difference, ...]
    complaints: tuple[str, ...]
    stopped: str
    compiled: int
    seconds: float

    @property
    def is_right(self) -> bool:
        """Whether all frames came out, every word of every stream was that of the network in integers, and no check failed."""
        return not (self.stopped or self.differences or self.complaints)

    @property
    def words(self) -> int:
        """Words compared, of all streams and frames."""
        return sum(stream.words for stream in self.streams)

    @property
    def fps(self) -> float:
        """Frames per second at the clock asked for."""
        return 1e9 / self.clock_ns / self.cycles if self.cycles else 0.0

    @property
    def estimated_fps(self) -> float:
        """Frames per second by FINN's estimate."""
        return 1e9 / self.clock_ns / self.estimated_cycles

    @property
    def latency_ms(self) -> float:
        """Milliseconds from the first word of a frame to its result, with an empty pipeline."""
        return self.latency_cycles * self.clock_ns / 1e6

    @property
    def models(self) -> tuple[str, ...]:
        """Layers for which a model stood."""
        return tuple(layer.name for layer in self.layers if layer.is_model)

    @property
    def busiest(self) -> SimulatedLayer:
        """The layer that waited for the least part of its time: it sets the pace."""
        return min(self.layers, key=lambda layer: layer.waiting)

    @property
    def depths(self) -> dict[str, int]:
        """Stream -> depth of its FIFO in this simulation."""
        return {stream.name: stream.depth for stream in self.streams}

    def to_dict(self) -> dict[str, Any]:
        """All fields and what follows from them; numbers, texts and lists only."""
        names = ("is_right", "words", "fps", "estimated_fps", "latency_ms", "models")
        derived = {name: getattr(self, name) for name in names}
        return {"schema_version": SCHEMA_VERSION, **asdict(self), **derived, "busiest": self.busiest.name}

    def to_json(self) -> str:
        """`to_dict` as JSON text."""
        return json.dumps(self.to_dict(), indent=1) + "\n"

    def table(self) -> Table:
        """One row per layer, with the FIFO behind it."""
        title = f"{self.board} ({self.part}), {1000 / self.clock_ns:.0f} MHz, {self.frames} frames simulated"
        table = new_table(title=title)
        for name in ("layer", "site", "FINN's cycles", "waits: input", "output", "FIFO behind", "peak", "words wrong"):
            table.add_column(name, justify="left" if name in ("layer", "site") else "right")
        behind: dict[str, list[SimulatedStream]] = {}
        for stream in self.streams:
            behind.setdefault(stream.writer, []).append(stream)
        for layer in self.layers:
            streams = behind[layer.name]
            wrong = sum(stream.wrong for stream in streams)
            table.add_row(
                f"{layer.name} (model)" if layer.is_model else layer.name,
                layer.site,
                f"{layer.estimated_cycles:,}",
                f"{layer.waits_for_input:,}",
                f"{layer.waits_for_output:,}",
                ", ".join(f"{stream.depth:,}" for stream in streams),
                ", ".join(f"{stream.peak:,}" for stream in streams),
                f"[red]{wrong:,}[/red]" if wrong else "0",
                style="bold" if layer is self.busiest else "",
            )
        return table

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """The table, then speed, what was compared, and what was a model."""
        yield self.table()
        if self.stopped:
            yield f"[red]Stopped: {self.stopped}[/red]"
        if self.cycles:
            more = self.cycles / self.estimated_cycles - 1
            yield (
                f"{self.cycles:,} cycles a frame, {self.fps:,.0f} frames/s; FINN estimates {self.estimated_cycles:,} and "
                f"{self.estimated_fps:,.0f} ({more:+.1%}). Latency {self.latency_ms:.3f} ms. Busiest: {self.busiest.name}."
            )
        if self.cycles > self.unlimited_cycles > 0:
            yield f"With FIFOs of any size it would be {self.unlimited_cycles:,} cycles a frame."
        if self.differences:
            yield f"[red]First difference: {self.differences[0]}[/red]"
        else:
            yield f"{self.words:,} words in {len(self.streams)} streams compared with the network in integers: all are right."
        for complaint in self.complaints:
            yield f"[red]A check in the RTL failed: {escape(complaint)}[/red]"
        if self.models:
            yield f"Models of fxfactor stood for layers that FINN has in HLS only: {', '.join(self.models)}."
