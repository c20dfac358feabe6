"""What can be built in hardware in several ways, and what the costs of each depend on: grouped convolutions, quantizers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Literal

from fxfactor.finn.integer.streams import Window

Form = Literal["block", "split", "branches"]
FORMS: tuple[Form, ...] = ("block", "split", "branches")


@dataclass(frozen=True)
class GroupedConvolution:
    """A convolution of more than one group, as far as its forms and their costs depend on it.

    `tensor`: the name of its output in the file, which no other has. `size`: height and width of its input. `narrow`: no
    weight is the least value of its datatype. `forms`: those that it can take.
    """

    site: str
    tensor: str
    channels: int
    outputs: int
    groups: int
    window: Window
    size: tuple[int, int]
    weight_bits: int
    narrow: bool
    input_datatype: str
    accumulator_bits: int
    forms: tuple[Form, ...]

    @property
    def is_depthwise(self) -> bool:
        """One channel in each group."""
        return self.groups == self.channels


Choose = Callable[[GroupedConvolution], Form]


def as_blocks(layer: GroupedConvolution) -> Form:
    """Every grouped convolution one block."""
    return "block"


@dataclass(frozen=True)
class Staircase:
    """A quantizer that can be thresholds or one multiplication, as far as the costs depend on it.

    `tensor`: the name of its output in the file, which no other has. `size`: height and width, or nothing.
    `input_datatype` as FINN will have it, as narrow as the weights allow; `scale_bits` without a sign.
    """

    site: str
    tensor: str
    channels: int
    size: tuple[int, ...]
    input_datatype: str
    datatype: str
    scale_bits: int
    bias_bits: int
    shift: int


@dataclass(frozen=True)
class Choices:
    """How a network is built: the form of each grouped convolution, and which quantizers are multiplications.

    `multiplied`: the names of their outputs in the file. `look`: whether those that could be are looked for.
    """

    form: Choose = as_blocks
    multiplied: Collection[str] = ()
    look: bool = False


DEFAULT = Choices()
