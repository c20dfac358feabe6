"""`fxfactor distributions` and `fxfactor report`,."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfactor.cli.options import (
    ImageSize,
    MaxImages,
    Mean,
    Model,
    Pretrained,
    Resize,
    Std,
    TrustSource,
    Weights,
    pictures_of,
)
from fxfactor.cli.output import Json, show, show_json, suggest
from fxfactor.cli.saved import Naming
from fxfactor.errors import PreconditionError
from fxfactor.files import require_place_for_file

if TYPE_CHECKING:
    from torch import nn
    from torch.fx import GraphModule

Folder = Annotated[
    list[Path],
    typer.Argument(help="Saved networks, folders of [bold]fxfactor transform --output[/].", show_default=False),
]


def distributions(
    folders: Folder,
    images: Annotated[
        Path,
        typer.Option(
            help="A .npy or .npz file of floats (N, C, H, W), as in training, or a folder of pictures.", metavar="PATH"
        ),
    ],
    weights: Weights = None,
    pretrained: Pretrained = False,
    model: Model = None,
    trust_source: TrustSource = False,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    max_images: MaxImages = None,
    output: Annotated[
        Path, typer.Option("--output", "-o", help="File to write: .json or .csv.", metavar="FILE")
    ] = Path("distributions.json"),
    as_json: Json = False,
) -> None:
    """Measure every layer of saved networks beside the original: ranges, quantization errors, how errors gather.

    [bold]Examples[/]

      fxfactor distributions resnet18-l3 --images images.npy --weights resnet18.pth

      fxfactor distributions l1 l2 l3 --images images.npy --weights resnet18.pth -o ladder.json
    """
    from fxfactor.analysis.distributions import distributions as measure
    from fxfactor.cli.images import read_images

    require_place_for_file(output, "writing the distributions", (".json", ".csv"))
    batches = read_images(images, pictures_of(image_size, resize, mean, std), max_images)
    naming = Naming(model, trust_source, weights, pretrained)
    original, variants, naming = _networks(folders, naming, with_weights=True)
    table = measure(original, variants, batches)
    table.to_csv(output) if output.suffix == ".csv" else table.to_json(output)
    if as_json:
        show_json([asdict(row) for row in table.rows])
    else:
        show(table)
    if output.suffix == ".json":
        named = naming.model if model is not None else None
        suggest(f"saved in {output}", "report", *folders, distributions=output, model=named)


def report(
    folders: Folder,
    distributions: Annotated[
        Path | None, typer.Option(help="JSON from [bold]fxfactor distributions[/] on these networks.", metavar="FILE")
    ] = None,
    accuracy: Annotated[
        Path | None, typer.Option(help='JSON of shares by folder name: {"original": 0.91, "l3": 0.89}.', metavar="FILE")
    ] = None,
    finn: Annotated[
        Path | None, typer.Option(help="JSON of [bold]fxfactor finn estimate -o[/].", metavar="FILE")
    ] = None,
    simulation: Annotated[
        Path | None, typer.Option(help="JSON of [bold]fxfactor finn simulate -o[/].", metavar="FILE")
    ] = None,
    synthesis: Annotated[
        Path | None, typer.Option(help="JSON of [bold]fxfactor finn synthesize -o[/].", metavar="FILE")
    ] = None,
    compressed: Annotated[
        Path | None, typer.Option(help="result.json of [bold]fxfactor compress[/].", metavar="FILE")
    ] = None,
    weights: Weights = None,
    model: Model = None,
    trust_source: TrustSource = False,
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
    from fxfactor.report.page import report as write

    require_place_for_file(output, "writing the report")
    table = None if distributions is None else Distributions.from_json(distributions)
    shares = None if accuracy is None else _read_object(accuracy, "accuracies", '{"original": 0.91, "l3": 0.89}')
    hardware = {
        "finn": _hardware(finn, "estimates", "fxfactor finn estimate -o", ()),
        "simulation": _hardware(simulation, "a simulation", "fxfactor finn simulate -o", ("streams", "is_right")),
        "synthesis": _hardware(synthesis, "counts by Yosys", "fxfactor finn synthesize -o", ("yosys", "not_counted")),
        "compressed": _hardware(compressed, "candidates", "fxfactor compress", ("candidates", "front", "best")),
    }
    original, variants, _ = _networks(folders, Naming(model, trust_source, weights), with_weights=weights is not None)
    path = write(variants, output, original=original, distributions=table, accuracy=shares, title=title, **hardware)
    print(f"saved in {path}")


def _hardware(path: Path | None, what: str, writer: str, keys: tuple[str, ...]) -> Any:
    """What one of FINN's commands wrote as JSON. Raises PreconditionError where the file holds something else."""
    if path is None:
        return None
    found = _read_object(path, what, f"{writer} writes them")
    if not all(key in found for key in keys):
        raise PreconditionError(
            f"required: {what}, as {writer} writes it; found: {str(path)!r} without {keys[0]!r}; write the file anew"
        )
    return found


def _read_object(path: Path, what: str, example: str) -> Any:
    """The JSON object in a file. Raises PreconditionError where it is something else."""
    from fxfactor.report.page import read_json

    try:
        found = read_json(path, what)
    except RecursionError:
        found = None
    if not isinstance(found, dict):
        raise PreconditionError(
            f"the {what} in {str(path)!r} must be a JSON object, found {type(found).__name__}; required: {example}"
        )
    return found


def _networks(
    folders: list[Path], naming: Naming, with_weights: bool
) -> tuple[nn.Module, dict[str, GraphModule], Naming]:
    """The original network, the saved ones by the names of their folders, and how they are named from now on."""
    names = [folder.resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise PreconditionError(f"the folders must have different names, found {', '.join(names)}; rename one")
    naming = naming.settled(folders[0])
    variants = {name: naming.load(folder) for name, folder in zip(names, folders, strict=True)}
    if not with_weights:
        return naming.original_of(folders[0]), variants, naming
    from fxfactor.cli.networks import named_model

    source = naming.source_of(folders[0])
    original = named_model(source, naming.weights, pretrained=naming.pretrained)
    return original, variants, naming
