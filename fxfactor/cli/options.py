"""Arguments and options that several subcommands of the command line share."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:
    from fxfactor.cli.images import Pictures


def _parse_level(given: str | int) -> Any:
    text = str(given)  # typer parses a default, which is a number, as well
    if text == "depthwise":
        return text
    if text.isdecimal() and len(text) <= 4:
        return int(text)
    raise typer.BadParameter(f'an integer of at least 0 or "depthwise" is required, found {text!r}')


def _parse_size(text: str) -> Any:
    parts = text.replace("×", "x").replace(",", "x").split("x")
    if len(parts) >= 2 and all(part.isdecimal() and 0 < int(part[:6]) <= 2**16 for part in parts):
        return tuple(int(part) for part in parts)
    raise typer.BadParameter(f"channels and size of one image are required, like 3x32x32, found {text!r}")


def _parse_width(text: str | float) -> float:
    try:
        width = float(text)
    except ValueError:
        width = math.nan
    if 0 < width < math.inf:
        return width
    raise typer.BadParameter(f"a number above 0 is required, found {text!r}")


Original = Annotated[
    str, typer.Argument(help="torchvision:NAME, timm:NAME or package.module:factory.", show_default=False)
]
Source = Annotated[
    str,
    typer.Argument(help="torchvision:NAME, timm:NAME, package.module:factory, or a saved folder.", show_default=False),
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
        parser=_parse_width,
        metavar="NUMBER",
        help="Channels between the factors, as a multiple of the input channels: 2 keeps more accuracy for more MACs.",
    ),
]
BitsOption = Annotated[
    int | None,
    typer.Option("--bits", "-b", min=2, max=8, help="Bits of weights and activations. None: floating point."),
]
WeightBits = Annotated[
    int | None, typer.Option(min=1, max=8, help="Bits of the weights, where they differ; 1: −1 and 1 times a scale.")
]
ActivationBits = Annotated[int | None, typer.Option(min=2, max=8, help="Bits of the activations, where they differ.")]
BitsOfAdditions = Annotated[
    int | None,
    typer.Option(
        "--join-bits",
        min=2,
        max=8,
        help="Bits of tensors that enter additions; layers read a copy in their own bits. 8 if nothing is said.",
    ),
]
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
Pretrained = Annotated[
    bool, typer.Option("--pretrained", help="Published weights, for torchvision: and timm: networks; downloaded once.")
]
Device = Annotated[str | None, typer.Option(help="Where to compute: cpu, cuda, cuda:1, mps.", metavar="DEVICE")]
Model = Annotated[
    str | None,
    typer.Option(help="The original network of the folder, named as for [bold]transform[/].", metavar="SOURCE"),
]
TrustSource = Annotated[
    bool,
    typer.Option(
        "--trust-source", help="Import and call the network that the folder itself names: this runs code. Shown first."
    ),
]


def parse_one_of(*names: str) -> Callable[[str], str]:
    """What reads an option that is one of these words: another one is told before any work."""

    def parse(text: str) -> str:
        if text in names:
            return text
        raise typer.BadParameter(f"{' or '.join(names)} is required, found {text!r}")

    return parse


Ray = Annotated[bool, typer.Option("--ray", help="Workers on a Ray cluster.")]

PRECISIONS = ("float32", "bfloat16")
Precision = Annotated[
    str,
    typer.Option(
        parser=parse_one_of(*PRECISIONS),
        metavar="|".join(PRECISIONS),
        help="What convolutions compute in meanwhile; bfloat16 is faster on GPUs that have it.",
    ),
]


def _parse_image_size(text: str) -> Any:
    parts = text.replace("×", "x").split("x")
    if len(parts) in (1, 2) and all(part.isdecimal() and 0 < int(part) <= 2**14 for part in parts):
        return int(parts[0]), int(parts[-1])
    raise typer.BadParameter(f"the size of an image is required, like 224 or 224x320 (height, width), found {text!r}")


def _parse_numbers(text: str) -> Any:
    try:
        found = tuple(float(part) for part in text.split(","))
    except ValueError:
        found = ()
    if found and all(math.isfinite(number) for number in found):
        return found
    raise typer.BadParameter(f"numbers like 0.485,0.456,0.406 are required, found {text!r}")


_PICTURES = "Pictures"
ImageSize = Annotated[
    Any,
    typer.Option(
        parser=_parse_image_size,
        metavar="SIZE",
        help="For a folder of pictures: the size of an image, the middle of a picture. 224 or 224x320.",
        rich_help_panel=_PICTURES,
    ),
]
Resize = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=2**14,
        help="Scale the shorter side to this before cutting; so that the image just fits, if not given.",
        rich_help_panel=_PICTURES,
    ),
]
Mean = Annotated[
    Any,
    typer.Option(
        parser=_parse_numbers,
        metavar="NUMBERS",
        help="Subtracted from each channel (0 to 1), as in training; ImageNet's if not given.",
        rich_help_panel=_PICTURES,
    ),
]
Std = Annotated[
    Any,
    typer.Option(
        parser=_parse_numbers,
        metavar="NUMBERS",
        help="What the rest is divided by, as in training; ImageNet's if not given.",
        rich_help_panel=_PICTURES,
    ),
]
MaxImages = Annotated[
    int | None,
    typer.Option(min=1, help="Take so many images, spread evenly; all of a file and 512 of a folder, if not given."),
]


def pictures_of(
    image_size: tuple[int, int] | None,
    resize: int | None,
    mean: Any,
    std: Any,
    input_size: tuple[int, ...] | None = None,
) -> Pictures | None:
    """How pictures of a folder are read, from the options; None where no size is known."""
    from fxfactor.cli.images import IMAGENET, Pictures

    if image_size is None and input_size is not None and len(input_size) == 3:
        image_size = (input_size[1], input_size[2])
    if (mean is None) != (std is None):
        raise typer.BadParameter("give --mean and --std, or neither for ImageNet's")
    if image_size is None:
        return None
    return Pictures(image_size, resize, mean or IMAGENET[0], std or IMAGENET[1])


def parse_bits(text: str) -> Any:
    """ "2,3,4,8", "8/4,4": bits, or weight bits/activation bits."""
    found: list[Any] = []
    for part in text.split(","):
        numbers = part.strip().split("/")
        least = (1, 2) if len(numbers) == 2 else (2,)
        if len(numbers) > 2 or not all(
            number.isdecimal() and few <= int(number[:4]) <= 8 for number, few in zip(numbers, least, strict=True)
        ):
            raise typer.BadParameter(
                f'bits from 2 to 8, like 2,3,4,8 or 8/4,4 (weights/activations; weights may have 1), are required, found "{part}"'
            )
        pair = tuple(int(number) for number in numbers)
        found.append(pair if len(pair) == 2 else pair[0])
    return tuple(found)


def parse_rate(text: str) -> float | None:
    """ "0.002", or "try" (None): a learning rate that is tried out."""
    if text == "try":
        return None
    try:
        rate = float(text)
    except ValueError:
        rate = 0.0
    if not 0 < rate < float("inf"):
        raise typer.BadParameter(f'a number above 0, or "try", is required, found "{text}"')
    return rate


def parse_join_bits(text: str) -> Any:
    """ "8", "4,6,8": bits of tensors that enter additions."""
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 2 <= int(part[:4]) <= 8 for part in parts):
        raise typer.BadParameter(f'bits from 2 to 8, like 8 or 4,6,8, are required, found "{text}"')
    return tuple(map(int, parts))


JoinBits = Annotated[
    Any,
    typer.Option(
        parser=parse_join_bits,
        metavar="BITS",
        help="Bits of tensors that enter additions, the same for all; several like 4,6,8 to choose from.",
    ),
]

Images = Annotated[
    Path,
    typer.Option(
        help="Training images: a .npy or .npz file of floats (N, C, H, W), normalised as in training, or a folder of "
        "pictures.",
        metavar="PATH",
    ),
]


def parse_levels(text: str) -> Any:
    """ "0-6", "0,2,depthwise": levels and ranges of them."""
    levels: list[int | str] = []
    for part in text.split(","):
        low, dash, high = part.strip().partition("-")
        if part.strip() == "depthwise":
            levels.append("depthwise")
        elif low.isdecimal() and (not dash or high.isdecimal()) and max(len(low), len(high)) <= 2:
            levels.extend(range(int(low), int(high or low) + 1))
        else:
            raise typer.BadParameter(f'levels like 0-6 or 0,2,depthwise are required, found "{part}"')
    return tuple(levels)


def parse_widths(text: str) -> Any:
    """ "1,1.5,2": numbers."""
    try:
        widths = tuple(float(part) for part in text.split(","))
    except ValueError:
        widths = ()
    if widths and all(0 < width < math.inf for width in widths):
        return widths
    raise typer.BadParameter(f'widths above 0, like 1,1.5,2, are required, found "{text}"')


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
Frames = Annotated[str, typer.Option(help='Frames per second to fold for, or "max": the fastest that fits the board')]
ClockNs = Annotated[float, typer.Option(help="Clock period on the board in nanoseconds.")]
Python = Annotated[
    Path | None,
    typer.Option(help="Interpreter of an environment with finn-plus, this one if not given.", metavar="FILE"),
]
Limit = Annotated[
    list[str] | None,
    typer.Option(
        metavar="NAME=N", help="The most of the board that may be used: lut, bram18, dsp or uram; may be repeated."
    ),
]


def parse_limits(words: list[str] | None) -> dict[str, int] | None:
    """`["lut=65000", "dsp=636"]` as a mapping; what the names and numbers may be, `fxfactor.finn.target.Target` says."""
    found = {}
    for word in words or ():
        name, _, count = word.partition("=")
        if not count.replace("_", "").isdecimal():
            raise typer.BadParameter(f"--limit: NAME=N is required, such as lut=65000; found {word!r}")
        found[name] = int(count)
    return found or None


def parse_frames(text: str) -> Any:
    """A positive number, or "max"."""
    text = text.replace("_", "")
    if text != "max" and not (text.isdecimal() and int(text) > 0):
        raise typer.BadParameter(f'--target-fps: a number of frames per second or "max" is required, found {text!r}')
    return text if text == "max" else int(text)
