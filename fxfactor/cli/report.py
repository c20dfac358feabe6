"""`fxfactor distributions` and `fxfactor report`, to be mounted by `fxfactor.cli`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from fxfactor.errors import PreconditionError

Folder = Annotated[
    list[Path],
    typer.Argument(help="Saved networks, folders of [bold]fxfactor transform --output[/].", show_default=False),
]
Weights = Annotated[
    Path | None, typer.Option(help="State dict of the original: .safetensors, .pt or .pth.", metavar="FILE")
]
Model = Annotated[
    str | None,
    typer.Option(help="The original, where the folder does not name it: package.module:factory.", metavar="SOURCE"),
]


def distributions(
    folders: Folder,
    images: Annotated[Path, typer.Option(help="A .npy file of floats (N, C, H, W), as in training.", metavar="FILE")],
    weights: Weights = None,
    model: Model = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .json or .csv.", metavar="FILE")
    ] = Path("distributions.json"),
) -> None:
    """Measure every layer of saved networks beside the original: ranges, quantization errors, how errors gather.

    [bold]Examples[/]

      fxfactor distributions resnet18-l3 --images images.npy --weights resnet18.pth

      fxfactor distributions l1 l2 l3 --images images.npy --weights resnet18.pth -o ladder.json
    """
    from rich import print as show

    from fxfactor.analysis.distributions import distributions as measure
    from fxfactor.cli.inputs import read_images

    if output.suffix not in (".json", ".csv"):
        raise PreconditionError(f"the file to write must end in .json or .csv, found {str(output)!r}")
    original, variants = _networks(folders, model, weights)
    table = measure(original, variants, read_images(images))
    table.to_csv(output) if output.suffix == ".csv" else table.to_json(output)
    show(table)
    print(f"saved in {output}; next: fxfactor report {' '.join(map(str, folders))} --distributions {output}")


def report(
    folders: Folder,
    distributions: Annotated[
        Path | None, typer.Option(help="JSON from [bold]fxfactor distributions[/] on these networks.", metavar="FILE")
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help='JSON of shares by folder name: {"original": 0.91, "l3": 0.89}.', metavar="FILE")
    ] = None,
    finn: Annotated[Path | None, typer.Option(help="JSON of FINN's estimates.", metavar="FILE")] = None,
    weights: Weights = None,
    model: Model = None,
    title: Annotated[str, typer.Option(help="Heading of the page.")] = "fxfactor report",
    output: Annotated[Path, typer.Option("--output", "-o", help="The page to write.", metavar="FILE")] = Path(
        "report.html"
    ),
) -> None:
    """Write one self-contained HTML page about saved networks: costs, layers, distributions, reasons, plan.

    [bold]Example[/]

      fxfactor report resnet18-l3 --distributions distributions.json -o resnet18.html
    """
    from fxfactor.analysis.table import Distributions
    from fxfactor.report.page import read_json
    from fxfactor.report.page import report as write

    original, variants = _networks(folders, model, weights)
    path = write(
        variants,
        output,
        original=original,
        distributions=None if distributions is None else Distributions.from_json(distributions),
        accuracy=None if accuracy is None else read_json(accuracy, "accuracies"),
        finn=None if finn is None else read_json(finn, "estimates"),
        title=title,
    )
    print(f"saved in {path}")


def _networks(folders: list[Path], source: str | None, weights: Path | None) -> tuple[Any, dict[str, Any]]:
    """The original network and the saved ones, by the names of their folders."""
    from fxfactor.cli.inputs import named_model
    from fxfactor.storage.checkpoint import load, read_about

    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise PreconditionError(f"the folders must have different names, found {', '.join(names)}; rename one")
    source = source or read_about(folders[0])["source"]
    if source is None:
        raise PreconditionError(
            f"{str(folders[0])!r} does not say where its network comes from; name it with --model package.module:factory"
        )
    original = named_model(source, weights)
    return original, {name: load(folder, original) for name, folder in zip(names, folders, strict=True)}
