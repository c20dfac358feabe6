"""The forms that a grouped convolution can take in hardware, and what their costs depend on."""

from __future__ import annotations

from collections.abc import Callable
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
