"""One HTML page about a transformed network, or about several side by side: a single file that needs nothing else.

No script, no font and no picture comes from elsewhere; the pictures are SVG inside the page, in the page's own text colour.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import nn
from torch.fx import GraphModule

from fxfactor.analysis.table import ORIGINAL, Distributions
from fxfactor.errors import PreconditionError
from fxfactor.files import write_text
from fxfactor.graph.capture import capture
from fxfactor.report.architecture import architecture
from fxfactor.report.html import document, figure, folded
from fxfactor.report.sections import network as sections
from fxfactor.report.sections.finn import candidates_section, finn_section, simulation_section, synthesis_section
from fxfactor.report.style import to_svg

SINGLE = "transformed"
"""What `fxfactor.distributions` calls a network that comes without a name."""


def report(
    qmodel: GraphModule | Mapping[str, GraphModule],
    path: str | Path,
    *,
    original: nn.Module | None = None,
    distributions: Distributions | None = None,
    accuracy: Mapping[str, float] | None = None,
    finn: Any = None,
    simulation: Any = None,
    synthesis: Any = None,
    compressed: Any = None,
    title: str = "fxfactor report",
) -> Path:
    """Write a self-contained HTML page about `qmodel`, or about several networks by name, and return its path.

    It always has the costs, the table of layers, what was skipped and why, and the plan. original: the user's network, for
    the picture of the architecture before and after. distributions: the table of `fxfactor.distributions` on the same
    networks, for findings, pictures and all rows. accuracy: shares by variant, "original" for the original network ("transformed"
    for a single `qmodel`). finn: what `fxfactor.finn.estimate` gave, or its JSON; simulation and synthesis: what
    `fxfactor.finn.simulate` and `fxfactor.finn.synthesize` gave; compressed: what `fxfactor.compress` gave.

    Raises PreconditionError where `qmodel` is no transformed network, the table is about other networks, an accuracy is no
    share, matplotlib is missing (it is needed for pictures only), or the place cannot be written to.
    """
    variants = {SINGLE: qmodel} if isinstance(qmodel, GraphModule) else qmodel
    _require_networks(variants)
    shares = _shares(accuracy or {}, variants)
    if distributions is not None:
        _require_same(distributions, variants)
    measured = distributions is not None
    parts = [
        ("candidates", "Candidates", candidates_section(compressed)),
        ("costs", "Costs" if not any(share is not None for share in shares.values()) else "Costs and accuracy",
         sections.costs(variants, shares)),
        ("findings", "What suffers, and why", sections.words(distributions) if distributions else ""),
        ("finn", "On the FPGA", finn_section(finn)),
        ("simulation", "Simulated, clock by clock", simulation_section(simulation)),
        ("synthesis", "Counted by Yosys", synthesis_section(synthesis)),
        ("pictures", "Distributions", sections.pictures(distributions) + sections.worst_histograms(distributions)
         if distributions else ""),
        ("layers", "Layers", sections.layer_tables(variants)),
        ("skips", "Left alone, and why", sections.skips(variants)),
        ("architecture", "Architecture", _architecture(original, variants)),
        ("rows", "All numbers", sections.rows_table(distributions) if distributions else ""),
        ("plan", "Plan", sections.plans(variants)),
    ]  # fmt: skip
    head = sections.head(variants, shares)
    if not measured:
        head += (
            '<p class="soft">Without distributions: give the report what <code>fxfactor distributions</code> wrote.</p>'
        )
    write_text(path, document(title, parts, head), "writing the report")
    return Path(path)


def read_json(path: str | Path, what: str) -> Any:
    """What a JSON file holds. Raises PreconditionError where it is missing or is no JSON."""
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise PreconditionError(
            f"cannot read the {what} {str(path)!r}: {error}; check the path and the file"
        ) from error


def _require_networks(variants: Any) -> None:
    wrong = next((each for each in variants.values() if not isinstance(each, GraphModule)), None) if isinstance(
        variants, Mapping) else variants  # fmt: skip
    if wrong is not None or not variants:
        raise PreconditionError(
            f"a report needs what fxfactor.transform gives, or a dict of such, found {type(wrong or variants).__name__}"
            f"{'' if variants else ' without entries'}; transform the model first"
        )


def _require_same(table: Distributions, variants: Mapping[str, GraphModule]) -> None:
    if set(table.variants) != set(variants):
        raise PreconditionError(
            f"the distributions must be those of {', '.join(map(repr, variants))}, found {', '.join(map(repr, table.variants))}; "
            "measure these networks, or name them alike"
        )


def _shares(accuracy: Mapping[str, Any], variants: Mapping[str, GraphModule]) -> dict[str, float | None]:
    """The accuracies that the page knows where to put. Raises PreconditionError on any other."""
    for name, value in accuracy.items():
        if name not in (ORIGINAL, *variants):
            known = ", ".join(map(repr, (ORIGINAL, *variants)))
            raise PreconditionError(f"accuracy is given for {name!r}; known are {known}")
        if not isinstance(value, int | float) or isinstance(value, bool) or not 0 <= value <= 1:
            raise PreconditionError(
                f"the accuracy of {name!r} must be a share from 0 to 1, found {value!r}; divide percents by 100"
            )
    return {name: accuracy.get(name) for name in (ORIGINAL, *variants)}


def _architecture(original: nn.Module | None, variants: Mapping[str, GraphModule]) -> str:
    if original is None:
        return ""
    from fxfactor.graph.capture import as_graph

    name, after = list(variants.items())[-1]
    before = original if isinstance(original, GraphModule) else as_graph(original, after)
    picture = figure(to_svg(architecture(capture(before), after), "architecture"),
                     f"Before and after ({name}): layers, joins and poolings. A box reads site, in→out channels, kernel, "
                     "g groups, /stride, w weight bits, a activation bits.")  # fmt: skip
    return folded("show the two graphs", picture)
