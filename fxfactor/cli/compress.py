"""`fxfactor compress`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxfactor.cli.options import (
    BOARD,
    ClockNs,
    Device,
    Frames,
    ImageSize,
    JoinBits,
    Keep,
    Limit,
    Mean,
    Original,
    Pretrained,
    Python,
    Ray,
    Resize,
    Std,
    Weights,
    Widths,
    parse_bits,
    parse_frames,
    parse_levels,
    parse_limits,
    pictures_of,
)
from fxfactor.cli.output import Json, going_on, note, show, show_json


def compress(
    source: Original,
    train: Annotated[
        Path, typer.Option(help="Labelled images to fit and train with, as for finetune.", metavar="PATH")
    ],
    validation: Annotated[Path, typer.Option(help="Labelled images to measure accuracy on.", metavar="PATH")],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder for all results; a run that was stopped goes on from it.")
    ],
    weights: Weights = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    board: Annotated[str, BOARD] = "ZCU104",
    target_fps: Frames = "1000",
    clock_ns: ClockNs = 5.0,
    limit: Limit = None,
    epochs: Annotated[int, typer.Option(min=0, help="Epochs of training for the candidates that last longest.")] = 8,
    plans: Annotated[int, typer.Option(min=1, help="Plans of each kind: whole, factorized, free.")] = 5,
    levels: Annotated[
        Any, typer.Option(parser=parse_levels, metavar="LEVELS", help="0-6 or 0,2,depthwise")
    ] = "0-6,depthwise",
    bits: Annotated[Any, typer.Option(parser=parse_bits, metavar="BITS", help="2,3,4,8")] = "2,3,4,6,8",
    widths: Widths = "1,2",
    join_bits: JoinBits = "8",
    keep: Keep = None,
    tolerance: Annotated[
        float | None,
        typer.Option(help='The cheapest is taken that loses at most so much against the best: 0, with "max" 0.01.'),
    ] = None,
    learning_rate: Annotated[float, typer.Option(help="Of Adam at the start; a cosine takes it to 0.")] = 2e-3,
    batch_size: Annotated[int, typer.Option(min=1, help="Images at a time.")] = 100,
    workers: Annotated[int, typer.Option(min=1, help="Candidates that are made or trained side by side.")] = 1,
    ray: Ray = False,
    device: Device = None,
    python: Python = None,
    as_json: Json = False,
) -> None:
    """Find the factorized, quantized network for a board, train it, and prepare its build.

    [bold]Example[/]

      fxfactor compress my.nets:small --weights small.pth --train train.npz --validation test.npz --board ZCU104
      --target-fps 2000 -o small-zcu104
    """
    from fxfactor.cli.images import read_labelled
    from fxfactor.cli.networks import current_folder_first, named_model
    from fxfactor.compression.compress import compress as run

    if any(isinstance(each, tuple) for each in bits):
        raise typer.BadParameter("bits of weights and activations are chosen one by one here; give ints, like 2,4,8")
    frames, limits = parse_frames(target_fps), parse_limits(limit)
    pictures = pictures_of(image_size, resize, mean, std)
    model = named_model(source, weights, pretrained=pretrained, device=device)
    training = read_labelled(train, pictures, batch_size, "training set")
    labelled = read_labelled(validation, pictures, batch_size)
    goes_on = f"Every candidate so far is kept: the same command goes on from {output}."
    with going_on(goes_on), current_folder_first():  # the processes of --workers import the network too
        found = run(
            model,
            training,
            labelled,
            output,
            board=board,
            target_fps=frames,
            clock_ns=clock_ns,
            limits=limits,
            epochs=epochs,
            plans=plans,
            levels=levels,
            bits=bits,
            widths=widths,
            join_bits=join_bits,
            keep=tuple(keep or ()),
            tolerance=tolerance,
            learning_rate=learning_rate,
            python=python,
            workers=workers,
            engine="ray" if ray else "local",
        )
    if as_json:
        show_json(found.to_dict())
    else:
        show(found)
    note(f"saved in {output}: best/, plan.json, model.onnx, build/ (for the machine with Vivado), result.json")
