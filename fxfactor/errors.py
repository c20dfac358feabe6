"""What can go wrong, as types: every message says what was required, what was found, where, and what to do."""

from __future__ import annotations


class FxfactorError(Exception):
    """Base of all errors that fxfactor raises on purpose."""


class CaptureError(FxfactorError):
    """The model cannot be brought into the normal form (see `fxfactor.capture`)."""


class PreconditionError(FxfactorError):
    """A call was given something it cannot work on: an unknown site, a bad value, a graph in another form."""


class GraphError(FxfactorError):
    """A graph broke the normal form; after a pass this is a defect of that pass."""


class ExportError(FxfactorError):
    """A file could not be written, or what was written does not compute what the model computes."""


class FinnError(FxfactorError):
    """FINN is missing, refused the model, or stopped."""


class InfeasibleError(FinnError):
    """No folding is fast enough, or none fits the board.

    `resource`: what binds (lut, bram18, dsp or uram), None where it is the speed or several together; `missing`: how much more
    of it every folding needs.
    """

    resource: str | None = None
    missing: float = 0.0
