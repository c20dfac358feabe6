"""`fxfactor finn check | estimate | prepare`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from fxfactor.errors import FxfactorError

app = typer.Typer(help="From a QONNX file to what it costs on an FPGA.", no_args_is_help=True)

File = Annotated[Path, typer.Argument(help="QONNX file that `fxfactor export --target finn` wrote")]
Board = Annotated[str, typer.Option(help="Board as FINN names it, such as ZCU104 or Pynq-Z2")]
Fps = Annotated[int, typer.Option(help="Frames per second to fold for")]
Clock = Annotated[float, typer.Option(help="Clock period in nanoseconds")]
Verify = Annotated[Path | None, typer.Option(help='.npz file with images "x" and the network\'s outputs "y" on them')]
Python = Annotated[Path | None, typer.Option(help="Interpreter of an environment with finn-plus")]
Timeout = Annotated[float, typer.Option(help="Seconds until FINN is stopped")]
Cache = Annotated[Path | None, typer.Option(help="Folder for models kept between calls")]


@app.command()
def check(file: File) -> None:
    """List what FINN would refuse in FILE: rule, place, what was found, what to do. Exit status 1 if anything blocks."""
    from fxfactor.finn.checking import check as run
    from fxfactor.finn.checking import table

    console = Console()
    try:
        findings = run(file)
    except FxfactorError as error:
        raise _stop(error) from error
    console.print(table(findings) if findings else f"FINN takes {file}: nothing found.")
    if any(finding.blocks for finding in findings):
        raise typer.Exit(1)


@app.command()
def estimate(
    file: File,
    board: Board = "ZCU104",
    target_fps: Fps = 1000,
    clock_ns: Clock = 5.0,
    verify: Verify = None,
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
) -> None:
    """Resources, cycles and frames per second of FILE on a board, as FINN estimates them (lower bounds, no Vivado)."""
    from fxfactor.finn.estimation import estimate as run

    options = {"verify": verify, "python": python, "timeout_s": timeout_s, "cache": cache}
    result = _watched(run, file, board, target_fps, clock_ns, **options)
    Console().print(result)


@app.command()
def prepare(
    folder: Annotated[Path, typer.Argument(help="New folder for the build")],
    file: File,
    board: Board = "ZCU104",
    target_fps: Fps = 1000,
    clock_ns: Clock = 5.0,
    verify: Verify = None,
    python: Python = None,
    timeout_s: Timeout = 3600.0,
    cache: Cache = None,
) -> None:
    """Write FOLDER: model, build configurations for FINN and FINN+, folding, sample input and output, HLS and RTL sources."""
    from fxfactor.finn.preparation import prepare as run

    options = {"verify": verify, "python": python, "timeout_s": timeout_s, "cache": cache}
    result = _watched(run, folder, file, board, target_fps, clock_ns, **options)
    Console().print(f"{result.folder}: sources of {result.generated} layers; read README.md there.")


def _watched(run: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
    """Run it with FINN's step on the screen; exit status 2 where it fails."""
    with Console().status("starting FINN") as status:
        try:
            return run(*arguments, **options, progress=lambda step: status.update(step))
        except FxfactorError as error:
            raise _stop(error) from error


def _stop(error: FxfactorError) -> typer.Exit:
    """Print what went wrong to standard error, without a traceback."""
    Console(stderr=True).print(str(error), style="red", markup=False, highlight=False)
    return typer.Exit(2)
