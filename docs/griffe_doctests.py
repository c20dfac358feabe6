"""mkdocstrings shows the examples of our docstrings (`>>> …`) as code."""

from __future__ import annotations

import re
from typing import Any

import griffe

_EXAMPLE = re.compile(r"(?:^[ \t]*>>> .*\n?(?:^[ \t]*(?!>>>)\S.*\n?)*)+", re.MULTILINE)


class Doctests(griffe.Extension):
    """Put every run of examples into a block of code."""

    def on_instance(self, *, obj: Any, **_: Any) -> None:
        """Rewrite the docstring of an object that was read."""
        if obj.docstring is not None:
            obj.docstring.value = as_code(obj.docstring.value)


def as_code(text: str) -> str:
    """The text with each run of examples fenced, without doctest's directives."""
    plain = re.sub(r"[ \t]*# doctest: .*", "", text)
    return _EXAMPLE.sub(lambda found: f"\n```pycon\n{found[0].rstrip()}\n```\n", plain)
