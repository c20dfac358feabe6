"""Exploration and search beside the naive ways, measured in one run.

    python benchmarks/exploration.py grid       ResNet-20 / CIFAR-10: 7 levels × 5 bit widths, walked and one by one
    python benchmarks/exploration.py widths     ResNet-20 / CIFAR-10: the front of one width and that of four
    python benchmarks/exploration.py search     ResNet-20 / CIFAR-10: fxfactor.search as it is, with one width and with four
    python benchmarks/exploration.py budgets    ResNet-20 / CIFAR-10: searched, uniform and mixed-precision plans by budget
    python benchmarks/exploration.py board      ResNet-20 / CIFAR-10: plans within a part of a board, by what may be chosen
    python benchmarks/exploration.py resnet50   search on ResNet-50 at 224×224: time and memory

All but the last need CIFAR-10 and trained weights: see data.py. Calibration and every choice use training images
only; the 1,000 test images are used for the figures that are reported.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data import find

import fxfactor
from fxfactor.exploration.rung import top1
from fxfactor.plan.plan import Plan
from fxfactor.planning.plans import Limits, best_plan, candidates, distance, for_all
from fxfactor.planning.search import BITS, LEVELS
from fxfactor.planning.sensitivity import measure_errors
from fxfactor.planning.space import Space, space_of
from fxfactor.quantization.plain_copy import freeze

GRID_BITS = (2, 3, 4, 6, 8)
BUDGETS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.25)
COMPARED = ("both", "output", "weighted")


class Clock:
    """Wall and CPU seconds since it was made."""

    def __init__(self) -> None:
        self.wall, self.cpu = time.perf_counter(), time.process_time()

    def __str__(self) -> str:
        return f"{self.wall_seconds:.0f} s wall, {time.process_time() - self.cpu:.0f} s CPU"

    @property
    def wall_seconds(self) -> float:
        return time.perf_counter() - self.wall

    @property
    def cpu_seconds(self) -> float:
        return time.process_time() - self.cpu


class Cifar:
    """The trained ResNet-20; training images: 256 to calibrate, 512 to choose between plans; 1,000 test images."""

    def __init__(self) -> None:
        data = find()
        images, _ = data.cifar10("train")
        test_images, test_labels = data.cifar10("test")
        self.model = data.cifar_resnet(20)
        self.calibration = list(images[:256].split(64))
        self.choosing = list(images[:512].split(64))
        self.test = _batches(test_images, test_labels)

    def accuracy(self, plan: Plan) -> float:
        """Top-1 on the test images of the network that the plan makes."""
        made = fxfactor.transform(self.model, plan=plan, calibration=self.calibration, recover="none")
        return top1(freeze(made), self.test)


def _batches(images: Any, labels: Any) -> list[Any]:
    return list(zip(images.split(100), labels.split(100), strict=True))


def grid(data: Cifar, levels: range, bits: tuple[int, ...]) -> None:
    """The whole grid walked by fxfactor.explore, and every candidate from scratch."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        walked = fxfactor.explore(
            data.model, data.calibration, data.test, levels=levels, bits=bits, state=Path(folder) / "state.sqlite"
        )
        walk = clock.cpu_seconds
        print(f"walked: {clock}", flush=True)
    clock, naive = Clock(), []
    for candidate in walked.candidates:
        made = fxfactor.transform(
            data.model,
            level=int(candidate.level),
            bits=(candidate.weight_bits, candidate.activation_bits),
            calibration=data.calibration,
            recover="none",
        )
        naive.append(replace(candidate, metric=top1(made.eval(), data.test)))
        print(candidate.key, f"walked {candidate.metric:.3f}, from scratch {naive[-1].metric:.3f}", flush=True)
    print(f"from scratch: {clock}; {clock.cpu_seconds / walk:.1f} times the walk's CPU time")
    other = fxfactor.Exploration(tuple(naive))
    print(walked)
    mine, theirs = walked.hypervolume(), other.hypervolume()
    print(f"hypervolume: walked {mine:.4g}, from scratch {theirs:.4g}, ratio {mine / theirs:.4f}")


def fronts(data: Cifar, levels: range, bits: tuple[int, ...], widths: Sequence[float]) -> None:
    """The grid at several widths, and how much of the area under its front the first width alone has."""
    with tempfile.TemporaryDirectory() as folder:
        clock = Clock()
        found = fxfactor.explore(
            data.model, data.calibration, data.test, levels=(*levels, "depthwise"), bits=bits, widths=widths,
            state=Path(folder) / "state.sqlite", progress=lambda each: print(each.rung, each.metric, flush=True),
        )  # fmt: skip
    print(f"walked: {clock}")
    print(found)
    narrow = fxfactor.Exploration(tuple(each for each in found.candidates if each.width == widths[0]))
    for name, result in (("all widths", found), (f"width {widths[0]:g}", narrow)):
        points = ", ".join(f"{each.rung} at {each.weight_bits} bits" for each in result.front())
        print(f"{name}: front {points}")
        for share in (0.02, 0.01, 0.005, 0.0025):
            whole = next(each for each in found.candidates if each.level == "0").macs * 32 * 32
            best = max(
                (each for each in result.done if each.bops <= share * whole), key=lambda e: e.metric, default=None
            )
            text = "nothing" if best is None else f"{best.metric:.3f} ({best.rung} at {best.weight_bits} bits)"
            print(f"  within {share:.2%} of the BOPs at 32 bits: {text}")


def searched(data: Cifar, shares: tuple[float, ...], widths: tuple[float, ...]) -> None:
    """Test accuracy of what fxfactor.search gives by its defaults, with the first of `widths` alone and with all."""
    for share in shares:
        for given in dict.fromkeys((widths[:1], widths)):
            clock = Clock()
            plan = fxfactor.search(data.model, data.calibration, fxfactor.Budget(bops=share), widths=given)
            print(f"{share:.2%} of the BOPs, widths {given}: {data.accuracy(plan):.3f}, {clock}", flush=True)


class Judge:
    """Distance of a plan's network from the original on training images, and its test accuracy; each measured once."""

    def __init__(self, data: Cifar) -> None:
        self.data = data
        self.distances: dict[str, float] = {}
        self.accuracies: dict[str, float] = {}

    def distance(self, plan: Plan) -> float:
        key = replace(plan, explanation=None).to_json()
        if key not in self.distances:
            self.distances[key] = distance(self.data.model, plan, self.data.choosing)
        return self.distances[key]

    def accuracy(self, plan: Plan) -> float:
        key = replace(plan, explanation=None).to_json()
        if key not in self.accuracies:
            self.accuracies[key] = self.data.accuracy(plan)
        return self.accuracies[key]

    def best(self, plans: Sequence[Plan]) -> tuple[float, float]:
        """Test accuracy and distance of the plan of least distance."""
        plan = min(plans, key=self.distance)
        return self.accuracy(plan), self.distance(plan)


def budgets(data: Cifar, shares: tuple[float, ...], measures: tuple[Any, ...], levels: range) -> None:
    """Accuracy under a budget of BOPs: searched, by the program alone, best uniform, mixed precision without factors."""
    graph = fxfactor.capture(data.model, data.calibration[0][:1]).eval()
    space = space_of(graph, LEVELS, BITS)
    clock = Clock()
    errors = measure_errors(graph, data.calibration, space)
    print(f"sensitivity: {clock}; fp32 {top1(graph, data.test)}", flush=True)
    judge = Judge(data)
    whole = replace(space, shapes={name: shapes[:1] for name, shapes in space.shapes.items()})
    for share in shares:
        limits, row = for_all(space.join_bits, fxfactor.Budget(bops=share).limits(space.whole)), {"budget": share}
        solving = Clock()
        found = candidates(space, errors, limits, measures)
        row["solve s"] = round(solving.wall_seconds, 1)
        chosen = min(found, key=judge.distance)
        row["searched"], row["of"] = judge.best(found), len(found)
        row["pieces"] = sum(layer.groups is not None for layer in chosen.layers.values())
        row["program alone, both"] = judge.best([best_plan(space, errors, limits, "both")])
        try:
            row["mixed precision, whole"] = judge.best([best_plan(whole, errors, limits, each) for each in measures])
        except fxfactor.PreconditionError:
            row["mixed precision, whole"] = "none fits"
        uniform = dict(_uniform(data, space, limits[8]["bops"], levels))
        row["uniform"] = judge.best(list(uniform.values()))
        row["uniform plan"] = min(uniform, key=lambda name: judge.distance(uniform[name]))
        print(json.dumps(row), flush=True)


def _uniform(data: Cifar, space: Space, most: float, levels: range) -> Iterator[tuple[str, Plan]]:
    """Of every level the largest uniform plan within the budget, with 8 bits where tensors are added as in a searched plan."""
    graph = fxfactor.capture(data.model, data.calibration[0][:1]).eval()
    for level in levels:
        fitting = []
        for weight in BITS:
            for activation in BITS:
                plan = Plan.uniform(graph, level, weight, activation)
                bops = sum(
                    space.costs(name, next(s for s in space.shapes[name] if s.groups == layer.groups), layer)["bops"]
                    for name, layer in plan.layers.items()
                )
                if bops <= most:
                    fitting.append((bops, -abs(weight - activation), f"level {level}, {weight}/{activation}", plan))
        if fitting:
            yield sorted(fitting, key=lambda each: each[:2])[-1][2:]


def board(
    data: Cifar, name: str, target_fps: int, budget: fxfactor.Budget, widths: Sequence[float], save: Path | None
) -> None:
    """The plan within a part of a board by what the program may choose, estimated whole, and its accuracy rounded."""
    from fxfactor.planning.board import board_limits, plan_within, price_space, target_of

    target = target_of(name, 5, target_fps, budget, None)
    graph = fxfactor.capture(data.model, data.calibration[0][:1]).eval()
    space = space_of(graph, LEVELS, GRID_BITS, widths=widths, join_bits=(4, 6, 8))
    clock = Clock()
    errors = measure_errors(graph, data.calibration, space)
    print(f"sensitivity: {clock}", flush=True)
    clock = Clock()
    priced = price_space(graph, space, target)
    print(f"prices of {len(priced.hardware):,} choices: {clock.wall_seconds:.0f} s wall", flush=True)
    limits = board_limits(budget, priced.whole, target)
    alone = replace(priced, join_bits=(8,))
    one = replace(alone, hardware={key: foldings[:1] for key, foldings in alone.hardware.items()})
    for what, allowed in (("one folding", one), ("all foldings", alone), ("and bits of additions", priced)):

        def planner(limits: Limits, allowed: Space = allowed) -> Plan:
            return best_plan(allowed, errors, limits, "recovered")

        clock = Clock()
        try:
            plan = plan_within(allowed, limits, planner, planner, data.model, data.calibration[0][:1], target)
        except fxfactor.PreconditionError as error:
            print(json.dumps({"choices": what, "refused": str(error)}), flush=True)
            continue
        why = plan.explain()
        rounded = fxfactor.transform(data.model, plan=plan, calibration=data.calibration)
        row = {
            "choices": what,
            "loss": round(sum(each.loss for each in why.layers.values()), 4),
            "accuracy": round(100 * top1(freeze(rounded), data.test), 1),
            "totals": why.totals,
            "join_bits": plan.join_bits,
            "factorized": sum(layer.groups is not None for layer in plan.layers.values()),
            "seconds": round(clock.wall_seconds),
        }
        print(json.dumps(row), flush=True)
        if save is not None:
            plan.save(save)


def resnet50(images: int) -> None:
    """Search on ResNet-50 with random weights: time for sensitivity and solving, and the peak of memory."""
    from torchvision.models import resnet50 as build

    torch.manual_seed(0)
    model = build(weights=None).eval()
    batches = list(torch.randn(images, 3, 224, 224, generator=torch.Generator().manual_seed(0)).split(4))
    graph = fxfactor.capture(model, batches[0][:1]).eval()
    clock = Clock()
    space = space_of(graph, LEVELS, BITS)
    errors = measure_errors(graph, batches, space)
    print(f"sensitivity: {clock}", flush=True)
    for share in (0.1, 0.05, 0.02, 0.01, 0.005):
        solving = Clock()
        best_plan(space, errors, for_all(space.join_bits, fxfactor.Budget(bops=share).limits(space.whole)), "both")
        print(f"solve for {share:.1%} of the BOPs: {solving}", flush=True)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"in all: {clock}, peak memory {peak:.1f} GiB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("grid", "widths", "search", "budgets", "board", "resnet50"))
    parser.add_argument("--levels", type=int, default=7, help="of the grid and of uniform plans: 0 … levels−1")
    parser.add_argument("--measures", nargs="+", default=COMPARED, help="budgets: of several, plans are compared")
    parser.add_argument("--bits", type=int, nargs="+", default=GRID_BITS)
    parser.add_argument("--widths", type=float, nargs="+", default=(1.0, 1.5, 2.0, 3.0))
    parser.add_argument("--budgets", type=float, nargs="+", default=BUDGETS)
    parser.add_argument("--board", default="Pynq-Z2", help="board: which, at 200 MHz")
    parser.add_argument("--target-fps", type=int, default=2000, help="board: frames per second")
    parser.add_argument("--luts", type=float, default=0.5, help="board: LUTs that may be used; up to 1: share")
    parser.add_argument("--dsps", type=float, help="board: DSPs that may be used, all if not given")
    parser.add_argument("--brams", type=float, help="board: block RAMs of 18 kbit that may be used, all if not given")
    parser.add_argument("--save", type=Path, help="board: file for the last plan")
    parser.add_argument("--images", type=int, default=16, help="resnet50: images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.what == "grid":
        grid(Cifar(), range(options.levels), tuple(options.bits))
    elif options.what == "widths":
        fronts(Cifar(), range(options.levels), tuple(options.bits), tuple(options.widths))
    elif options.what == "search":
        searched(Cifar(), tuple(options.budgets), tuple(options.widths))
    elif options.what == "budgets":
        budgets(Cifar(), tuple(options.budgets), tuple(options.measures), range(options.levels))
    elif options.what == "board":
        budget = fxfactor.Budget(lut=options.luts, dsp=options.dsps, bram=options.brams)
        board(Cifar(), options.board, options.target_fps, budget, tuple(options.widths), options.save)
    else:
        resnet50(options.images)


if __name__ == "__main__":
    main()
