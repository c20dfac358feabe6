"""The command line: the words of the library, on networks that are named.

Only typer is imported here; torch comes with the commands, so that `fxfactor --help` answers at once.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfactor.cli_options import (
    ActivationBits,
    BitsOption,
    InputSize,
    Keep,
    LevelOption,
    Source,
    WeightBits,
    Weights,
    Width,
)
from fxfactor.errors import FxfactorError, PreconditionError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule

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
    source: Source,
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
    """
    import fxfactor

    wanted = _wanted_bits(bits, weight_bits, activation_bits)
    model = _named_model(source, weights)
    settings: dict[str, Any] = {"level": level, "bits": wanted, "width": width}
    if plan:
        if level is not None or wanted is not None or width != 1:
            raise typer.BadParameter("give --plan, or --level, --bits and --width, not both")
        settings = {"plan": fxfactor.Plan.load(plan)}
    images = None if calibration is None else _batches(calibration)
    with _working("factorizing and quantizing", silent=images is not None):
        qmodel = fxfactor.transform(
            model, **settings, keep=tuple(keep or ()), example_inputs=_example(input_size), calibration=images
        )
    fxfactor.summary(qmodel)
    if output is not None:
        fxfactor.save(qmodel, output, source=source)
        print(f"saved in {output}; next: fxfactor export {output} {output}.onnx")


@app.command()
def plan(
    source: Source,
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

    with _working("reading the network"):
        graph = capture(_named_model(source), _example(input_size))
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

    fxfactor.summary(_named_graph(source, input_size))


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

    graph = _named_graph(source, input_size)
    with _working("exporting and executing the file"):
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
    from fxfactor.report import cli

    _pass_on(cli.distributions, context)


@app.command(**_PASSED_ON, options_metavar="FOLDER ...")
def report(context: typer.Context) -> None:
    """Write one page about one or several saved networks. See fxfactor report --help."""
    from fxfactor.report import cli

    _pass_on(cli.report, context)


@app.command(**_PASSED_ON, options_metavar="SOURCE ...")
def explore(context: typer.Context) -> None:
    """Evaluate a network at every level and bit width. See fxfactor explore --help."""
    from fxfactor import explore_cli

    _pass_on(explore_cli.explore, context)


@app.command(**_PASSED_ON, options_metavar="SOURCE ...")
def search(context: typer.Context) -> None:
    """Find groups and bits for every layer under a budget. See fxfactor search --help."""
    from fxfactor import explore_cli

    _pass_on(explore_cli.search, context)


def _pass_on(command: Callable[..., None], context: typer.Context) -> None:
    alone = typer.Typer(rich_markup_mode="rich", add_completion=False)
    alone.command()(command)
    alone(args=context.args, prog_name=f"fxfactor {context.info_name}")


@app.command(**_PASSED_ON, options_metavar="COMMAND ...")
def finn(context: typer.Context) -> None:
    """Ask FINN about an exported file: what it refuses, what it estimates. See fxfactor finn --help."""
    from fxfactor.finn.cli import app as finn_app

    finn_app(args=context.args, prog_name="fxfactor finn")


def _wanted_bits(
    bits: int | None, weights: int | None, activations: int | None
) -> tuple[int | None, int | None] | None:
    both = (bits if weights is None else weights, bits if activations is None else activations)
    return None if both == (None, None) else both


def _named_graph(source: str, input_size: tuple[int, ...] | None) -> GraphModule:
    """The network in a saved folder, or the captured one that `source` names."""
    from fxfactor import capture

    with _working("loading the network"):
        return _saved(source) if Path(source).is_dir() else capture(_named_model(source), _example(input_size))


def _saved(folder: str) -> GraphModule:
    from fxfactor.checkpoint import load, read_about

    source = read_about(folder)["source"]
    if source is None:
        raise PreconditionError(
            f"{folder!r} does not say where its network comes from; save it with "
            'fxfactor.save(qmodel, folder, source="package.module:factory"), or load it in Python'
        )
    return load(folder, _named_model(source))


def _named_model(source: str, weights: Path | None = None) -> nn.Module:
    """The network that `source` names, in eval mode. Raises PreconditionError where there is none."""
    import torch

    if Path(source).is_dir():
        raise PreconditionError(f"{source!r} is a saved network, which is factorized already; name the original model")
    origin, colon, name = source.partition(":")
    if not colon or not origin or not name:
        raise PreconditionError(
            f"a network is named torchvision:NAME, package.module:factory or by a saved folder, found {source!r}"
        )
    torch.manual_seed(0)
    model = _of_torchvision(name) if origin == "torchvision" else _of_user(origin, name)
    if weights is not None:
        _load_weights(model, weights)
    return model.eval()


def _of_torchvision(name: str) -> nn.Module:
    import difflib
    import inspect
    import warnings

    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise PreconditionError("torchvision is not installed; run pip install torchvision") from error
    if name not in models.list_models():
        close = difflib.get_close_matches(name, models.list_models(), n=3, cutoff=0.0)
        raise PreconditionError(f"torchvision has no model {name!r}; did you mean {' or '.join(map(repr, close))}?")
    builder = models.get_model_builder(name)
    options = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    with warnings.catch_warnings():  # on how the weights of Inception and GoogLeNet are drawn
        warnings.simplefilter("ignore", FutureWarning)
        return builder(weights=None, **options)


def _of_user(module_name: str, name: str) -> nn.Module:
    import importlib

    from torch import nn

    if "" not in sys.path:
        sys.path.insert(0, "")  # the folder that the command is run in, as with python -m
    try:
        found: Any = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise
        raise PreconditionError(
            f"there is no module {module_name!r} here or installed; run the command where it can be imported"
        ) from error
    for part in name.split("."):
        if not hasattr(found, part):
            raise PreconditionError(
                f"module {module_name!r} has no {name!r}; name a function, a class or a network in it"
            )
        found = getattr(found, part)
    model = found if isinstance(found, nn.Module) else found()
    if not isinstance(model, nn.Module):
        raise PreconditionError(
            f"{module_name}:{name} must be a torch.nn.Module or give one when called, found {type(model).__name__}"
        )
    return model


def _load_weights(model: nn.Module, path: Path) -> None:
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            state: Any = load_file(path)
        else:
            state = torch.load(path, "cpu", weights_only=True)
        model.load_state_dict(state.get("state_dict", state))
    except (OSError, SafetensorError, pickle.UnpicklingError) as error:
        raise PreconditionError(
            f"cannot read the weights {str(path)!r}: {error.__class__.__name__}: {str(error).splitlines()[0]}; "
            "pass a state dict saved by torch.save(model.state_dict(), file) or safetensors"
        ) from error
    except (RuntimeError, AttributeError, TypeError) as error:
        raise PreconditionError(
            f"the weights {str(path)!r} do not fit {type(model).__name__}: {str(error).splitlines()[-1].strip()}; "
            "pass the state dict of this very model"
        ) from error


def _batches(path: Path, size: int = 32) -> list[Tensor]:
    import numpy as np
    import torch

    try:
        images = torch.from_numpy(np.load(path, allow_pickle=False)).float()
    except (OSError, ValueError, TypeError) as error:
        raise PreconditionError(
            f"cannot read the images {str(path)!r}: {str(error).splitlines()[0]}; "
            "write them with numpy.save, as floats (N, C, H, W), normalised as in training"
        ) from error
    return list(images.split(size))


def _example(input_size: tuple[int, ...] | None) -> Tensor | None:
    import torch

    return None if input_size is None else torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))


@contextmanager
def _working(what: str, silent: bool = False) -> Iterator[None]:
    """A spinner on a terminal; nothing elsewhere, and nothing where a progress bar will show."""
    from rich.console import Console

    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


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
