"""`fxfactor evaluate` and `fxfactor finetune`: accuracy measured, and won back by training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fxfactor.cli.options import (
    Device,
    ImageSize,
    Mean,
    Model,
    Precision,
    Pretrained,
    Resize,
    Std,
    TrustSource,
    Weights,
    parse_one_of,
    parse_rate,
    pictures_of,
)
from fxfactor.cli.output import Json, going_on, note, show, show_json, suggest
from fxfactor.cli.saved import Naming, is_saved
from fxfactor.errors import PreconditionError
from fxfactor.files import require_place_for_file, write_text

if TYPE_CHECKING:
    from torch import nn


LabelledImages = Annotated[
    Path,
    typer.Option(
        "--images",
        help='Labelled images: an .npz file with "x" (N, C, H, W) and class numbers "y" (N,), normalised as in training, or '
        "a folder with a folder of pictures for each class.",
        metavar="PATH",
    ),
]
BatchSize = Annotated[int, typer.Option(min=1, help="Images at a time.")]


def evaluate(
    networks: Annotated[
        list[str], typer.Argument(help="Saved folders, or networks named as for transform.", show_default=False)
    ],
    images: LabelledImages,
    weights: Weights = None,
    pretrained: Pretrained = False,
    model: Model = None,
    trust_source: TrustSource = False,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    batch_size: BatchSize = 100,
    device: Device = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File for [bold]report --accuracy[/]: shares by name.", metavar="FILE"),
    ] = None,
    as_json: Json = False,
) -> None:
    """Measure the accuracy of saved networks, and of the original where it is named too.

    [bold]Examples[/]

      fxfactor evaluate resnet18-l3 --images validation --image-size 224 --resize 256

      fxfactor evaluate my.nets:small small-l3 --model my.nets:small --weights small.pth --images test.npz
    """
    from fxfactor.cli.images import read_labelled

    if output is not None:
        require_place_for_file(output, "writing the accuracies")
    folders = [is_saved(each) for each in networks]
    names = [Path(each).resolve().name if saved else "original" for each, saved in zip(networks, folders, strict=True)]
    if len(set(names)) < len(names):
        raise PreconditionError(f"the networks must have different names, found {', '.join(names)}; rename a folder")
    if all(folders) and (weights is not None or pretrained):
        raise typer.BadParameter("saved folders have their own weights: leave out --weights, or name the original too")
    batches = read_labelled(images, pictures_of(image_size, resize, mean, std), batch_size)
    naming = Naming(model, trust_source, weights, pretrained, device)
    found = {name: _measured(each, naming, batches, name) for name, each in zip(names, networks, strict=True)}
    if output is not None:
        import json

        shares = {name: row["top1"] for name, row in found.items()}
        write_text(output, json.dumps(shares, indent=1) + "\n", "writing the accuracies")
        note(f"saved in {output}, for fxfactor report --accuracy {output}")
    if as_json:
        show_json(found)
        return
    from fxfactor.rich_table import new_table

    table = new_table()
    table.add_column("network")
    for head in ("images", "top-1", "top-5", "cross-entropy"):
        table.add_column(head, justify="right", no_wrap=True)
    for name, row in found.items():
        table.add_row(name, f"{row['images']:,}", f"{row['top1']:.2%}", f"{row['top5']:.2%}", f"{row['loss']:.4g}")
    show(table)


def _measured(source: str, naming: Naming, batches: Any, name: str) -> dict[str, Any]:
    """Share of the images whose label has the largest output, and one of the 5 largest; the mean cross-entropy."""
    import torch

    from fxfactor.cli.networks import named_model
    from fxfactor.progress import track

    network: nn.Module = (
        naming.load(source)
        if is_saved(source)
        else named_model(source, naming.weights, pretrained=naming.pretrained, device=naming.device)
    )
    network = network.eval()
    like = next(network.parameters())
    right, within5, loss = 0, 0, 0.0
    with torch.no_grad():
        for images, labels in track(batches, f"evaluating {name}"):
            outputs = _class_outputs(network, images.to(like), source)
            wanted = labels.to(outputs.device)
            if int(wanted.max()) >= outputs.shape[1]:
                raise PreconditionError(
                    f"a label is {int(wanted.max())} and {source!r} has {outputs.shape[1]} classes, 0 to "
                    f"{outputs.shape[1] - 1}; check that images and network belong together"
                )
            best = outputs.topk(min(5, outputs.shape[1]), 1).indices == wanted[:, None]
            right += int(best[:, 0].sum())
            within5 += int(best.any(1).sum())
            loss += float(torch.nn.functional.cross_entropy(outputs.float(), wanted, reduction="sum"))
    total = batches.images
    return {"images": total, "top1": right / total, "top5": within5 / total, "loss": loss / total}


def _class_outputs(network: nn.Module, images: Any, source: str) -> Any:
    """One output per class for each image. Raises PreconditionError where the network does not take the images."""
    from torch import Tensor

    try:
        outputs = network(images)
    except (RuntimeError, ValueError, IndexError) as error:
        raise PreconditionError(
            f"{source!r} does not take images of shape {tuple(images.shape)}: {str(error).splitlines()[0]}; give images of the "
            "size and channels that it was made for (--image-size)"
        ) from error
    if not isinstance(outputs, Tensor) or outputs.dim() != 2:
        shape = tuple(outputs.shape) if isinstance(outputs, Tensor) else type(outputs).__name__
        raise PreconditionError(f"evaluate is for classifiers, with outputs (N, classes); {source!r} gives {shape}")
    return outputs


def finetune(
    folder: Annotated[str, typer.Argument(help="Saved network to train.", show_default=False)],
    images: LabelledImages,
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder for the trained network.", metavar="FOLDER")],
    weights: Weights = None,
    pretrained: Pretrained = False,
    model: Model = None,
    trust_source: TrustSource = False,
    epochs: Annotated[int, typer.Option(min=1, help="Times that all images are seen.")] = 2,
    learning_rate: Annotated[
        Any,
        typer.Option(
            parser=parse_rate,
            metavar="NUMBER|try",
            help="Of Adam, at the start of a cosine; [bold]try[/] tries four, for a fifth more time.",
        ),
    ] = "2e-3",
    label_weight: Annotated[
        float, typer.Option(min=0.0, help="Weight of the labels beside the teacher's answers.")
    ] = 0.0,
    label_epochs: Annotated[
        int | None,
        typer.Option(min=1, help="Labels count in so many of the last epochs alone; in all if none is given."),
    ] = None,
    augment: Annotated[bool, typer.Option("--augment", help="Mirror and shift the images.")] = False,
    batch_norm: Annotated[
        str,
        typer.Option(
            parser=parse_one_of("fixed", "updated"),
            help="Statistics of batch norms: fixed, or updated by every batch.",
            metavar="fixed|updated",
        ),
    ] = "fixed",
    weight_limits: Annotated[
        str,
        typer.Option(
            parser=parse_one_of("learned", "largest"),
            help="Range of each channel's weights: learned, or the largest of them.",
            metavar="learned|largest",
        ),
    ] = "learned",
    oscillations: Annotated[
        str,
        typer.Option(
            parser=parse_one_of("free", "frozen"),
            help="Weights that jump to and fro between two levels: free, or frozen.",
            metavar="free|frozen",
        ),
    ] = "free",
    learn_thresholds: Annotated[
        bool, typer.Option("--learn-thresholds", help="Train the thresholds of activations too; they cost nothing.")
    ] = False,
    precision: Precision = "float32",
    batch_size: BatchSize = 64,
    seed: Annotated[int, typer.Option(min=0, help="Order of the images.")] = 0,
    checkpoint: Annotated[
        Path | None, typer.Option(help="Folder that every epoch is kept in; the same command goes on from it.")
    ] = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    device: Device = None,
    as_json: Json = False,
) -> None:
    """Train a saved network; with the original's weights the original is its teacher, else the labels are.

    [bold]Examples[/]

      fxfactor finetune resnet18-l3 --pretrained --images train --image-size 224 -o resnet18-tuned

      fxfactor finetune small-l3 --model my.nets:small --weights small.pth --images train.npz --epochs 4 -o small-tuned
    """
    import fxfactor
    from fxfactor.cli.images import Shuffled, read_labelled
    from fxfactor.storage.checkpoint import require_place

    if not is_saved(folder):
        raise PreconditionError(
            f"{folder!r} is no saved network; write one with fxfactor transform {folder} --output FOLDER"
        )
    require_place(output)
    pictures = pictures_of(image_size, resize, mean, std)
    loader = Shuffled(read_labelled(images, pictures, batch_size, "training set"))
    naming = Naming(model, trust_source, weights, pretrained, device).settled(folder)
    network = naming.load(folder)
    network = fxfactor.passes.LearnThresholds()(network).graph if learn_thresholds else network
    teacher = naming.original_of(folder) if weights is not None or pretrained else None
    if teacher is None:
        note("without --weights or --pretrained there is no teacher: training on the labels alone")
    how = "The same command starts anew; with --checkpoint FOLDER it would go on from the last epoch."
    if checkpoint is not None:
        how = f"The same command goes on from the last epoch in {checkpoint}."
    with going_on(how):
        told = fxfactor.finetune(
            network,
            loader,
            teacher=teacher,
            epochs=epochs,
            learning_rate=learning_rate,
            label_weight=label_weight,
            label_epochs=label_epochs,
            augment=fxfactor.flip_and_shift if augment else None,
            batch_norm=cast(Any, batch_norm),
            weight_limits=cast(Any, weight_limits),
            oscillations=cast(Any, oscillations),
            precision=cast(Any, precision),
            seed=seed,
            checkpoint=checkpoint,
        )
    for each in told:
        held = f", {each.frozen_weights:,} weights frozen" if oscillations == "frozen" else ""
        rate = f", learning rate {each.learning_rate:g}" if learning_rate is None else ""
        note(
            f"epoch {each.number + 1}: loss {each.loss:.4g}, {each.images:,} images in {each.seconds:.0f} s{rate}{held}"
        )
    fxfactor.save(network, output, source=naming.model)
    if as_json:
        show_json([vars(each) for each in told])
    suggest(f"saved in {output}", "export", output, f"{output}.onnx", model=model)
