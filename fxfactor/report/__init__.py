"""Tables, pictures and one HTML page about transformed networks.

`report` writes the page; `plots` and `architecture` give matplotlib figures. matplotlib is imported when it is needed.
"""

from fxfactor.report.page import report

__all__ = ["report"]
