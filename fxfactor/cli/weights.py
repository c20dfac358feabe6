"""State dicts in the forms that people save them, and a clear list of what does not match."""

from __future__ import annotations

import argparse
import pickle
import struct
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.arrays import require_no_bomb
from fxfactor.cli.output import note
from fxfactor.errors import PreconditionError

if TYPE_CHECKING:
    from torch import Tensor, nn

AVERAGED = ("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema")
"""Keys under which training scripts keep the moving average of the weights, which is what they report accuracies of."""

PREFIXES = ("module.", "model.", "_orig_mod.", "net.", "network.", "backbone.", "encoder.", "student.", "ema_model.")
"""What DataParallel, Lightning, torch.compile and others put before every name."""

_SPARE = ("n_averaged", "num_batches_tracked", "total_ops", "total_params")
"""Counters that no output depends on; they may be missing, or be there too."""


def load_weights(model: nn.Module, path: Path) -> None:
    """Load the state dict in a .safetensors, .pt or .pth file into `model`.

    A state dict under a key of its own (`state_dict`, `model`, …), a moving average of the weights, which is preferred,
    and names with a prefix (`module.`, …) are found; what was taken is said. Raises PreconditionError where the file
    cannot be read without running code from it, and where names or shapes differ, with the list of them.
    """
    import torch

    content = _read(path)
    wanted = model.state_dict()
    candidates = list(_state_dicts(content, ""))
    if not candidates:
        raise PreconditionError(
            f"the weights {str(path)!r} hold no state dict, found {_described(content)}; save "
            "torch.save(model.state_dict(), file)"
        )
    options = [(key, prefix, state) for key, found in candidates for prefix, state in _without_prefixes(found)]
    key, prefix, state = max(options, key=lambda each: (_matching(each[2], wanted), _is_averaged(each[0])))
    _require_match(state, wanted, model, path)
    if key or prefix:
        others = ", ".join(repr(each) for each, _ in candidates if each and each != key)
        note(
            f"weights: {str(path)!r}{f' at {key!r}' if key else ''}{f', without the prefix {prefix!r}' if prefix else ''}"
            f"{f'; left aside: {others}' if others else ''}"
        )
    with torch.no_grad():
        model.load_state_dict({name: state.get(name, value) for name, value in wanted.items()})


def _read(path: Path) -> Any:
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        require_no_bomb(path)
        with torch.serialization.safe_globals([argparse.Namespace]):  # in many checkpoints; it runs nothing
            return torch.load(path, "cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        text = str(error)
        found = next((line.strip() for line in text.splitlines() if "GLOBAL" in line or "global" in line), text[:200])
        raise PreconditionError(
            f"cannot read the weights {str(path)!r} without running code from it: {found.splitlines()[0]}; save only the "
            "tensors, with torch.save(model.state_dict(), file) or safetensors"
        ) from error
    except (OSError, SafetensorError, RuntimeError, ValueError, EOFError, KeyError, TypeError, AttributeError,
            IndexError, struct.error) as error:  # fmt: skip  # what torch.load raises on damaged files
        reason = (str(error).splitlines() or [""])[0]
        raise PreconditionError(
            f"cannot read the weights {str(path)!r}: {type(error).__name__}: {reason}; pass a state dict saved by "
            "torch.save(model.state_dict(), file) or safetensors"
        ) from error


def _state_dicts(content: Any, key: str, depth: int = 0) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """Every dictionary of tensors in a checkpoint, with the keys that lead to it."""
    from torch import Tensor

    if not isinstance(content, Mapping):
        return
    tensors = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if tensors:
        yield key, tensors
    for name, value in content.items():
        if depth < 3 and isinstance(value, Mapping) and "optim" not in str(name):
            yield from _state_dicts(value, f"{key}.{name}".removeprefix("."), depth + 1)


def _without_prefixes(state: dict[str, Tensor]) -> Iterator[tuple[str, dict[str, Tensor]]]:
    """The state dict as it is, and without the prefixes that all or some of its names have."""
    taken = ""
    while True:
        yield taken, state
        found = next((each for each in PREFIXES if any(name.startswith(each) for name in state)), None)
        if found is None:
            return
        taken += found
        state = {name.removeprefix(found): value for name, value in state.items() if name.startswith(found)}


def _is_averaged(key: str) -> bool:
    return any(part in AVERAGED for part in key.split("."))


def _matching(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> int:
    return sum(name in wanted and wanted[name].shape == value.shape for name, value in state.items())


def _require_match(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor], model: nn.Module, path: Path) -> None:
    """Raise PreconditionError with the list of names that are missing, unexpected, or have another shape."""
    missing = [name for name in wanted if name not in state and name.rpartition(".")[2] not in _SPARE]
    unexpected = [name for name in state if name not in wanted and name.rpartition(".")[2] not in _SPARE]
    shapes = [
        f"{name} {tuple(value.shape)} instead of {tuple(wanted[name].shape)}"
        for name, value in state.items()
        if name in wanted and value.shape != wanted[name].shape
    ]
    infinite = [
        name
        for name, value in state.items()
        if name in wanted and value.is_floating_point() and not bool(value.isfinite().all())
    ]
    kinds = [name for name, value in state.items()
             if name in wanted and value.is_floating_point() != wanted[name].is_floating_point()]  # fmt: skip
    problems = {
        "of another shape": shapes,
        "missing in the file": missing,
        "unknown to the network": unexpected,
        "not finite": infinite,
        "of another kind of number (int or float)": kinds,
    }
    if any(problems.values()):
        lines = "\n".join(f"  {len(names)} {what}: {_listed(names)}" for what, names in problems.items() if names)
        raise PreconditionError(
            f"the weights {str(path)!r} do not fit {type(model).__name__}, {_matching(state, wanted)} of {len(wanted)} "
            f"tensors match:\n{lines}\npass the state dict of this very model (arguments, such as "
            "my.nets:build(num_classes=10), included)"
        )


def _listed(names: list[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def _described(content: Any) -> str:
    if isinstance(content, Mapping):
        return f"a dictionary with {', '.join(repr(key) for key in list(content)[:5])}" if content else "an empty one"
    return type(content).__name__
