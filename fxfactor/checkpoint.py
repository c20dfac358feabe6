"""A transformed network on disk: model.safetensors and plan.json in one folder, no pickle."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn
from torch.fx import GraphModule

from fxfactor.capture import capture
from fxfactor.errors import PreconditionError
from fxfactor.files import new_folder
from fxfactor.graph import placeholders, shape_of
from fxfactor.pipeline import HISTORY, Change, Pipeline, Skip
from fxfactor.plan import Plan

WEIGHTS, PLAN = "model.safetensors", "plan.json"


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
    records = qmodel.meta.get(HISTORY, ())
    extra = {
        "source": source,
        "input_shapes": [list(shape_of(node)) for node in placeholders(qmodel)],
        "history": [{"kind": type(record).__name__, **asdict(record)} for record in records],
    }
    with new_folder(folder, "saving the network", marker=PLAN) as new:
        state = {key: value.detach().cpu().contiguous() for key, value in qmodel.state_dict().items()}
        save_file(_without_aliases(state), new / WEIGHTS)
        (new / PLAN).write_text(_with_extra(Plan.of(qmodel), extra), encoding="utf-8")
    return Path(folder)


def load(folder: str | Path, model: nn.Module) -> GraphModule:
    """Give back the network that was saved in `folder`. `model` is the original one; its weights do not matter.

    `model` may also be a graph that your own pipeline has transformed already: then only the weights are read.
    Raises PreconditionError where the folder is not one of ours or is damaged, or does not fit `model`.
    """
    from fxfactor.transform import plan_passes

    data = read_plan(folder)
    extra = data.pop("saved")
    if isinstance(model, GraphModule) and HISTORY in model.meta:
        graph = capture(model)
    else:
        graph = capture(model, tuple(torch.zeros(shape, dtype=_dtype(model)) for shape in extra["input_shapes"]))
        graph = Pipeline(*plan_passes(Plan.from_dict(data), fit=False))(graph).graph
        graph.meta[HISTORY] = tuple(_record(entry) for entry in extra["history"])
    path = Path(folder) / WEIGHTS
    try:
        state = load_file(path)
    except (OSError, SafetensorError) as error:
        raise PreconditionError(f"cannot read {str(path)!r}: {error}; the folder is damaged, save it again") from error
    _load_state(graph, state, path)
    return graph


def read_plan(folder: str | Path) -> dict[str, Any]:
    """plan.json of a saved folder as a dict, with what `save` added under "saved". Raises PreconditionError."""
    path = Path(folder) / PLAN
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise PreconditionError(
            f"{str(folder)!r} is not a saved network: cannot read {PLAN} ({error.strerror}); pass a folder from fxfactor.save"
        ) from error
    except json.JSONDecodeError as error:
        raise PreconditionError(f"{str(path)!r} is damaged at line {error.lineno}: {error.msg}") from error
    if not isinstance(data, dict) or "saved" not in data:
        raise PreconditionError(f"{str(path)!r} is a plan alone, not a saved network; pass a folder from fxfactor.save")
    return data
