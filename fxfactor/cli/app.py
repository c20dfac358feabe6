"""The command line: the words of the library, on networks that are named.

Only typer is imported here; torch comes with the work, so that `fxfactor --help` answers at once.
"""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from fxfactor.cli.compress import compress
from fxfactor.cli.explore import explore
from fxfactor.cli.faults import close_broken_pipe, explain
from fxfactor.cli.finn import app as finn
from fxfactor.cli.output import NORMAL, VERBOSE, command, loudness
from fxfactor.cli.recover import evaluate, finetune
from fxfactor.cli.report import distributions, report
from fxfactor.cli.saved import export, summary
from fxfactor.cli.search import search
from fxfactor.cli.transform import plan, transform

app = typer.Typer(
    name="fxfactor",
    no_args_is_help=True,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    help=(
        "Split a CNN's convolutions into depth-factorized subgraphs, quantize them with Brevitas, hand them to FINN.\n\n"
        "A network is named in one of four ways:\n\n"
        "  [bold]torchvision:resnet18[/]   a model of torchvision (random without --weights or --pretrained)\n\n"
        "  [bold]timm:resnet18[/]          a model of timm, timm:hf-hub:OWNER/NAME too\n\n"
        "  [bold]my.module:factory[/]      what your function, class or variable gives, also my.module:build(classes=10)\n\n"
        "  [bold]folder[/]                 what [bold]fxfactor transform --output[/] has written\n\n"
        "[bold]Start with[/]\n\n"
        "  fxfactor transform torchvision:resnet18 --pretrained -l 3 -b 4 -o resnet18-l3\n\n"
        "  fxfactor export resnet18-l3 resnet18.onnx\n\n"
        "Exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 130 stopped with Ctrl-C."
    ),
)


@app.callback(invoke_without_command=True)
def _options(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        from importlib.metadata import version as version_of

        print(version_of("fxfactor"))
        raise typer.Exit


for _each in (transform, plan, summary, export, evaluate, finetune, distributions, report, explore, search, compress):
    app.command()(command(_each))
app.add_typer(finn, name="finn")


def main(arguments: list[str] | None = None) -> None:
    """Run the command line. Exit codes: 0 done, 1 an error that is explained, 2 wrong usage, 130 stopped with Ctrl-C."""
    wanted = sys.argv[1:] if arguments is None else arguments
    try:
        app(args=arguments, prog_name="fxfactor")
    except BrokenPipeError:
        close_broken_pipe()
        sys.exit(1)
    except (Exception, KeyboardInterrupt) as error:
        with loudness(VERBOSE if {"-v", "--verbose"} & set(wanted) else NORMAL):
            code = explain(error)
        sys.exit(code)
