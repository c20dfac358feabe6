"""`fxfactor search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxfactor.cli.options import (
    BOARD,
    ClockNs,
    Device,
    Images,
    ImageSize,
    JoinBits,
    Keep,
    MaxImages,
    Mean,
    Original,
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
from fxfactor.cli.output import Json, show, show_json, suggest
from fxfactor.files import require_place_for_file


def search(
    source: Original,
    images: Images,
    weights: Weights = None,
    pretrained: Pretrained = False,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    max_images: MaxImages = None,
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
    join_bits: JoinBits = "8",
    keep: Keep = None,
    board: Annotated[str | None, BOARD] = None,
    target_fps: TargetFps = 1000,
    clock_ns: ClockNs = 5.0,
    python: Python = None,
    workers: Annotated[int, typer.Option(min=1, help="Processes that work out prices and losses.")] = 1,
    ray: Ray = False,
    device: Device = None,
    output: Annotated[
        Path,
        typer.Option("--output", "-o", help="Plan to write, for [bold]fxfactor transform --plan[/].", metavar="FILE"),
    ] = Path("plan.json"),
    as_json: Json = False,
) -> None:
    """Find groups and bits for every layer, so that the network loses least under a budget.

    [bold]Examples[/]

      fxfactor search my.nets:small --weights small.pth --images train.npy --bops 0.01

      fxfactor search my.nets:small --images train.npy --board Pynq-Z2 --lut 0.6 --target-fps 500

      fxfactor transform my.nets:small --weights small.pth --plan plan.json --calibration train.npy -o small-searched
    """
    from fxfactor.cli.images import read_images
    from fxfactor.cli.networks import current_folder_first, named_model
    from fxfactor.plan.budget import Budget
    from fxfactor.planning.search import search as find

    if any(isinstance(each, tuple) for each in bits):
        raise typer.BadParameter("bits of weights and activations are chosen one by one here; give ints, like 2,4,8")
    require_place_for_file(output, "saving the plan")
    budget = Budget(bops=bops, macs=macs, weight_bits=weight_bits, lut=lut, bram=bram, dsp=dsp)
    batches = read_images(images, pictures_of(image_size, resize, mean, std), max_images)
    with current_folder_first():  # the processes of --workers import the network too
        plan = find(
            named_model(source, weights, pretrained=pretrained, device=device),
            batches,
            budget,
            levels=levels,
            bits=bits,
            widths=widths,
            join_bits=join_bits,
            keep=tuple(keep or ()),
            board=board,
            target_fps=target_fps,
            clock_ns=clock_ns,
            python=python,
            workers=workers,
            engine="ray" if ray else "local",
        )
    if as_json:
        show_json(plan.explain().to_dict())
    else:
        show(plan.explain())
    plan.save(output)
    given: dict[str, object] = {"plan": output, "weights": weights, "pretrained": pretrained, "calibration": images}
    if images.is_dir():
        given |= {"image_size": _joined(image_size, "x"), "resize": resize, "mean": _joined(mean), "std": _joined(std)}
    given |= {"max_images": max_images, "device": device}
    suggest(f"saved in {output}", "transform", source, **given, output=output.with_suffix(""))


def _joined(values: tuple[float, ...] | None, by: str = ",") -> str | None:
    return None if values is None else by.join(f"{value:g}" for value in values)
