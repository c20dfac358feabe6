"""The generated hardware as layers and the streams between them; FINN's FIFO nodes become the streams themselves."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import prod
from typing import Any

from fxfactor.errors import FinnError

FIFO = "StreamingFIFO"
INPUT, OUTPUT = "input", "output"


@dataclass(frozen=True)
class Port:
    """How a tensor is dealt into words: `folded` is its shape as (..., words, elements of a word).

    `bits` of a word are used, `padded` bits has the port. Elements lie from the lowest bits on.
    """

    folded: tuple[int, ...]
    bits: int
    padded: int
    element_bits: int
    signed: bool

    @classmethod
    def of(cls, told: dict[str, Any]) -> Port:
        """From what process/layer_streams.py tells."""
        return cls(tuple(told["folded"]), *(told[name] for name in ("bits", "padded", "element_bits", "signed")))

    @property
    def words(self) -> int:
        """Words per frame."""
        return prod(self.folded[:-1])

    @property
    def elements(self) -> int:
        """Elements of a word."""
        return self.folded[-1]

    @property
    def limbs(self) -> int:
        """32-bit parts that hold a word."""
        return -(-self.padded // 32)


@dataclass(frozen=True)
class Stream:
    """A FIFO and the words in it. `writer` and `reader` name layers, or stand for the network's input and output.

    `tensor` is FINN's name for the tensor; layers keep the names of the integer graph where they compute the same.
    """

    writer: str
    reader: str
    port: Port
    tensor: str | None
    output: int = 0
    """Which output of the writer it is."""

    @property
    def name(self) -> str:
        """`writer -> reader`, as reports show it; further outputs of a writer have numbers: `writer:1 -> reader`."""
        return f"{self.writer}{f':{self.output}' if self.output else ''} -> {self.reader}"


@dataclass(frozen=True)
class Layer:
    """One hardware layer; `inputs` and `outputs` are positions in the design's streams."""

    name: str
    kind: str
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    in_ports: tuple[Port, ...]
    out_ports: tuple[Port, ...]
    cycles: int
    told: dict[str, Any] = field(repr=False, default_factory=dict)
    """All that process/layer_streams.py tells."""

    @property
    def is_rtl(self) -> bool:
        """Whether FINN generates RTL for it."""
        return self.kind.endswith("_rtl")

    @property
    def attributes(self) -> dict[str, Any]:
        """FINN's attributes of the layer."""
        attributes: dict[str, Any] = self.told["attributes"]
        return attributes


@dataclass(frozen=True)
class Design:
    """Layers in the order of execution, and the streams between them."""

    layers: tuple[Layer, ...]
    streams: tuple[Stream, ...]

    @property
    def sources(self) -> tuple[int, ...]:
        """Positions of the streams from the network's input."""
        return tuple(index for index, stream in enumerate(self.streams) if stream.writer == INPUT)

    @property
    def sinks(self) -> tuple[int, ...]:
        """Positions of the streams to the network's output."""
        return tuple(index for index, stream in enumerate(self.streams) if stream.reader == OUTPUT)

    def layer(self, name: str) -> Layer:
        """The layer of that name."""
        return next(layer for layer in self.layers if layer.name == name)


def design_of(told: list[dict[str, Any]]) -> Design:
    """The design in what process/layer_streams.py tells. Raises FinnError where a stream has several readers."""
    by_name = {each["name"]: each for each in told}
    real = [each for each in told if not each["kind"].startswith(FIFO)]
    streams: list[Stream] = []
    inputs: dict[str, list[int]] = {each["name"]: [] for each in real}
    outputs: dict[tuple[str, int], int] = {}

    def add(reader: str, start: list[Any] | None, port: Port) -> int:
        writer, output = _writer(start, by_name)
        if writer == INPUT:
            output = sum(stream.writer == INPUT for stream in streams)
        if (writer, output) in outputs:
            raise FinnError(
                f"required: one reader of each stream; found: output {output} of {writer} is read by {reader} and another; "
                "report it with the file as a defect of fxfactor"
            )
        tensor = by_name[writer]["outputs"][output]["tensor"] if writer != INPUT else None
        streams.append(Stream(writer, reader, port, tensor, output))
        outputs[writer, output] = len(streams) - 1
        return len(streams) - 1

    for each in real:
        for side in each["inputs"]:
            inputs[each["name"]].append(add(each["name"], side["from"], Port.of(side)))
    for name, output in _unread(real, outputs):
        add(OUTPUT, [name, output], Port.of(by_name[name]["outputs"][output]))
    return Design(tuple(_layer(each, inputs[each["name"]], outputs) for each in real), tuple(streams))


def fifos_on_streams(told: list[dict[str, Any]]) -> dict[str, list[str]]:
    """Stream -> the FIFO layers that FINN put on it, the one next to its writer first."""
    streams = {(stream.writer, stream.output): stream.name for stream in design_of(told).streams}
    by_name = {each["name"]: each for each in told}
    found: dict[str, list[str]] = {name: [] for name in streams.values()}
    for each in told:
        if each["kind"].startswith(FIFO):
            found[streams[_writer(each["inputs"][0]["from"], by_name)]].append(each["name"])
    return found


def _writer(start: list[Any] | None, by_name: dict[str, dict[str, Any]]) -> tuple[str, int]:
    """The layer and its output at the other end of a chain of FIFOs."""
    while start is not None and by_name[start[0]]["kind"].startswith(FIFO):
        start = by_name[start[0]]["inputs"][0]["from"]
    return (INPUT, 0) if start is None else (start[0], start[1])


def _unread(real: list[dict[str, Any]], outputs: dict[tuple[str, int], int]) -> list[tuple[str, int]]:
    """Layers' outputs that no layer reads: those of the network."""
    every = [(each["name"], index) for each in real for index in range(len(each["outputs"]))]
    return [key for key in every if key not in outputs]


def _layer(told: dict[str, Any], inputs: list[int], outputs: dict[tuple[str, int], int]) -> Layer:
    name, sides = told["name"], told["outputs"]
    return Layer(
        name=name,
        kind=told["kind"],
        inputs=tuple(inputs),
        outputs=tuple(outputs[name, index] for index in range(len(sides))),
        in_ports=tuple(Port.of(side) for side in told["inputs"]),
        out_ports=tuple(Port.of(side) for side in sides),
        cycles=told["cycles"],
        told=told,
    )
