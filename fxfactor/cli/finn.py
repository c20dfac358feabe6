"""`fxfactor finn check | compare | estimate | prepare | simulate | synthesize`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fxfactor.cli.options import (
    BOARD,
    ClockNs,
    Frames,
    Limit,
    Model,
    Pretrained,
    Python,
    TrustSource,
    Weights,
    parse_frames,
    parse_limits,
)
from fxfactor.cli.output import Json, command, show, show_json
from fxfactor.files import require_place_for_file, write_text

app = typer.Typer(help="From a QONNX file to what it costs on an FPGA.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="QONNX file that `fxfactor export --target finn` wrote")]
Grouped = Annotated[
    str | None, typer.Option(help="Grouped convolutions as block, split or branches; the cheapest of each if not given")
]
Requant = Annotated[
    bool | None,
    typer.Option(
        help="Quantizers as one multiplication wherever it is exact, or never; the cheapest of each if not given"
    ),
]
Verify = Annotated[Path | None, typer.Option(help='.npz file with images "x" and the network\'s outputs "y" on them')]
Folding = Annotated[str, typer.Option(help="Whose rule folds: fxfactor, or finn for comparison")]
FifoDepths = Annotated[
    Path | None, typer.Option(help="What [bold]simulate -o[/] wrote: FIFOs as deep as there.", metavar="FILE")
]
Timeout = Annotated[float, typer.Option(help="Seconds until FINN is stopped")]
Cache = Annotated[Path | None, typer.Option(help="Folder for models kept between calls")]
Output = Annotated[
    Path | None, typer.Option("--output", "-o", help="File for the result as JSON, to be read again.", metavar="FILE")
]


@app.command()
@command
def check(file: File, as_json: Json = False) -> None:
    """List what FINN would refuse in FILE: rule, place, what was found, what to do. Exit status 1 if anything blocks."""
    from fxfactor.finn.checking import check as run
    from fxfactor.finn.checking import table

    findings = run(file)
    if as_json:
        show_json([asdict(finding) for finding in findings])
    else:
        show(table(findings) if findings else f"FINN takes {file}: nothing found.")
    if any(finding.blocks for finding in findings):
        raise typer.Exit(1)


@app.command()
@command
def estimate(
    file: File,
    board: Annotated[str, BOARD] = "ZCU104",
    target_fps: Frames = "1000",
    clock_ns: ClockNs = 5.0,
    limit: Limit = None,
    grouped: Grouped = None,
    requant: Requant = None,
    folding: Folding = "fxfactor",
    fifo_depths: FifoDepths = None,
    verify: Verify = None,
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Resources, cycles and frames per second of FILE on a board, by our estimates and FINN's own (no Vivado)."""
    from fxfactor.finn.estimation import estimate as run

    _require_place(output)
    options: dict[str, Any] = {
        "limits": parse_limits(limit),
        "grouped": grouped,
        "requant": requant,
        "folding": folding,
        "fifo_depths": None if fifo_depths is None else _depths(fifo_depths),
    }
    options |= {"verify": verify, "python": python, "timeout_s": timeout_s, "cache": cache}
    result = _watched(run, file, board, parse_frames(target_fps), clock_ns, **options)
    _give(result, output, as_json)


@app.command()
@command
def prepare(
    folder: Annotated[Path, typer.Argument(help="New folder for the build")],
    file: File,
    board: Annotated[str, BOARD] = "ZCU104",
    target_fps: Frames = "1000",
    clock_ns: ClockNs = 5.0,
    limit: Limit = None,
    grouped: Grouped = None,
    requant: Requant = None,
    folding: Folding = "fxfactor",
    fifo_depths: FifoDepths = None,
    verify: Verify = None,
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
) -> None:
    """Write FOLDER: model, build configurations for FINN and FINN+, folding, sample input and output, HLS and RTL sources."""
    from fxfactor.finn.preparation import prepare as run

    options: dict[str, Any] = {
        "limits": parse_limits(limit),
        "grouped": grouped,
        "requant": requant,
        "folding": folding,
        "fifo_depths": None if fifo_depths is None else _depths(fifo_depths),
    }
    options |= {"verify": verify, "python": python, "timeout_s": timeout_s, "cache": cache}
    result = _watched(run, folder, file, board, parse_frames(target_fps), clock_ns, **options)
    show(f"{result.folder}: sources of {result.generated} layers; read README.md there.")


@app.command()
@command
def simulate(
    file: File,
    images: Annotated[Path, typer.Option(help='.npy file with images (N, C, H, W), or .npz file with "x"')],
    board: Annotated[str, BOARD] = "ZCU104",
    target_fps: Frames = "1000",
    clock_ns: ClockNs = 5.0,
    fifo_depth: Annotated[
        str | None,
        typer.Option(
            help='Words in every FIFO, or "target": the fewest for --target-fps. None: as many as full speed needs.',
            metavar="N|target",
        ),
    ] = None,
    limit: Limit = None,
    grouped: Grouped = None,
    requant: Requant = None,
    folding: Folding = "fxfactor",
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Simulate FINN's hardware for FILE, clock by clock, and compare every word. Exit status 1 if one is wrong."""
    from fxfactor.finn.simulation.flow import simulate as run

    _require_place(output)
    shared = {
        "limits": parse_limits(limit),
        "grouped": grouped,
        "requant": requant,
        "folding": folding,
        "python": python,
        "timeout_s": timeout_s,
        "cache": cache,
    }
    depths: Any = int(fifo_depth) if fifo_depth is not None and fifo_depth.isdecimal() else fifo_depth
    result = _watched(
        run, file, _images_in(images), board, parse_frames(target_fps), clock_ns, fifo_depths=depths, **shared
    )
    _give(result, output, as_json)
    if not result.is_right:
        raise typer.Exit(1)


@app.command()
@command
def synthesize(
    file: File,
    board: Annotated[str, BOARD] = "ZCU104",
    target_fps: Frames = "1000",
    clock_ns: ClockNs = 5.0,
    limit: Limit = None,
    grouped: Grouped = None,
    requant: Requant = None,
    folding: Folding = "fxfactor",
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Count by Yosys what the RTL takes that FINN generates for FILE, layer by layer, beside the estimates of it."""
    from fxfactor.finn.synthesis.flow import synthesize as run

    _require_place(output)
    options: dict[str, Any] = {
        "limits": parse_limits(limit),
        "grouped": grouped,
        "requant": requant,
        "folding": folding,
    }
    options |= {"python": python, "timeout_s": timeout_s, "cache": cache}
    result = _watched(run, file, board, parse_frames(target_fps), clock_ns, **options)
    _give(result, output, as_json)


@app.command()
@command
def compare(
    network: Annotated[
        str, typer.Argument(help="What FILE was exported from: a saved folder, or a network named as for transform")
    ],
    file: File,
    images: Annotated[
        Path,
        typer.Argument(help='.npy file with images (N, C, H, W), as the network takes them, or .npz file with "x"'),
    ],
    max_images: Annotated[int, typer.Option(min=1, help="So many of them, at most.")] = 8,
    weights: Weights = None,
    pretrained: Pretrained = False,
    model: Model = None,
    trust_source: TrustSource = False,
    finn: Annotated[bool, typer.Option(help="Also take FILE through FINN's steps, executed after each.")] = False,
    board: Annotated[str, BOARD] = "ZCU104",
    python: Python = None,
    output: Output = None,
    as_json: Json = False,
) -> None:
    """Where is my accuracy lost? PyTorch, FILE and integers (and FINN's graph) layer by layer, and where they part first.

    With the original network in floating point the errors say what each layer lost by quantization and factorization.

    [bold]Examples[/]

      fxfactor finn compare small-l3 small.onnx images.npy --model my.nets:small

      fxfactor finn compare my.nets:small small.onnx images.npy --weights small.pth --finn
    """
    from fxfactor.cli.networks import named_model
    from fxfactor.cli.saved import Naming, is_saved
    from fxfactor.finn.comparison import compare as run

    _require_place(output)
    naming = Naming(model, trust_source, weights, pretrained)
    if is_saved(network):
        found: Any = naming.load(network)
    else:
        naming.require_folder(network)
        found = named_model(network, weights, pretrained=pretrained)
    settings: dict[str, Any] = {"board": board, "python": python}
    result = run(found, file, _images_in(images)[:max_images], finn=finn, settings=settings)
    _give(result, output, as_json)


def _require_place(output: Path | None) -> None:
    """Raise PreconditionError where a result could not be written: asked before the work."""
    if output is not None:
        require_place_for_file(output, "writing the result", (".json",))


def _give(result: Any, output: Path | None, as_json: bool) -> None:
    """Print a result, as a table or as JSON, and keep it in a file where one is named."""
    if output is not None:
        write_text(output, result.to_json(), "writing the result")
    if as_json:
        print(result.to_json())
    else:
        show(result)


def _depths(file: Path) -> dict[str, int]:
    """Stream -> depth, from a simulation's JSON. Raises FinnError where the file holds something else."""
    from fxfactor.errors import FinnError

    try:
        return {stream["name"]: int(stream["depth"]) for stream in json.loads(file.read_text())["streams"]}
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise FinnError(
            f"required: what fxfactor finn simulate -o wrote; found: {str(file)!r} ({error}); write it anew"
        ) from error


def _images_in(file: Path) -> Any:
    from fxfactor.arrays import read_arrays

    return read_arrays(file, ("x",), "images")[0].astype("float32")


def _watched(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run it with FINN's step on the screen."""
    with Console(stderr=True).status("starting FINN") as status:
        return run(*arguments, **options, progress=lambda step: status.update(step))
