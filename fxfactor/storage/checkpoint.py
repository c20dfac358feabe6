"""A transformed network on disk: model.safetensors and plan.json in one folder, no pickle."""

from __future__ import annotations

import json
import math
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.files import finish_writing, new_folder, require_place_for_folder
from fxfactor.graph.capture import ASSUMED, capture
from fxfactor.graph.questions import is_quantizer, placeholders, shape_of
from fxfactor.passes.learn_thresholds import LEARNED, LearnThresholds
from fxfactor.pipeline import HISTORY, Change, Judged, Pipeline, Skip
from fxfactor.plan.plan import Plan
from fxfactor.plan_passes import plan_passes
from fxfactor.quantization.brevitas_layers import bits_of

WEIGHTS, PLAN, ABOUT = "model.safetensors", "plan.json", "fxfactor"
SAVING = "saving the network"


def require_place(folder: str | Path) -> None:
    """Raise PreconditionError unless `save` can write to `folder`."""
    require_place_for_folder(folder, SAVING, marker=PLAN)


@partial(checked, but=("qmodel",))
def save(qmodel: GraphModule, folder: str | Path, source: str | None = None) -> Path:
    """Write `folder` with the weights, the plan, the input shapes and what the passes did; whole or not at all.

    `source` names where the original model comes from ("torchvision:resnet18", "package.module:factory"), so that the
    command line can load the folder without being told. An earlier folder of ours is replaced, any other is refused.
    Raises PreconditionError where `qmodel` is no captured graph, or the place cannot be written to.
    """
    if not isinstance(qmodel, GraphModule):
        raise PreconditionError(
            f"save needs what fxfactor.transform gives, found {type(qmodel).__name__}; transform the model first"
        )
    about = {
        "source": source,
        "input_assumed": bool(qmodel.meta.get(ASSUMED)),
        "input_shapes": [list(shape_of(node)) for node in placeholders(qmodel)],
        "bits": _bits(qmodel),
        "learned_thresholds": [list(settings) for settings in qmodel.meta.get(LEARNED, ())],
        "history": [{"kind": type(record).__name__, **asdict(record)} for record in qmodel.meta.get(HISTORY, ())],
    }
    with new_folder(folder, SAVING, marker=PLAN) as new:
        state = {key: value.detach().cpu().contiguous() for key, value in qmodel.state_dict().items()}
        save_file(state, new / WEIGHTS, metadata={ABOUT: json.dumps(about)})
        Plan.of(qmodel).save(new / PLAN)
    return Path(folder)


@checked
def load(folder: str | Path, model: nn.Module) -> GraphModule:
    """Return the network that was saved in `folder`. `model` is the original one; its weights do not matter.

    `model` may also be a graph that your own pipeline has transformed already: then only the weights are read.
    Raises PreconditionError where the folder is not one of ours or is damaged, or does not fit `model`.
    """
    about = read_about(folder)
    state = _read_weights(Path(folder) / WEIGHTS)
    if isinstance(model, GraphModule) and HISTORY in model.meta:
        graph = capture(model, compare=False)
    else:
        plan = Plan.load(Path(folder) / PLAN)
        like = next(model.parameters(), torch.empty(0))
        inputs = tuple(torch.zeros(shape).to(like) for shape in about["input_shapes"])
        captured = capture(model, inputs, compare=False)
        plan.require_fits(captured)
        curves = tuple(LearnThresholds(*settings) for settings in about["learned_thresholds"])
        graph = Pipeline(*plan_passes(plan, fit=False), *curves)(captured).graph
        if about["bits"] is not None:
            _require_bits(about["bits"], graph, folder)
        graph.meta[ASSUMED] = about["input_assumed"]
        graph.meta[HISTORY] = tuple(_record(entry) for entry in about["history"])
    _require_kinds(state, graph, folder)
    try:
        graph.load_state_dict(state)
    except RuntimeError as error:
        raise PreconditionError(
            f"the weights in {str(folder)!r} do not fit this {type(model).__name__}: {str(error).splitlines()[-1].strip()}; "
            "pass the model that was saved, or a graph that went through the same passes"
        ) from error
    return graph


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `save` noted beside the weights: source, input_assumed, input_shapes, bits, learned_thresholds, history.

    Nothing that it names is imported. Raises PreconditionError where the folder is not one of ours or is damaged.
    """
    finish_writing(folder)
    path = Path(folder) / WEIGHTS
    if not path.is_file() or not (Path(folder) / PLAN).is_file():
        raise PreconditionError(
            f"{str(folder)!r} is not a saved network: it must hold {WEIGHTS} and {PLAN}; pass a folder from fxfactor.save"
        )
    try:
        with safe_open(path, framework="pt") as file:
            text = (file.metadata() or {}).get(ABOUT)
    except (OSError, SafetensorError) as error:
        raise PreconditionError(
            f"cannot read {str(path)!r}: {error}; the file is damaged, save the network again"
        ) from error
    if text is None:
        raise PreconditionError(f"{str(path)!r} was not written by fxfactor.save; pass a folder that was")
    try:
        # folders of earlier versions do not tell bits and learned thresholds
        about = {"bits": None, "learned_thresholds": [], **json.loads(text)}
        _require_sound(about)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError, PreconditionError) as error:
        raise PreconditionError(
            f"the notes in {str(path)!r} are damaged ({type(error).__name__}: {error}); save the network again"
        ) from error
    return cast("dict[str, Any]", about)


MOST_ELEMENTS = 2**27
"""Numbers in one input of a saved network: 512 MiB in float32."""

MOST_RUNS = 8
"""Runs of passes.LearnThresholds; one for each number of bits would be seven."""


def _require_sound(about: dict[str, Any]) -> None:
    """Raise ValueError, KeyError, TypeError or AttributeError where the notes are not what `save` writes."""
    source, shapes = about["source"], about["input_shapes"]
    if not (source is None or (isinstance(source, str) and source.isprintable())):
        raise ValueError(f"source must be a name or null, found {source!r}")
    if not isinstance(about["input_assumed"], bool) or not isinstance(shapes, list) or not shapes:
        raise ValueError("input_assumed must be true or false, input_shapes a list")
    for shape in shapes:
        if not all(type(size) is int and size > 0 for size in shape):
            raise ValueError(f"an input shape must be a list of positive ints, found {shape!r}")
        if math.prod(shape) > MOST_ELEMENTS:
            raise ValueError(f"an input of shape {shape} has more than {MOST_ELEMENTS:,} numbers")
    if about["bits"] is not None and not all(bits is None or type(bits) is int for bits in about["bits"].values()):
        raise ValueError("bits must be ints or null")
    if len(about["learned_thresholds"]) > MOST_RUNS:
        raise ValueError(
            f"learned_thresholds must be at most {MOST_RUNS} pairs, found {len(about['learned_thresholds'])}"
        )
    for settings in about["learned_thresholds"]:
        LearnThresholds(*settings)
    for entry in about["history"]:
        record = asdict(_record(entry))
        texts = [record.get("site", record.get("step")), *record.get("into", ()), record.get("reason", "")]
        if not all(isinstance(text, str) and text.isprintable() for text in texts):
            raise ValueError(f"the history must be printable text, found {entry!r}")
        numbers = ("relative_error", "output_error", "agreement", "images", "kept")
        wanted = float | int if entry["kind"] == "Judged" else float | int | None
        if not all(
            isinstance(record.get(name, 0), wanted if name == "output_error" else float | int | None)
            for name in numbers
        ):
            raise ValueError(f"errors in the history must be numbers, found {entry!r}")


def _read_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors in a file. Raises PreconditionError where one of them is not finite."""
    try:
        state = load_file(path)
    except (OSError, SafetensorError, ValueError, KeyError, AttributeError) as error:  # such as a dtype torch lacks
        raise PreconditionError(
            f"cannot read {str(path)!r}: {type(error).__name__}: {error}; the file is damaged, save the network again"
        ) from error
    for name, tensor in state.items():
        if tensor.is_floating_point() and not bool(torch.isfinite(tensor.float()).all()):
            raise PreconditionError(
                f"{name!r} in {str(path)!r} has values that are not finite; the training has diverged or the file is "
                "damaged: save a network whose weights are numbers"
            )
    return state


def _require_kinds(state: dict[str, torch.Tensor], graph: GraphModule, folder: str | Path) -> None:
    """Raise PreconditionError where a tensor has another dtype than in `graph`: loading would convert it silently."""
    wanted = graph.state_dict()
    for name, tensor in state.items():
        if name in wanted and tensor.is_floating_point() != wanted[name].is_floating_point():
            raise PreconditionError(
                f"the weights in {str(folder)!r} do not fit: {name!r} must be {_name(wanted[name])}, found {_name(tensor)}; "
                "pass a folder from fxfactor.save"
            )


def _bits(graph: GraphModule) -> dict[str, int | None]:
    """Bits of every quantizer of activations, by path."""
    return {path: bits_of(module) for path, module in graph.named_modules() if is_quantizer(module)}


def _require_bits(wanted: dict[str, int | None], graph: GraphModule, folder: str | Path) -> None:
    """Raise PreconditionError where the plan gives a quantizer other bits than it had: nothing else would tell."""
    found = _bits(graph)
    for path in {**wanted, **found}:
        if wanted.get(path) != found.get(path):
            raise PreconditionError(
                f"{path!r} has {wanted.get(path)} bits in {str(folder)!r} and {found.get(path)} as its plan gives them: it was "
                "changed by other passes; pass a graph that went through the same ones"
            )


def _name(tensor: torch.Tensor) -> str:
    return str(tensor.dtype).removeprefix("torch.")


def _record(entry: dict[str, Any]) -> Change | Skip | Judged:
    fields = {key: value for key, value in entry.items() if key != "kind"}
    if entry["kind"] == "Change":
        return Change(**{**fields, "into": tuple(fields["into"])})
    if entry["kind"] == "Skip":
        return Skip(**fields)
    if entry["kind"] == "Judged":
        return Judged(**fields)
    raise ValueError(f"a record must be a Change, a Skip or a Judged, found {entry['kind']!r}")
