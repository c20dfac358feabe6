"""`fxfactor search`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

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
    board: Annotated[str | None, BOARD] = None,
    target_fps: TargetFps = 1000,
    clock_ns: ClockNs = 5.0,
    python: Python = None,
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

    from fxfactor.cli.inputs import named_model, read_images
    from fxfactor.plan.budget import Budget
    from fxfactor.planning.search import search as find

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
        board=board,
        target_fps=target_fps,
        clock_ns=clock_ns,
        python=python,
    )
    show(plan.explain())
    plan.save(output)
    print(f"saved in {output}; next: fxfactor transform {source} --plan {output} --calibration {images}")
