"""Folding by fxfactor: how parallel every hardware layer is and where its memory lies, chosen for all layers together.

FINN's SetFolding takes one layer after the other and raises SIMD before PE until it is fast enough, whatever that costs. Here
every layer has candidates with their cycles and prices, and an integer program takes one for each layer.

Runs in FINN's process, which need not have fxfactor (finn-plus brings scipy): the modules import each other by relative
names and nothing else of fxfactor. `program.py` and `formulas.py` need no FINN.
"""
