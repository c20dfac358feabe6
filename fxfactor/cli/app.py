"""The command line: the words of the library, on networks that are named.

Only typer is imported here; torch comes with the commands, so that `fxfactor --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from enum import Enum
from pathlib import Path
from typing import Annotated, Any

import typer

from fxfactor.cli.inputs import example_of, named_graph, named_model, read_images, working
from fxfactor.cli.options import (
    ActivationBits,
    BitsOption,
    InputSize,
    Keep,
    LevelOption,
    Original,
    Source,
    WeightBits,
    Weights,
    Width,
)
from fxfactor.errors import FxfactorError

app = typer.Typer(
    name="fxfactor",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Split a CNN's convolutions into depth-factorized subgraphs, quantize them with Brevitas, hand them to FINN.\n\n"
        "A network is named in one of three ways:\n\n"
        "  [bold]torchvision:resnet18[/]   a model of torchvision (random without --weights)\n\n"
        "  [bold]my.module:factory[/]      what your function, class or variable gives\n\n"
        "  [bold]folder[/]                 what [bold]fxfactor transform --output[/] has written\n\n"
        "[bold]Start with[/]\n\n"
        "  fxfactor transform torchvision:resnet18 -l 3 -b 4 -o resnet18-l3\n\n"
        "  fxfactor export resnet18-l3 resnet18.onnx"
    ),
)


class Target(str, Enum):
    """Who reads the exported file."""

    qonnx = "qonnx"
    finn = "finn"


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("fxfactor"))
        raise typer.Exit


@app.command()
def transform(
    source: Original,
    level: LevelOption = None,
    bits: BitsOption = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    width: Width = 1.0,
    plan: Annotated[
        Path | None, typer.Option(help="Plan from [bold]fxfactor plan[/], instead of level and bits.", metavar="FILE")
    ] = None,
    keep: Keep = None,
    input_size: InputSize = None,
    weights: Weights = None,
    calibration: Annotated[
        Path | None,
        typer.Option(help="Images to fit factors and ranges to: a .npy file of floats (N, C, H, W).", metavar="FILE"),
    ] = None,
    round_weights: Annotated[
        bool, typer.Option("--round", help="Round the weights for the outputs, not to the nearest level: seconds.")
    ] = False,
    reconstruct: Annotated[
        int | None,
        typer.Option(min=1, help="Steps that bring each block's outputs to the original's: minutes.", metavar="STEPS"),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to save the result in.", metavar="FOLDER")
    ] = None,
) -> None:
    """Factorize and quantize a network, print the table, save the result.

    [bold]Examples[/]

      fxfactor transform torchvision:resnet18 -l 3 -b 4 -o resnet18-l3

      fxfactor transform torchvision:resnet18 -l 3 --width 2 -b 4 -o resnet18-l3-wide

      fxfactor transform my.nets:small --input-size 3x32x32 -l depthwise --keep head

      fxfactor transform torchvision:resnet18 --plan plan.json --weights mine.pth

      fxfactor transform my.nets:small -l 3 -b 4 --calibration train.npy --round --reconstruct 1000 -o small-l3
    """
    import fxfactor
    from fxfactor.storage.checkpoint import require_place

    if calibration is None and (round_weights or reconstruct is not None):
        raise typer.BadParameter("--round and --reconstruct need images: give --calibration FILE")
    if output is not None:
        require_place(output)
    wanted = _wanted_bits(bits, weight_bits, activation_bits)
    model = named_model(source, weights)
    settings: dict[str, Any] = {"level": level, "bits": wanted, "width": width}
    if plan:
        if level is not None or wanted is not None or width != 1:
            raise typer.BadParameter("give --plan, or --level, --bits and --width, not both")
        settings = {"plan": fxfactor.Plan.load(plan)}
    images = None if calibration is None else read_images(calibration)
    with working("factorizing and quantizing", silent=images is not None):
        qmodel = fxfactor.transform(
            model, **settings, keep=tuple(keep or ()), example_inputs=example_of(input_size), calibration=images
        )
    if images is not None and round_weights:
        fxfactor.round_weights(model, qmodel, images)
    if images is not None and reconstruct is not None:
        fxfactor.reconstruct(model, qmodel, images, steps=reconstruct)
    fxfactor.summary(qmodel)
    if output is not None:
        fxfactor.save(qmodel, output, source=source)
        print(f"saved in {output}; next: fxfactor export {output} {output}.onnx")


@app.command()
def plan(
    source: Original,
    level: LevelOption = 3,
    bits: BitsOption = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    width: Width = 1.0,
    keep: Keep = None,
    input_size: InputSize = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="File to write; the screen if none is given.", metavar="FILE")
    ] = None,
) -> None:
    """Write the plan that a level and bits stand for, to be edited by hand.

    The plan is JSON with one line for each layer: groups, channels between the factors, weight bits, activation bits.

    [bold]Example[/]

      fxfactor plan torchvision:resnet18 -l 3 -b 4 -o plan.json

      fxfactor transform torchvision:resnet18 --plan plan.json
    """
    from fxfactor import Plan, capture

    with working("reading the network"):
        graph = capture(named_model(source), example_of(input_size))
    both = _wanted_bits(bits, weight_bits, activation_bits) or (None, None)
    made = Plan.uniform(graph, level, *both, keep=tuple(keep or ()), width=width)
    if output is None:
        print(made.to_json(), end="")
        return
    made.save(output)
    size = "" if input_size is None else f" --input-size {'x'.join(map(str, input_size))}"
    print(f"saved in {output}; edit it, then: fxfactor transform {source} --plan {output}{size}")


@app.command()
def summary(source: Source, input_size: InputSize = None) -> None:
    """Print the table of a saved network, or of one that is still as it was.

    [bold]Examples[/]

      fxfactor summary resnet18-l3

      fxfactor summary torchvision:resnet18 --input-size 3x64x64
    """
    import fxfactor

    fxfactor.summary(named_graph(source, input_size))


@app.command()
def export(
    source: Source,
    path: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    target: Annotated[
        Target, typer.Option(help="finn: rewrite into the forms that FINN accepts first.")
    ] = Target.qonnx,
    input_size: InputSize = None,
) -> None:
    """Write a saved network as QONNX, execute the file in qonnx and compare.

    A file that computes something else than the network is not left behind.

    [bold]Examples[/]

      fxfactor export resnet18-l3 resnet18.onnx

      fxfactor export resnet18-l3 resnet18.onnx --target finn
    """
    import fxfactor

    graph = named_graph(source, input_size)
    with working("exporting and executing the file"):
        written = fxfactor.export(graph, path, target=target.value)
    ties = f", {written.rounding_ties} rounding ties" if written.rounding_ties else ""
    print(f"{written.path}: executed in qonnx, relative difference {written.relative_difference:.1g}{ties}")


_PASSED_ON: Any = {
    "add_help_option": False,
    "context_settings": {"allow_extra_args": True, "ignore_unknown_options": True},
}
"""For commands whose options are read by a module that is not imported before it is needed."""


@app.command(**_PASSED_ON, options_metavar="FOLDER ...")
def distributions(context: typer.Context) -> None:
    """Measure weights and activations layer by layer beside the original's. See fxfactor distributions --help."""
    from fxfactor.cli.report import distributions

    _pass_on(distributions, context)


@app.command(**_PASSED_ON, options_metavar="FOLDER ...")
def report(context: typer.Context) -> None:
    """Write one page about one or several saved networks. See fxfactor report --help."""
    from fxfactor.cli.report import report

    _pass_on(report, context)


@app.command(**_PASSED_ON, options_metavar="SOURCE ...")
def explore(context: typer.Context) -> None:
    """Evaluate a network at every level and bit width. See fxfactor explore --help."""
    from fxfactor.cli.explore import explore

    _pass_on(explore, context)


@app.command(**_PASSED_ON, options_metavar="SOURCE ...")
def search(context: typer.Context) -> None:
    """Find groups and bits for every layer under a budget. See fxfactor search --help."""
    from fxfactor.cli.search import search

    _pass_on(search, context)


def _pass_on(command: Callable[..., None], context: typer.Context) -> None:
    alone = typer.Typer(rich_markup_mode="rich", add_completion=False)
    alone.command()(command)
    alone(args=context.args, prog_name=f"fxfactor {context.info_name}")


@app.command(**_PASSED_ON, options_metavar="COMMAND ...")
def finn(context: typer.Context) -> None:
    """Ask FINN about an exported file: what it refuses, what it estimates. See fxfactor finn --help."""
    from fxfactor.cli.finn import app as finn_app

    finn_app(args=context.args, prog_name="fxfactor finn")


def _wanted_bits(
    bits: int | None, weights: int | None, activations: int | None
) -> tuple[int | None, int | None] | None:
    both = (bits if weights is None else weights, bits if activations is None else activations)
    return None if both == (None, None) else both


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 an error that fxfactor explains, 2 wrong usage."""
    try:
        app(args=arguments, prog_name="fxfactor")
    except FxfactorError as error:
        from rich.console import Console
        from rich.text import Text

        message = "\n".join([str(error), *getattr(error, "__notes__", ())])
        Console(stderr=True).print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
        sys.exit(1)
