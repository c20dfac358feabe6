"""The error types: one base, told apart by what to do about them, named in the package."""

from __future__ import annotations

import inspect

import pytest

import fxfactor
from fxfactor import errors

TYPES = [value for value in vars(errors).values() if inspect.isclass(value) and issubclass(value, Exception)]


def test_all_errors_are_ours():
    assert {kind.__name__ for kind in TYPES} == {
        "FxfactorError",
        "CaptureError",
        "PreconditionError",
        "GraphError",
        "ExportError",
        "FinnError",
        "InfeasibleError",
    }
    assert all(issubclass(kind, fxfactor.FxfactorError) for kind in TYPES)


@pytest.mark.parametrize("kind", TYPES, ids=lambda kind: kind.__name__)
def test_every_error_is_public_and_documented(kind):
    assert getattr(fxfactor, kind.__name__) is kind
    assert kind.__doc__
