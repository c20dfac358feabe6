"""`fxfactor explore` and `fxfactor search`, to be mounted by `fxfactor.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfactor.cli_options import Keep, Original, Weights
from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from fxfactor.store import Candidate

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


def explore(
    source: Original,
    images: Images,
    validation: Annotated[
        Path,
        typer.Option(help='Validation set: an .npz file with "x" (N, C, H, W) and labels "y" (N,).', metavar="FILE"),
    ],
    weights: Weights = None,
    levels: Annotated[Any, typer.Option(parser=parse_levels, metavar="LEVELS", help="0-6 or 0,2,depthwise")] = "0-6",
    bits: Annotated[Any, typer.Option(parser=parse_bits, metavar="BITS", help="2,3,4,8 or 8/4,4")] = "2,3,4,8",
    widths: Widths = "1",
    keep: Keep = None,
    state: Annotated[
        Path, typer.Option(help="File that the run is kept in; call again to go on from it.", metavar="FILE")
    ] = Path("explore.sqlite"),
    workers: Annotated[int, typer.Option(min=1, help="Levels that are walked side by side.")] = 1,
    ray: Annotated[bool, typer.Option("--ray", help="Workers on a Ray cluster.")] = False,
    board: Annotated[
        str | None, typer.Option(help="Also ask FINN for its estimates on this board, say ZCU104; needs finn-plus.")
    ] = None,
    target_fps: Annotated[int, typer.Option(help="Frames per second that FINN folds for.")] = 1000,
    clock_ns: Annotated[float, typer.Option(help="Clock period in nanoseconds.")] = 5.0,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment with finn-plus.", metavar="FILE")
    ] = None,
    picture: Annotated[
        Path | None, typer.Option(help="Draw accuracy over BOPs: .png, .svg or .pdf.", metavar="FILE")
    ] = None,
) -> None:
    """Evaluate a network at every level and bit width: accuracy, MACs, BOPs, the Pareto front.

    [bold]Examples[/]

      fxfactor explore my.nets:small --weights small.pth --images train.npy --validation test.npz

      fxfactor explore my.nets:small --images train.npy --validation test.npz --levels 0,2,depthwise --bits 8/4,4
    """
    from rich.console import Console

    from fxfactor.cli_inputs import named_model, read_images
    from fxfactor.exploration import HARDWARE, cells
    from fxfactor.explore import explore as walk

    console = Console()
    names = ("level", "bits", "accuracy", "MMACs", "GBOPs", "KiB", "s", *HARDWARE)

    def show(candidate: Candidate) -> None:
        texts = cells(candidate)
        told = "  ".join(f"{name} {text}" for name, text in zip(names, texts[:-1], strict=True) if text)
        console.print(f"{told}  {texts[-1]}".rstrip(), highlight=False)

    result = walk(
        named_model(source, weights),
        read_images(images),
        labelled(validation),
        levels=levels,
        bits=bits,
        state=state,
        workers=workers,
        engine="ray" if ray else "local",
        keep=tuple(keep or ()),
        widths=widths,
        board=board,
        target_fps=target_fps,
        clock_ns=clock_ns,
        python=python,
        progress=show,
    )
    console.print(result)
    if picture is not None:
        print(f"saved in {result.plot(picture)}")


def search(
    source: Original,
    images: Images,
    weights: Weights = None,
    bops: Annotated[
        float | None, typer.Option(help="Budget of BOPs; up to 1: share of the network at 32 bits.")
    ] = None,
    macs: Annotated[float | None, typer.Option(help="Budget of MACs; up to 1: share.")] = None,
    weight_bits: Annotated[float | None, typer.Option(help="Budget of bits of weights; up to 1: share.")] = None,
    levels: Annotated[
        Any, typer.Option(parser=parse_levels, metavar="LEVELS", help="0-6 or 0,2,depthwise")
    ] = "0-6,depthwise",
    bits: Annotated[Any, typer.Option(parser=parse_bits, metavar="BITS", help="2,3,4,8")] = "2,3,4,5,6,8",
    widths: Widths = "1",
    lut: Annotated[float | None, typer.Option(help="Budget of look-up tables; up to 1: share of the board.")] = None,
    bram: Annotated[float | None, typer.Option(help="Budget of 18 kbit block RAMs; up to 1: share.")] = None,
    dsp: Annotated[float | None, typer.Option(help="Budget of DSP slices; up to 1: share.")] = None,
    keep: Keep = None,
    finn: Annotated[bool, typer.Option("--finn", help="Only groups that FINN can build with few branches.")] = False,
    board: Annotated[
        str | None, typer.Option(help="Board that the network shall fit, say ZCU104; needs finn-plus.")
    ] = None,
    target_fps: Annotated[int, typer.Option(min=1, help="Frames per second on the board.")] = 1000,
    clock_ns: Annotated[float, typer.Option(help="Clock period on the board in nanoseconds.")] = 5.0,
    python: Annotated[
        Path | None, typer.Option(help="Interpreter of an environment with finn-plus.", metavar="FILE")
    ] = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Plan to write, for [bold]fxfactor transform --plan[/].", metavar="FILE"),
    ] = Path("plan.json"),
) -> None:
    """Find groups and bits for every layer, so that the network loses least under a budget.

    [bold]Examples[/]

      fxfactor search my.nets:small --weights small.pth --images train.npy --bops 0.01

      fxfactor search my.nets:small --images train.npy --board Pynq-Z2 --lut 0.6 --target-fps 500

      fxfactor transform my.nets:small --weights small.pth --plan plan.json --calibration train.npy -o small-searched
    """
    from rich import print as show

    from fxfactor.budget import Budget
    from fxfactor.cli_inputs import named_model, read_images
    from fxfactor.search import search as find

    if any(isinstance(each, tuple) for each in bits):
        raise typer.BadParameter("bits of weights and activations are chosen one by one here; give ints, like 2,4,8")
    plan = find(
        named_model(source, weights),
        read_images(images),
        Budget(bops=bops, macs=macs, weight_bits=weight_bits, lut=lut, bram=bram, dsp=dsp),
        levels=levels,
        bits=bits,
        widths=widths,
        keep=tuple(keep or ()),
        finn=finn,
        board=board,
        target_fps=target_fps,
        clock_ns=clock_ns,
        python=python,
    )
    show(plan.explain())
    plan.save(output)
    print(f"saved in {output}; next: fxfactor transform {source} --plan {output} --calibration {images}")


def labelled(path: Path, size: int = 100) -> list[Any]:
    """Batches (images, labels) of an .npz file. Raises PreconditionError where it is none."""
    import numpy as np
    import torch

    try:
        with np.load(path, allow_pickle=False) as data:
            images, labels = torch.from_numpy(data["x"]).float(), torch.from_numpy(data["y"]).long()
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise PreconditionError(
            f"cannot read the validation set {str(path)!r}: {str(error).splitlines()[0]}; write it with "
            "numpy.savez(file, x=images, y=labels), images as floats (N, C, H, W), labels as ints (N,)"
        ) from error
    if len(images) != len(labels):
        raise PreconditionError(
            f"{str(path)!r} must have a label for each image, found {len(images)} and {len(labels)}"
        )
    return list(zip(images.split(size), labels.split(size), strict=True))
