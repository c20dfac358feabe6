"""Arguments and options that several subcommands of the command line share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _parse_level(given: str | int) -> Any:
    text = str(given)  # typer parses a default, which is a number, as well
    if text == "depthwise":
        return text
    if text.isdecimal():
        return int(text)
    raise typer.BadParameter(f'an integer of at least 0 or "depthwise" is required, found {text!r}')


def _parse_size(text: str) -> Any:
    parts = text.replace("×", "x").replace(",", "x").split("x")
    if len(parts) >= 2 and all(part.isdecimal() and int(part) > 0 for part in parts):
        return tuple(int(part) for part in parts)
    raise typer.BadParameter(f"channels and size of one image are required, like 3x32x32, found {text!r}")


Original = Annotated[str, typer.Argument(help="torchvision:NAME or package.module:factory.", show_default=False)]
Source = Annotated[
    str, typer.Argument(help="torchvision:NAME, package.module:factory, or a saved folder.", show_default=False)
]
LevelOption = Annotated[
    Any,
    typer.Option(
        "--level",
        "-l",
        parser=_parse_level,
        metavar="INT|depthwise",
        help="Granularity of the factorization: at most 2^level groups. 0 keeps every convolution.",
    ),
]
Width = Annotated[
    float,
    typer.Option(
        help="Channels between the factors, as a multiple of the input channels: 2 keeps more accuracy for more MACs."
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", "-b", min=2, max=8, help="Bits of weights and activations. None: floating point."),
]
WeightBits = Annotated[int | None, typer.Option(min=2, max=8, help="Bits of the weights, where they differ.")]
ActivationBits = Annotated[int | None, typer.Option(min=2, max=8, help="Bits of the activations, where they differ.")]
Keep = Annotated[
    list[str] | None,
    typer.Option(
        "--keep", help="Module path that is not factorized, with all below it. May be given again.", metavar="PATH"
    ),
]
InputSize = Annotated[
    Any,
    typer.Option(parser=_parse_size, metavar="CxHxW", help="One image, like 3x32x32. Inferred where it is not given."),
]
Weights = Annotated[
    Path | None, typer.Option(help="State dict to load first: .safetensors, .pt or .pth.", metavar="FILE")
]


def parse_bits(text: str) -> Any:
    """ "2,3,4,8", "8/4,4": bits, or weight bits/activation bits."""
    found: list[Any] = []
    for part in text.split(","):
        numbers = part.strip().split("/")
        if not all(number.isdecimal() for number in numbers) or len(numbers) > 2:
            raise typer.BadParameter(f'bits like 2,3,4,8 or 8/4,4 are required, found "{part}"')
        pair = tuple(int(number) for number in numbers)
        found.append(pair if len(pair) == 2 else pair[0])
    return tuple(found)


Images = Annotated[
    Path,
    typer.Option(
        help="Training images: a .npy file of floats (N, C, H, W), normalised as in training.", metavar="FILE"
    ),
]


def parse_levels(text: str) -> Any:
    """ "0-6", "0,2,depthwise": levels and ranges of them."""
    levels: list[int | str] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if part.strip() == "depthwise":
            levels.append("depthwise")
        elif low.isdecimal() and (not dash or high.isdecimal()):
            levels.extend(range(int(low), int(high or low) + 1))
        else:
            raise typer.BadParameter(f'levels like 0-6 or 0,2,depthwise are required, found "{part}"')
    return tuple(levels)


def parse_widths(text: str) -> Any:
    """ "1,1.5,2": numbers."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise typer.BadParameter(f'widths like 1,1.5,2 are required, found "{text}"') from None


Widths = Annotated[
    Any,
    typer.Option(
        parser=parse_widths,
        metavar="WIDTHS",
        help="Channels between the factors to choose from, as multiples of the input channels: 1,1.5,2",
    ),
]


BOARD: Any = typer.Option(help="Board as FINN names it, such as ZCU104, KV260_SOM or Pynq-Z2; needs finn-plus.")
TargetFps = Annotated[int, typer.Option(min=1, help="Frames per second on the board.")]
ClockNs = Annotated[float, typer.Option(help="Clock period on the board in nanoseconds.")]
Python = Annotated[
    Path | None,
    typer.Option(help="Interpreter of an environment with finn-plus, this one if not given.", metavar="FILE"),
]
