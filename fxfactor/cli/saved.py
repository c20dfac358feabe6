"""Saved folders on the command line: `fxfactor summary`, `fxfactor export`, and how a folder's network is found safely.

A folder says where its network comes from. Importing that would run code that whoever wrote the folder has chosen, so
it is done only for networks of torchvision's and timm's own, for those named with --model, or on --trust-source.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from fxfactor.cli.networks import FORMS, bare_model, named_model, parse_name, usable_device
from fxfactor.cli.options import InputSize, Model, Pretrained, Source, TrustSource, Weights
from fxfactor.cli.output import Json, show_json, tell, working
from fxfactor.errors import PreconditionError
from fxfactor.files import finish_writing, require_place_for_file

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule


@dataclass(frozen=True)
class Naming:
    """How the original network of saved folders is found: named with --model, or as a folder says, if that is allowed."""

    model: str | None = None
    trust_source: bool = False
    weights: Path | None = None
    pretrained: bool = False
    device: str | None = None

    def source_of(self, folder: str | Path) -> str:
        """The name of the folder's network. Raises PreconditionError where nobody that may has named it."""
        from fxfactor.storage.checkpoint import read_about

        source = read_about(folder)["source"]
        if self.model is not None:
            return self.model
        if source is None:
            raise PreconditionError(
                f"{str(folder)!r} does not say where its network comes from; name it with --model, as {FORMS}"
            )
        if parse_name(source).runs_code_of_its_own:
            if not self.trust_source:
                raise PreconditionError(
                    f"{str(folder)!r} says that its network is {source!r}; importing that runs code, and the folder may be a "
                    f"stranger's: name the network yourself with --model {source!r}, or trust the folder with --trust-source"
                )
            tell(
                f"{str(folder)!r} says that its network is {source!r}: importing and calling it, as --trust-source says"
            )
        return source

    def settled(self, folder: str | Path) -> Naming:
        """The same with the folder's network as if it had been named: asked for and shown once."""
        return replace(self, model=self.source_of(folder))

    def original_of(self, folder: str | Path) -> nn.Module:
        """The folder's network before it was transformed; its weights matter only as a teacher."""
        if self.weights is None and not self.pretrained:
            return _without_warning(self.source_of(folder), self.device)
        return named_model(self.source_of(folder), self.weights, pretrained=self.pretrained, device=self.device)

    def require_folder(self, source: str) -> None:
        """Raise PreconditionError where folders' options are given with `source`, which is none."""
        if self.model is not None or self.trust_source:
            raise PreconditionError(
                f"--model and --trust-source are for saved folders, and there is no folder {source!r}"
            )

    def load(self, folder: str | Path) -> GraphModule:
        """The saved network. Raises PreconditionError where it is damaged or its network may not be imported."""
        from fxfactor.storage.checkpoint import load

        return load(folder, _without_warning(self.source_of(folder), self.device))


def _without_warning(source: str, device: str | None) -> nn.Module:
    """A network whose weights are overwritten: that they are random is nothing to warn of."""
    return bare_model(source).to(usable_device(device))


def is_saved(source: str) -> bool:
    """Whether `source` is a folder; what a killed process left of one is brought to an end first."""
    finish_writing(source)
    return Path(source).is_dir()


def graph_of(source: str, naming: Naming, input_size: tuple[int, ...] | None) -> GraphModule:
    """The network in a saved folder, or the captured one that `source` names."""
    from fxfactor import capture

    if is_saved(source):
        with working("loading the network"):
            return naming.load(source)
    naming.require_folder(source)
    with working("loading the network"):
        model = named_model(source, naming.weights, pretrained=naming.pretrained, device=naming.device)
        return capture(model, example_of(input_size, model))


def example_of(input_size: tuple[int, ...] | None, model: nn.Module) -> Tensor | None:
    """One random image of the given size, as a batch, where the model's parameters are."""
    import torch

    if input_size is None:
        return None
    image = torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))
    return image.to(next(model.parameters(), image))


class Target(str, Enum):
    """Who reads the exported file."""

    qonnx = "qonnx"
    finn = "finn"


def summary(
    source: Source,
    input_size: InputSize = None,
    model: Model = None,
    trust_source: TrustSource = False,
    as_json: Json = False,
) -> None:
    """Print the table of a saved network, or of one that is still as it was.

    [bold]Examples[/]

      fxfactor summary resnet18-l3

      fxfactor summary small-l3 --model my.nets:small

      fxfactor summary torchvision:resnet18 --input-size 3x64x64
    """
    import fxfactor

    graph = graph_of(source, Naming(model, trust_source), input_size)
    found = fxfactor.summary(graph, show=not as_json)
    if as_json:
        show_json(found.to_dict())


def export(
    source: Source,
    path: Annotated[Path, typer.Argument(help="The .onnx file to write.", show_default=False)],
    target: Annotated[
        Target, typer.Option(help="finn: rewrite into the forms that FINN accepts first.")
    ] = Target.qonnx,
    input_size: InputSize = None,
    model: Model = None,
    trust_source: TrustSource = False,
    weights: Weights = None,
    pretrained: Pretrained = False,
    as_json: Json = False,
) -> None:
    """Write a saved network as QONNX, execute the file in qonnx and compare.

    A file that computes something else than the network is not left behind.

    [bold]Examples[/]

      fxfactor export resnet18-l3 resnet18.onnx

      fxfactor export small-l3 small.onnx --model my.nets:small --target finn
    """
    import fxfactor

    require_place_for_file(path, "exporting", (".onnx",))
    if is_saved(source) and (weights is not None or pretrained):
        raise typer.BadParameter("a saved folder has its own weights: leave out --weights and --pretrained")
    graph = graph_of(source, Naming(model, trust_source, weights, pretrained), input_size)
    with working("exporting and executing the file"):
        written = fxfactor.export(graph, path, target=target.value)
    if as_json:
        facts: dict[str, Any] = {
            "path": str(written.path),
            "target": target.value,
            "relative_difference": written.relative_difference,
            "rounding_ties": written.rounding_ties,
        }
        show_json(facts)
        return
    ties = f", {written.rounding_ties} rounding ties" if written.rounding_ties else ""
    print(f"{written.path}: executed in qonnx, relative difference {written.relative_difference:.1g}{ties}")
