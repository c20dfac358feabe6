"""The command line: the words of the library, on networks that are named."""

from fxfactor.cli.app import main

__all__ = ["main"]
