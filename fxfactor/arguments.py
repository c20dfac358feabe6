"""Arguments of public functions: of the kind that the annotations say, or refused by name before anything is done."""

from __future__ import annotations

import functools
import inspect
import numbers
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, ParamSpec, TypeVar

from fxfactor.errors import FxfactorError, PreconditionError

P = ParamSpec("P")
R = TypeVar("R")

KINDS: dict[Any, tuple[type, ...]] = {int: (numbers.Integral,), float: (numbers.Real,)}
"""What is taken for a number: numpy's are, True and False are not."""


def checked(
    function: Callable[P, R], error: type[FxfactorError] = PreconditionError, but: Collection[str] = ()
) -> Callable[P, R]:
    """Refuse arguments of another kind than `function`'s annotations say, with the argument's name.

    Before: a function with annotations. After: the same, raising `error` where an argument is of another class, is no number,
    no mapping, cannot be walked or called. Values are the function's own affair: which words a Literal allows, how large a
    number may be, and what a loader yields, which is walked once only. A name that is not there at run time is not checked,
    nor arguments in `but`, of which the function itself has more to say.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def call(*args: P.args, **kwargs: P.kwargs) -> R:
        for name, value in signature.bind(*args, **kwargs).arguments.items():
            hint = _hints(function).get(name, Any)
            if name not in but and not fits(value, hint):
                raise error(
                    f"required: {function.__qualname__}({name}=…), {described(hint)}; found: {_shown(value)}; see its help()"
                )
        return function(*args, **kwargs)

    return call


@functools.cache
def _hints(function: Callable[..., Any]) -> dict[str, Any]:
    """Argument -> what it is annotated with, evaluated."""
    found: dict[str, Any] = {}
    names = inspect.unwrap(function).__globals__
    for parameter in inspect.signature(function).parameters.values():
        if isinstance(parameter.annotation, str):
            try:
                found[parameter.name] = eval(parameter.annotation, names)
            except NameError:  # imported for type checkers alone
                continue
    return found


def fits(value: Any, hint: Any) -> bool:
    """Whether a value is of the kind of an annotation; unknown kinds of annotations fit everything."""
    if hint is Any:
        return True
    if hint is None or hint is type(None):
        return value is None
    origin = typing.get_origin(hint)
    if origin is typing.Union or origin is types.UnionType:
        return any(fits(value, each) for each in typing.get_args(hint))
    if origin is typing.Literal:
        return isinstance(value, tuple({type(each) for each in typing.get_args(hint)}))
    if origin is tuple:
        return _is_tuple(value, typing.get_args(hint))
    if origin is not None and isinstance(origin, type):
        return _is_collection(value, origin, typing.get_args(hint))
    if hint in KINDS:
        return isinstance(value, KINDS[hint]) and not isinstance(value, bool)
    if inspect.isclass(hint) and not getattr(hint, "_is_protocol", False):
        return isinstance(value, hint)
    return True


def _is_tuple(value: Any, inner: tuple[Any, ...]) -> bool:
    if not isinstance(value, tuple):
        return False
    if len(inner) == 2 and inner[1] is Ellipsis:
        return all(fits(each, inner[0]) for each in value)
    return len(value) == len(inner) and all(map(fits, value, inner))


def _is_collection(value: Any, origin: type, inner: tuple[Any, ...]) -> bool:
    """Text, tensors and modules can be walked, but are never meant as a collection."""
    import torch

    if origin.__name__ == "Callable":
        return callable(value)
    if isinstance(value, (str, bytes, torch.Tensor, torch.nn.Module)):
        return False
    if origin is Iterable:  # a data set has no __iter__, and is walked all the same
        if not (isinstance(value, Iterable) or hasattr(value, "__getitem__")):
            return False
    elif not isinstance(value, origin):
        return False
    if isinstance(value, Mapping) and len(inner) == 2:
        return all(fits(key, inner[0]) and fits(each, inner[1]) for key, each in value.items())
    if isinstance(value, Collection) and len(inner) == 1:
        return inner[0] is Any or all(fits(each, inner[0]) for each in value)
    return True


def described(hint: Any) -> str:
    """An annotation in words that a user knows."""
    if hint is None or hint is type(None):
        return "None"
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Union or origin is types.UnionType:
        return " or ".join(dict.fromkeys(map(described, inner)))
    if origin is typing.Literal:
        return ", ".join(map(repr, inner))
    if origin is tuple:
        return f"a tuple of {described(inner[0])}" if inner[1:] == (Ellipsis,) else f"a tuple of {len(inner)}"
    if getattr(origin, "__name__", "") == "Callable":
        return "a function"
    if isinstance(origin, type):
        items = "" if inner[-1] is Any or len(inner) != 1 else f" of {described(inner[0])}"
        return f"{WORDS.get(origin.__name__, origin.__name__)}{items}"
    name = getattr(hint, "__name__", str(hint))
    return WORDS.get(name, name if name == "Any" else f"a {name}")


WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "True or False",
    "str": "text",
    "Module": "a torch.nn.Module",
    "GraphModule": "a network that fxfactor.capture or fxfactor.transform gave",
    "Iterable": "a loader, list or other iterable",
    "Sequence": "a list or tuple",
    "Mapping": "a dict",
    "list": "a list",
    "dict": "a dict",
}


def _shown(value: Any) -> str:
    text = " ".join(repr(value).split())
    return f"{text if len(text) <= 60 else text[:57] + '...'} ({type(value).__name__})"
