"""A transformed network on disk: model.safetensors and plan.json in one folder, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from fxfactor.errors import PreconditionError
from fxfactor.files import new_folder, require_place_for_folder
from fxfactor.graph.capture import ASSUMED, capture
from fxfactor.graph.questions import placeholders, shape_of
from fxfactor.pipeline import HISTORY, Change, Pipeline, Skip
from fxfactor.plan.plan import Plan

WEIGHTS, PLAN, ABOUT = "model.safetensors", "plan.json", "fxfactor"
SAVING = "saving the network"


def require_place(folder: str | Path) -> None:
    """Raise PreconditionError unless `save` can write to `folder`."""
    require_place_for_folder(folder, SAVING, marker=PLAN)


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
        "history": [{"kind": type(record).__name__, **asdict(record)} for record in qmodel.meta.get(HISTORY, ())],
    }
    with new_folder(folder, SAVING, marker=PLAN) as new:
        state = {key: value.detach().cpu().contiguous() for key, value in qmodel.state_dict().items()}
        save_file(state, new / WEIGHTS, metadata={ABOUT: json.dumps(about)})
        Plan.of(qmodel).save(new / PLAN)
    return Path(folder)


def load(folder: str | Path, model: nn.Module) -> GraphModule:
    """Return the network that was saved in `folder`. `model` is the original one; its weights do not matter.

    `model` may also be a graph that your own pipeline has transformed already: then only the weights are read.
    Raises PreconditionError where the folder is not one of ours or is damaged, or does not fit `model`.
    """
    from fxfactor.recipe import plan_passes

    about = read_about(folder)
    if isinstance(model, GraphModule) and HISTORY in model.meta:
        graph = capture(model, compare=False)
    else:
        plan = Plan.load(Path(folder) / PLAN)
        inputs = tuple(torch.zeros(shape, dtype=_dtype(model)) for shape in about["input_shapes"])
        graph = Pipeline(*plan_passes(plan, fit=False))(capture(model, inputs, compare=False)).graph
        graph.meta[ASSUMED] = about["input_assumed"]
        graph.meta[HISTORY] = tuple(_record(entry) for entry in about["history"])
    state = load_file(Path(folder) / WEIGHTS)
    try:
        graph.load_state_dict(state)
    except RuntimeError as error:
        raise PreconditionError(
            f"the weights in {str(folder)!r} do not fit this {type(model).__name__}: {str(error).splitlines()[-1].strip()}; "
            "pass the model that was saved, or a graph that went through the same passes"
        ) from error
    return graph


def read_about(folder: str | Path) -> dict[str, Any]:
    """What `save` noted beside the weights: source, input_shapes, history. Raises PreconditionError."""
    path = Path(folder) / WEIGHTS
    if not path.is_file() or not (Path(folder) / PLAN).is_file():
        raise PreconditionError(
            f"{str(folder)!r} is not a saved network: it must hold {WEIGHTS} and {PLAN}; pass a folder from fxfactor.save"
        )
    try:
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get(ABOUT, "null"))
    except (OSError, SafetensorError) as error:
        raise PreconditionError(
            f"cannot read {str(path)!r}: {error}; the file is damaged, save the network again"
        ) from error
    if about is None:
        raise PreconditionError(f"{str(path)!r} was not written by fxfactor.save; pass a folder that was")
    return about


def _record(entry: dict[str, Any]) -> Change | Skip:
    kind = entry.pop("kind")
    return Change(**{**entry, "into": tuple(entry["into"])}) if kind == "Change" else Skip(**entry)


def _dtype(model: nn.Module) -> torch.dtype:
    return next((p.dtype for p in model.parameters()), torch.float32)
