"""`fxfactor transform` and `fxfactor plan`."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from fxfactor.cli.options import (
    ActivationBits,
    BitsOfAdditions,
    BitsOption,
    Device,
    ImageSize,
    InputSize,
    Keep,
    LevelOption,
    MaxImages,
    Mean,
    Original,
    Precision,
    Pretrained,
    Resize,
    Std,
    WeightBits,
    Weights,
    Width,
    pictures_of,
)
from fxfactor.cli.output import Json, note, show_json, suggest, working
from fxfactor.files import require_place_for_file

if TYPE_CHECKING:
    from fxfactor.recovery.guarded import Recover


def transform(
    source: Original,
    level: LevelOption = None,
    bits: BitsOption = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    join_bits: BitsOfAdditions = None,
    width: Width = 1.0,
    plan: Annotated[
        Path | None, typer.Option(help="Plan from [bold]fxfactor plan[/], instead of level and bits.", metavar="FILE")
    ] = None,
    keep: Keep = None,
    input_size: InputSize = None,
    weights: Weights = None,
    pretrained: Pretrained = False,
    calibration: Annotated[
        Path | None,
        typer.Option(
            "--calibration",
            "--images",
            help="Images to fit factors and ranges to: a .npy or .npz file of floats (N, C, H, W), a folder of pictures, or a "
            "dataset of torchvision's.",
            metavar="PATH",
        ),
    ] = None,
    image_size: ImageSize = None,
    resize: Resize = None,
    mean: Mean = None,
    std: Std = None,
    max_images: MaxImages = None,
    round_weights: Annotated[
        bool | None,
        typer.Option(
            "--round/--no-round",
            help="Round the weights for the outputs, not to the nearest level: seconds. Done below 8 bits if nothing is said.",
        ),
    ] = None,
    reconstruct: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="Round, then bring each block's outputs to the original's in so many steps: minutes.",
            metavar="STEPS",
        ),
    ] = None,
    precision: Precision = "float32",
    device: Device = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Folder to save the result in.", metavar="FOLDER")
    ] = None,
    as_json: Json = False,
) -> None:
    """Factorize and quantize a network, print the table, save the result.

    [bold]Examples[/]

      fxfactor transform torchvision:resnet18 -l 3 -b 4 -o resnet18-l3

      fxfactor transform torchvision:resnet18 --pretrained -l 3 -b 4 --images photos --image-size 224 -o resnet18-l3

      fxfactor transform "my.nets:build(num_classes=10)" --input-size 3x32x32 -l depthwise --keep head

      fxfactor transform torchvision:resnet18 --plan plan.json --weights mine.pth

      fxfactor transform my.nets:small -l 3 -b 4 --calibration train.npy --reconstruct 1000 -o small-l3
    """
    import fxfactor
    from fxfactor.cli.images import read_images
    from fxfactor.cli.networks import named_model
    from fxfactor.cli.saved import example_of
    from fxfactor.storage.checkpoint import require_place

    if calibration is None and (round_weights or reconstruct is not None):
        raise typer.BadParameter("--round and --reconstruct need images: give --calibration PATH")
    if reconstruct is not None and round_weights is False:
        raise typer.BadParameter("--reconstruct rounds the weights first: leave out --no-round")
    wanted = _wanted_bits(bits, weight_bits, activation_bits)
    if plan is not None and (level is not None or wanted is not None or width != 1 or join_bits is not None):
        raise typer.BadParameter("give --plan, or --level, --bits, --join-bits and --width, not both")
    pictures = pictures_of(image_size, resize, mean, std, input_size)
    if output is not None:
        require_place(output)
    settings: dict[str, Any] = {"level": level, "bits": wanted, "width": width, "join_bits": join_bits}
    if plan is not None:
        settings = {"plan": fxfactor.Plan.load(plan)}
    images = None if calibration is None else read_images(calibration, pictures, max_images)
    model = named_model(source, weights, pretrained=pretrained, device=device)
    with working("factorizing and quantizing", silent=images is not None):
        qmodel = fxfactor.transform(
            model,
            **settings,
            keep=tuple(keep or ()),
            example_inputs=example_of(input_size, model),
            calibration=images,
            recover=_recovery(round_weights, reconstruct),
            steps=reconstruct or 1000,
            precision=cast(Any, precision),
        )
    found = fxfactor.summary(qmodel, show=not as_json)
    if as_json:
        show_json(found.to_dict())
    if output is not None:
        fxfactor.save(qmodel, output, source=source)
        own = None if source.startswith(("torchvision:", "timm:")) else source
        suggest(f"saved in {output}", "export", output, f"{output}.onnx", model=own)


def _recovery(round_weights: bool | None, reconstruct: int | None) -> Recover | None:
    if reconstruct is not None:
        return "reconstruct"
    return None if round_weights is None else "round" if round_weights else "none"


def plan(
    source: Original,
    level: LevelOption = 3,
    bits: BitsOption = None,
    weight_bits: WeightBits = None,
    activation_bits: ActivationBits = None,
    join_bits: BitsOfAdditions = None,
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
    from fxfactor.cli.networks import bare_model
    from fxfactor.cli.saved import example_of

    if output is not None:
        require_place_for_file(output, "saving the plan")
    with working("reading the network"):
        model = bare_model(source)
        graph = capture(model, example_of(input_size, model))
    both = _wanted_bits(bits, weight_bits, activation_bits) or (None, None)
    made = Plan.uniform(graph, level, *both, keep=tuple(keep or ()), width=width, join_bits=join_bits)
    if output is None:
        print(made.to_json(), end="")
        return
    made.save(output)
    size = "" if input_size is None else f" --input-size {'x'.join(map(str, input_size))}"
    words = shlex.join(["fxfactor", "transform", source, "--plan", str(output)])
    note(f"saved in {output}; edit it, then: {words}{size}")


def _wanted_bits(
    bits: int | None, weights: int | None, activations: int | None
) -> tuple[int | None, int | None] | None:
    both = (bits if weights is None else weights, bits if activations is None else activations)
    return None if both == (None, None) else both
