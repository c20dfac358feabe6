"""How the cost of finding a plan grows: with layers, choices, images, candidates and workers; docs/scaling.md.

    python benchmarks/scaling.py cifar      ResNet-20 and ResNet-32: prices, sensitivities, program, candidates
    python benchmarks/scaling.py workers    ResNet-20: the same work by one process and by two, in turn
    python benchmarks/scaling.py resnet50   ResNet-50 at 224×224, random weights and images: one candidate of each part, and 1,000

The first two need CIFAR-10 and trained weights: see data.py. Prices need finn-plus. Seconds are wall time: run it alone.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from data import find
from torch import Tensor, nn

import fxfactor
from fxfactor.finn.estimation import estimate_network
from fxfactor.finn.target import Target
from fxfactor.plan.budget import Budget
from fxfactor.plan.plan import Plan
from fxfactor.planning.board import board_limits, price_space
from fxfactor.planning.plans import best_plan, for_all
from fxfactor.planning.search import LEVELS
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import Space, space_of
from fxfactor.quantization.plain_copy import freeze
from fxfactor.workers import Crew

BITS = (2, 3, 4, 6, 8)


class Seconds(dict[str, float]):
    """Wall seconds of pieces of work, by their names."""

    @contextmanager
    def of(self, name: str) -> Iterator[None]:
        start = time.perf_counter()
        yield
        self[name] = time.perf_counter() - start


def say(**row: Any) -> None:
    """A row, rounded."""
    print(
        json.dumps({name: round(value, 2) if isinstance(value, float) else value for name, value in row.items()}),
        flush=True,
    )


def size_of(space: Space) -> dict[str, int]:
    """What the cost of a space depends on."""
    shapes = sum(len(each) for each in space.shapes.values())
    runs = sum(
        len(space.shapes[name]) * (len(space.weight_bits[name]) + len(space.activation_bits[name]))
        for name in space.shapes
    )
    return {"layers": len(space.shapes), "shapes": shapes, "layer runs": runs,
            "choices": sum(len(list(space.layers(name))) for name in space.shapes)}  # fmt: skip


def cifar() -> None:
    """Each part of a search, with one thing larger at a time."""
    data = find()
    images, _ = data.cifar10("train")
    for depth, levels, bits, count in (
        (20, (0, 3), BITS, 128),
        (20, LEVELS, BITS, 128),
        (20, LEVELS, BITS, 256),
        (20, LEVELS, (4, 8), 128),
        (32, LEVELS, BITS, 128),
    ):
        model = data.cifar_resnet(depth)
        batches = list(images[:count].split(64))
        graph = fxfactor.capture(model, images[:1]).eval()
        space = space_of(graph, levels, bits)
        target, took = Target("ZCU104", target_fps=2000), Seconds()
        with took.of("prices"):
            priced = price_space(graph, space, target)
        with took.of("sensitivities"):
            errors = measure_errors(graph, batches, space)
        limits = for_all(priced.join_bits, board_limits(Budget(lut=0.3), priced.whole, target))
        with took.of("program"):
            plan = best_plan(priced, errors, limits, "recovered")
        took.update(candidate(model, plan, batches, images[:1000], target))
        say(network=f"ResNet-{depth}", images=count, **size_of(space), **took)


def workers(rounds: int) -> None:
    """The same work by one process and by two, in turn."""
    data = find()
    images, labels = data.cifar10("train")
    model, batches = data.cifar_resnet(20), list(images[:256].split(64))
    graph = fxfactor.capture(model, images[:1]).eval()
    space = space_of(graph, LEVELS, BITS)
    target = Target("ZCU104", target_fps=2000)

    def explored(crew: Crew) -> Any:
        with tempfile.TemporaryDirectory() as folder:
            return fxfactor.explore(
                model, batches, [(images[:1000], labels[:1000])], levels=(0, 1, 2, 3), bits=(8, 4), workers=crew.workers,
                engine=crew.engine, state=Path(folder) / "state.sqlite",
            )  # fmt: skip

    parts: dict[str, Callable[[Crew], Any]] = {
        "prices": lambda crew: price_space(graph, space, target, crew),
        "sensitivities": lambda crew: measure_errors(graph, batches, space, crew),
        "8 candidates of explore": explored,
    }
    for name, part in parts.items():
        ratios = []
        for _ in range(rounds):
            took = Seconds()
            for count, label in ((1, "one"), (2, "two")):
                with took.of(label):
                    part(Crew(count))
            ratios.append(took["one"] / took["two"])
            say(part=name, **took, ratio=ratios[-1])
        say(part=name, median_ratio=statistics.median(ratios), least=min(ratios), most=max(ratios))


def resnet50(images: int, candidates: int, nodes: int) -> None:
    """The parts of a compression of ResNet-50, each once, and what so many candidates would take on so many nodes of one core."""
    from torchvision.models import resnet50 as build

    torch.manual_seed(0)
    model = build(weights=None).eval()
    batches = list(torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0)).split(4))
    took = Seconds()
    with took.of("capture"):
        graph = fxfactor.capture(model, batches[0][:1]).eval()
    space = space_of(graph, LEVELS, (4, 8))
    target = Target("U250", target_fps=200)
    with took.of("prices"):
        price_space(graph, space, target)
    with took.of("sensitivities"):
        measure_errors(graph, batches, space)
    say(network="ResNet-50", images=images, **size_of(space), **took)
    one = candidate(model, Plan.uniform(graph, 3, 4, 4), batches, torch.cat(batches), target)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    each, before = sum(one.values()), took["prices"] + took["sensitivities"]
    alone = took["capture"] + before + candidates * each
    shared = took["capture"] + before / min(nodes, len(space.shapes)) + candidates / nodes * each
    say(peak_gib=peak, **one, hours_alone=alone / 3600, hours_shared=shared / 3600, candidates=candidates, nodes=nodes)


def candidate(model: nn.Module, plan: Plan, batches: Sequence[Tensor], test: Tensor, target: Target) -> Seconds:
    """What every candidate needs: made and rounded, run on test images, estimated."""
    took = Seconds()
    with took.of("made"):
        network = fxfactor.transform(model, plan=plan, calibration=batches)
    with took.of("tested"), torch.no_grad():
        for part in test.split(100):
            freeze(network)(part)
    with took.of("estimated"):
        estimate_network(network, batches[0][:1], target)
    return took


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("cifar", "workers", "resnet50"))
    parser.add_argument("--rounds", type=int, default=3, help="workers: how often")
    parser.add_argument("--images", type=int, default=16, help="resnet50: images")
    parser.add_argument("--candidates", type=int, default=1000, help="resnet50: candidates to reckon with")
    parser.add_argument("--nodes", type=int, default=100, help="resnet50: nodes to reckon with, a thread each")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "cifar":
        cifar()
    elif options.what == "workers":
        workers(options.rounds)
    else:
        resnet50(options.images, options.candidates, options.nodes)


if __name__ == "__main__":
    main()
