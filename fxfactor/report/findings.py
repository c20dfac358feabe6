"""What a table of distributions says in words: where a network suffers most, and by what."""

from __future__ import annotations

from fxfactor.analysis.table import Distribution, Distributions

_MOSTLY = 0.8
"""Share of a layer's error from which on we name the factors, and not the rounding, as its cause."""


def findings(table: Distributions, variant: str, count: int = 3) -> list[str]:
    """Sentences on the layers that lose most on their own, on the end of the network, and on dead channels."""
    outputs = table.where(variant=variant, tensor="output")
    worst = sorted((row for row in outputs if row.layer_error), key=lambda row: -(row.layer_error or 0))[:count]
    found = [f"{row.site} alone is off by {row.layer_error:.0%}: {_cause(table, row)}." for row in worst]
    if outputs:
        last = outputs[-1]
        found.append(f"At the end of the network, {last.site}, {last.accumulated_error or 0:.0%} have gathered.")
    dying = [
        f"{(row.dead_after or 0) - row.dead_channels} of {row.channels} in {row.site} ({row.tensor})"
        for row in table.where(variant=variant)
        if row.dead_after is not None and row.dead_after > row.dead_channels
    ]
    if dying:
        more = f" and {len(dying) - 4} more" if len(dying) > 4 else ""
        found.append(f"Rounding makes channels constant: {', '.join(dying[:4])}{more}.")
    return found


def _cause(table: Distributions, output: Distribution) -> str:
    alone, exact = output.layer_error or 0.0, output.unrounded_error or 0.0
    if exact > _MOSTLY * alone:
        return f"its factors lose {exact:.0%} before anything is rounded"
    rows = [
        row for row in table.where(variant=output.variant, site=output.site) if row.sqnr_db is not None and row.bits
    ]
    if not rows:
        return "nothing at it is rounded"
    row = min(rows, key=lambda each: each.sqnr_db or 0.0)
    clipped = f", {row.clipped:.1%} of its values are clipped" if row.clipped and row.clipped > 0.001 else ""
    factors = f"its factors lose {exact:.0%}, and " if exact > 0.01 else ""
    return (
        f"{factors}the weakest of its tensors is {row.tensor} with {row.sqnr_db:.1f} dB at {row.bits} bits (its channels "
        f"use {row.channel_range_ratio:.0%} of its range on average{clipped})"
    )
