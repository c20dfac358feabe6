"""A QONNX file as a network in integers: see `fxfactor.finn.integer.walk`."""

from fxfactor.finn.integer.walk import Interpretation, interpret

__all__ = ["Interpretation", "interpret"]
