"""Networks by name: torchvision:NAME, timm:NAME, or what a function, class or variable of the user's own gives."""

from __future__ import annotations

import ast
import difflib
import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fxfactor.cli.faults import of_the_user
from fxfactor.cli.output import note, warn
from fxfactor.errors import PreconditionError
from fxfactor.files import finish_writing

if TYPE_CHECKING:
    from torch import nn

FORMS = "torchvision:NAME, timm:NAME or package.module:factory"


@dataclass(frozen=True)
class Name:
    """A network's name in its parts: `my.nets:build(num_classes=10)` is ("my.nets", "build", (), {"num_classes": 10})."""

    origin: str
    name: str
    arguments: tuple[Any, ...]
    options: dict[str, Any]

    @property
    def runs_code_of_its_own(self) -> bool:
        """Whether more is needed for it than what is in torchvision and timm: a module of somebody's, or a download."""
        return self.origin not in ("torchvision", "timm") or ":" in self.name or "pretrained" in str(self.options)


def parse_name(source: str) -> Name:
    """The parts of a network's name; arguments are Python literals and are never evaluated. Raises PreconditionError."""
    origin, colon, rest = source.partition(":")
    name, bracket, _ = rest.partition("(")
    if not colon or not origin or not name or "(" in origin:
        raise PreconditionError(f"a network is named {FORMS} or by a saved folder, found {source!r}")
    if not bracket:
        return Name(origin, name, (), {})
    try:
        call = ast.parse(f"f{rest[len(name) :]}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise ValueError("more than one call")
        options = {}
        for each in call.keywords:
            if each.arg is None:
                raise ValueError("** is no literal")
            options[each.arg] = ast.literal_eval(each.value)
        return Name(origin, name, tuple(ast.literal_eval(each) for each in call.args), options)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError) as error:
        raise PreconditionError(
            f"arguments of a network must be Python literals, as in my.nets:build(num_classes=10), found {source!r}"
        ) from error


def named_model(
    source: str, weights: Path | None = None, *, pretrained: bool = False, device: str | None = None
) -> nn.Module:
    """The network that `source` names, in eval mode, with the weights in a file or its published ones.

    Raises PreconditionError where there is none, and UserCodeError where the user's code raises.
    """
    from fxfactor.cli.weights import load_weights

    finish_writing(source)
    if Path(source).is_dir():
        raise PreconditionError(f"{source!r} is a saved network, which is factorized already; name the original model")
    if pretrained and weights is not None:
        raise PreconditionError("give --weights or --pretrained, not both")
    place = usable_device(device)
    name = parse_name(source)
    model, draw_again = _made(name, pretrained)
    if weights is not None:
        load_weights(model, weights)
    elif draw_again is not None and _differ(model, draw_again()):
        warn(
            f"{source} has RANDOM weights: give --weights FILE{'' if name.runs_code_of_its_own else ' or --pretrained'}; "
            "without, errors and accuracies say nothing about a trained network"
        )
    return model.eval().to(place)


def bare_model(source: str) -> nn.Module:
    """The network that `source` names, in eval mode, for weights to be loaded into: without any, and without a warning."""
    return _made(parse_name(source), pretrained=False)[0].eval()


def usable_device(device: str | None) -> Any:
    """The torch device of that name, the CPU if None. Raises PreconditionError where it is not there."""
    import torch

    try:
        place = torch.device(device or "cpu")
        torch.empty(0, device=place)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).splitlines()[0]
        raise PreconditionError(f"the device {device!r} cannot be used here: {reason}; give --device cpu") from error
    if place.type == "meta":
        raise PreconditionError("the device 'meta' holds no numbers; give --device cpu")
    return place


def _made(name: Name, pretrained: bool) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    """The network and, where random numbers were drawn for it, how to make another one with other numbers."""
    import torch

    if name.origin not in ("torchvision", "timm"):
        if pretrained:
            raise PreconditionError(
                f"--pretrained is for torchvision: and timm: networks; {name.origin}:{name.name} is your own: pass --weights "
                "FILE, or let the factory load them"
            )
        return _of_user(name)
    make = (_of_torchvision if name.origin == "torchvision" else _of_timm)(name, pretrained)
    torch.manual_seed(0)
    return make(), None if pretrained else make


def _differ(model: nn.Module, other: nn.Module) -> bool:
    """Whether two networks of one name have other weights: then they are random, and not loaded by the factory."""
    import torch

    pairs = zip(model.parameters(), other.parameters(), strict=False)
    return any(a.shape != b.shape or not torch.equal(a, b) for a, b in pairs)


def _of_torchvision(name: Name, pretrained: bool) -> Callable[[], Any]:
    import inspect
    import warnings

    try:
        from torchvision import models
    except ModuleNotFoundError as error:
        raise PreconditionError("torchvision is not installed; run pip install torchvision") from error
    require_listed(name, models.list_models(), "torchvision")
    builder = models.get_model_builder(name.name)
    options = {"weights_backbone": None} if "weights_backbone" in inspect.signature(builder).parameters else {}
    weights = "DEFAULT" if pretrained else None

    def make() -> Any:
        with warnings.catch_warnings(), _downloading(name):  # on how the weights of Inception and GoogLeNet are drawn
            warnings.simplefilter("ignore", FutureWarning)
            return builder(*name.arguments, **{"weights": weights, **options, **name.options})

    return make


def _of_timm(name: Name, pretrained: bool) -> Callable[[], Any]:
    try:
        import timm
    except ModuleNotFoundError as error:
        raise PreconditionError("timm is not installed; run pip install timm") from error
    if ":" not in name.name:
        require_listed(name, [*timm.list_models(), *timm.list_models(pretrained=True)], "timm")

    def make() -> Any:
        with _downloading(name):
            return timm.create_model(name.name, *name.arguments, **{"pretrained": pretrained, **name.options})

    return make


def require_listed(name: Name, known: list[str], where: str, what: str = "model") -> None:
    """Raise PreconditionError, with what is near, where the name is not among those that are known."""
    if name.name not in known:
        close = difflib.get_close_matches(name.name, known, n=3, cutoff=0.0)
        raise PreconditionError(f"{where} has no {what} {name.name!r}; did you mean {' or '.join(map(repr, close))}?")


@contextmanager
def _downloading(name: Name) -> Iterator[None]:
    try:
        yield
    except OSError as error:  # also what urllib and requests raise
        raise PreconditionError(
            f"cannot load the published weights of {name.origin}:{name.name}: {error}; check the connection, or pass "
            "--weights FILE"
        ) from error
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise PreconditionError(
            f"{name.origin} cannot make {name.name!r} with the arguments {[*name.arguments]} {name.options}: {error}"
        ) from error


@contextmanager
def current_folder_first() -> Iterator[None]:
    """Modules of the folder that the command is run in can be imported meanwhile, as with python -m, and only meanwhile."""
    here = str(Path.cwd())
    sys.path.insert(0, here)
    try:
        yield
    finally:
        if here in sys.path:
            sys.path.remove(here)


def _of_user(name: Name) -> tuple[nn.Module, Callable[[], nn.Module] | None]:
    import torch
    from torch import nn

    full = f"{name.origin}:{name.name}"
    with current_folder_first():
        found = _found_in_module(name)
    if isinstance(found, nn.Module):
        return found, None
    if not callable(found):
        raise PreconditionError(
            f"{full} must be a torch.nn.Module or give one when called, found {type(found).__name__}"
        )

    def make() -> nn.Module:
        with current_folder_first(), of_the_user(f"calling {full}"):
            model = found(*name.arguments, **name.options)
        if not isinstance(model, nn.Module):
            raise PreconditionError(
                f"{full} must be a torch.nn.Module or give one when called, found {type(model).__name__}"
            )
        return model

    torch.manual_seed(0)
    before = torch.get_rng_state()
    model = make()
    return model, None if torch.equal(before, torch.get_rng_state()) else make


def _found_in_module(name: Name) -> Any:
    try:
        with of_the_user(f"importing {name.origin!r}"):
            found: Any = importlib.import_module(name.origin)
    except PreconditionError as error:
        missing = error.__cause__
        if isinstance(missing, ModuleNotFoundError) and f"{name.origin}.".startswith(f"{missing.name}."):
            raise PreconditionError(
                f"there is no module {name.origin!r} here or installed; run the command where it can be imported"
            ) from error
        raise
    for part in name.name.split("."):
        if not hasattr(found, part):
            raise PreconditionError(
                f"module {name.origin!r} has no {name.name!r}; name a function, a class or a network in it"
            )
        found = getattr(found, part)
    note_where(name.origin)
    return found


def note_where(module: str) -> None:
    """With --verbose: which file a module of the user's came from."""
    from fxfactor.cli.output import is_verbose

    if is_verbose():
        note(f"{module} is {getattr(sys.modules.get(module), '__file__', 'built in')}")
