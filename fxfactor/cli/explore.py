"""`fxfactor explore`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfactor.cli.options import (
    BOARD,
    ClockNs,
    Images,
    Keep,
    Original,
    Python,
    TargetFps,
    Weights,
    Widths,
    parse_bits,
    parse_levels,
)
from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from fxfactor.exploration.state_file import Candidate


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
    board: Annotated[str | None, BOARD] = None,
    target_fps: TargetFps = 1000,
    clock_ns: ClockNs = 5.0,
    python: Python = None,
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

    from fxfactor.cli.inputs import named_model, read_images
    from fxfactor.exploration.explore import explore as walk
    from fxfactor.exploration.result import HARDWARE, cells

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
