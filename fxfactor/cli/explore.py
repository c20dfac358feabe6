"""`fxfactor explore`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from time import monotonic
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fxfactor.cli.options import (
    BOARD,
    ClockNs,
    Device,
    Images,
    ImageSize,
    Keep,
    MaxImages,
    Mean,
    Original,
    Precision,
    Pretrained,
    Python,
    Ray,
    Resize,
    Std,
    TargetFps,
    Weights,
    Widths,
    parse_bits,
    parse_levels,
    pictures_of,
)
from fxfactor.cli.output import Json, going_on, note, show, show_json
from fxfactor.files import require_place_for_file
from fxfactor.progress import time_left

if TYPE_CHECKING:
    from fxfactor.exploration.state_file import Candidate


def explore(
    source: Original,
    images: Images,
    validation: Annotated[
        Path,
        typer.Option(
            help='Validation set: an .npz file with "x" (N, C, H, W) and labels "y" (N,), or a folder with a folder of '
            "pictures for each class.",
            metavar="PATH",
        ),
    ],
    weights: Weights = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    max_images: MaxImages = None,
    levels: Annotated[Any, typer.Option(parser=parse_levels, metavar="LEVELS", help="0-6 or 0,2,depthwise")] = "0-6",
    bits: Annotated[Any, typer.Option(parser=parse_bits, metavar="BITS", help="2,3,4,8 or 8/4,4")] = "2,3,4,8",
    widths: Widths = "1",
    keep: Keep = None,
    state: Annotated[
        Path, typer.Option(help="File that the run is kept in; call again to go on from it.", metavar="FILE")
    ] = Path("explore.sqlite"),
    workers: Annotated[int, typer.Option(min=1, help="Levels that are walked side by side.")] = 1,
    ray: Ray = False,
    board: Annotated[str | None, BOARD] = None,
    target_fps: TargetFps = 1000,
    clock_ns: ClockNs = 5.0,
    python: Python = None,
    device: Device = None,
    precision: Precision = "float32",
    picture: Annotated[
        Path | None, typer.Option(help="Draw accuracy over BOPs: .png, .svg or .pdf.", metavar="FILE")
    ] = None,
    best: Annotated[
        list[str] | None,
        typer.Option(
            metavar="NAME=N",
            help="What the candidate for --output must have: accuracy or fps, at least N; bops, macs, weight_bits, lut, bram18 "
            "or dsp, at most N; may be repeated. Without accuracy the most accurate is taken, with it the one of fewest BOPs.",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Plan of the best candidate, for transform --plan.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Evaluate a network at every level and bit width: accuracy, MACs, BOPs, the Pareto front.

    [bold]Examples[/]

      fxfactor explore my.nets:small --weights small.pth --images train.npy --validation test.npz

      fxfactor explore my.nets:small --images train.npy --validation test.npz --levels 0,2,depthwise --bits 8/4,4

      fxfactor explore my.nets:small --images train.npy --validation test.npz --best accuracy=0.9 -o plan.json
    """
    from fxfactor.cli.images import read_images, read_labelled
    from fxfactor.cli.networks import current_folder_first, named_model
    from fxfactor.exploration.explore import explore as walk
    from fxfactor.exploration.explore import pairs_of, rungs_of
    from fxfactor.exploration.result import cells, plan_of

    if picture is not None:
        require_place_for_file(picture, "drawing the exploration", (".png", ".svg", ".pdf"))
    limits = _limits_of(best)
    if output is not None:
        require_place_for_file(output, "writing the plan", (".json",))
    elif best is not None:
        raise typer.BadParameter("--best says which plan is written: give --output FILE.json too")
    pictures = pictures_of(image_size, resize, mean, std)
    labelled = read_labelled(validation, pictures)
    batches = read_images(images, pictures, max_images)
    told = _Teller(len(rungs_of(levels, widths)) * len(pairs_of(bits)))
    model = named_model(source, weights, pretrained=pretrained, device=device)
    goes_on = f"Every candidate so far is kept: the same command goes on from {state}."
    with going_on(goes_on), current_folder_first():  # the processes of --workers import the network too
        result = walk(
            model,
            batches,
            labelled,
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
            precision=cast(Any, precision),
            progress=told,
        )
    if as_json:
        front = {each.key for each in result.front()}
        show_json([{**asdict(each), "front": each.key in front} for each in result.candidates])
    else:
        show(result)
    if picture is not None:
        note(f"saved in {result.plot(picture)}")
    if output is not None:
        chosen = result.best(**limits)
        plan_of(chosen).save(output)
        note(f"saved in {output}: level {cells(chosen)[0]}, bits {cells(chosen)[1]}, metric {chosen.metric:.4f}")


def _limits_of(words: list[str] | None) -> dict[str, float]:
    """`["accuracy=0.9", "lut=65000"]` as arguments of `Exploration.best`."""
    known = {
        **{name: f"min_{name}" for name in ("accuracy", "fps")},
        **{name: f"max_{name}" for name in ("bops", "macs", "weight_bits", "lut", "bram18", "dsp")},
    }
    found = {}
    for word in words or ():
        name, _, number = word.partition("=")
        try:
            found[known[name]] = float(number)
        except (KeyError, ValueError) as error:
            raise typer.BadParameter(
                f"--best: NAME=N is required with one of {', '.join(known)}, such as accuracy=0.9; found {word!r}"
            ) from error
    return found


class _Teller:
    """Prints each candidate as it comes, with its number and the time left at the speed so far."""

    def __init__(self, total: int) -> None:
        self.total, self.done, self.started = total, 0, monotonic()

    def __call__(self, candidate: Candidate) -> None:
        from fxfactor.exploration.result import HARDWARE, cells

        self.done += 1
        names = ("level", "bits", "accuracy", "MACs", "BOPs", "weights", "s", *HARDWARE)
        texts = cells(candidate)
        told = "  ".join(f"{name} {text}" for name, text in zip(names, texts[:-1], strict=True) if text)
        left = time_left(self.done, self.total, monotonic() - self.started)
        note(f"{self.done} of {self.total}, {left}: {told}  {texts[-1]}".rstrip())
