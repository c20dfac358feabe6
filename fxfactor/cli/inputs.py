"""What the command line is given, as objects: networks by name, weights, images; and the spinner meanwhile."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.fx import GraphModule


def named_graph(source: str, input_size: tuple[int, ...] | None) -> GraphModule:
    """The network in a saved folder, or the captured one that `source` names."""
    from fxfactor import capture

    with working("loading the network"):
        return _saved(source) if Path(source).is_dir() else capture(named_model(source), example_of(input_size))


def _saved(folder: str) -> GraphModule:
    from fxfactor.storage.checkpoint import load, read_about

    source = read_about(folder)["source"]
    if source is None:
        raise PreconditionError(
            f"{folder!r} does not say where its network comes from; save it with "
            'fxfactor.save(qmodel, folder, source="package.module:factory"), or load it in Python'
        )
    return load(folder, named_model(source))


def named_model(source: str, weights: Path | None = None) -> nn.Module:
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


def read_images(path: Path, size: int = 32) -> list[Tensor]:
    """Batches of the images in a .npy file. Raises PreconditionError where it is none."""
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


def example_of(input_size: tuple[int, ...] | None) -> Tensor | None:
    """One random image of the given size, as a batch."""
    import torch

    return None if input_size is None else torch.randn(1, *input_size, generator=torch.Generator().manual_seed(0))


@contextmanager
def working(what: str, silent: bool = False) -> Iterator[None]:
    """A spinner on a terminal; nothing elsewhere, and nothing where a progress bar will show."""
    from rich.console import Console

    console = Console(stderr=True)
    if silent or not console.is_terminal:
        yield
        return
    with console.status(what):
        yield
