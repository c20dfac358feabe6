"""Explore: every level at every bit width, walked so that each network starts from the one before it.

A level's factors are fitted once, and sites that the level before has already are taken over; activations are counted
once per level, and every bit width takes its ranges from those counts; a frozen copy is evaluated. All of it is kept in one
file, so that a run that was broken off goes on where it stood.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.exploration.result import Exploration
from fxfactor.exploration.rung import BitPair, FineTune, Metric, Progressed, Rung, RungWalk, Setup, Task, top1
from fxfactor.exploration.state_file import Candidate, Store
from fxfactor.graph.mixed_precision import Precision, require_precision
from fxfactor.graph.watching import images_of
from fxfactor.plan.ladder import Level, check_bits, check_level, check_weight_bits, check_width
from fxfactor.workers import Engine, require_workers, side_by_side

if TYPE_CHECKING:
    from fxfactor.finn.target import Target


@checked
def explore(
    model: nn.Module,
    train: Iterable[Any],
    validation: Any,
    *,
    levels: Iterable[Level] = range(7),
    bits: Iterable[int | BitPair | None] = (2, 3, 4, 8),
    metric: Metric = top1,
    finetune: FineTune | None = None,
    state: str | Path = "explore.sqlite",
    workers: int = 1,
    engine: Engine = "local",
    images: int = 256,
    boundary_bits: int | None = 8,
    keep: Iterable[str] = (),
    widths: Iterable[float] = (1,),
    board: str | None = None,
    target_fps: int = 1000,
    clock_ns: float = 5.0,
    python: str | Path | None = None,
    precision: Precision = "float32",
    progress: Callable[[Candidate], object] | None = None,
) -> Exploration:
    """Evaluate a network at every level and bit width; gives a table, its Pareto front, and the best under limits.

    train: batches of images; the first `images` of them fit the factors and set the ranges, labels are not looked at.
    validation: what `metric(model, validation)` gets; the default metric is top-1 accuracy and wants batches (images,
    labels). The model that it gets is a copy for evaluation with the same outputs (`fxfactor.quantization.plain_copy`).
    Larger is better.
    bits: an int for both, or (weight bits, activation bits); None is floating point. They are walked from many to few.
    finetune: `finetune(qmodel, original)` trains `qmodel` in place; the next bit width of the level starts from its
    weights, and ranges are then set anew. Random numbers are seeded per candidate.

    widths: channels between the factors, as multiples of the input channels. Every level is evaluated at each, but level 0,
    which has no factors, only once; a deep level with a wide middle is often better than a shallow one of the same cost.

    state: one SQLite file. A run that was interrupted or killed goes on from it when called again with the same
    arguments, and loses the candidate it was at, at most; the result is that of an unbroken run. Anyone may read
    the file meanwhile (`fxfactor.Exploration.read`).
    workers: levels (at one width) that are walked side by side. engine: "local" for processes of this machine, "ray" for a
    Ray cluster.
    board: also ask FINN what each candidate costs there, folded for `target_fps` at a clock of `clock_ns` nanoseconds; needs
    finn-plus here or in the environment of the interpreter `python`, and some ten seconds each (`fxfactor.finn.estimate`).
    precision: "bfloat16" fits and evaluates in mixed precision, for GPUs that have it: the metric then differs by what rounding
    the products does. Ranges are counted in float32; `finetune` has a `precision` of its own.
    progress: called with each candidate once it is kept.

    A candidate that raises is kept as failed, one whose metric is NaN is marked, and the walk goes on. Raises
    PreconditionError on values out of range and where `state` is another run's or being written, FxfactorError where the
    disk is full or a worker dies; what was kept stays.
    """
    rungs, pairs = rungs_of(levels, widths), pairs_of(bits)
    if not pairs:
        raise PreconditionError("explore needs bits, found none; None among them is floating point")
    require_workers(workers, engine)
    require_precision(precision)
    batches = images_of(train, "an exploration", images)
    target = None if board is None else _target(board, target_fps, clock_ns, python)
    setup = Setup(model, batches, validation, metric, finetune, boundary_bits, tuple(keep), target, precision)
    about = _about(setup, validation)
    with Store(state, about) as store:
        done = {candidate.key: candidate for candidate in store.candidates()}
        tasks = _tasks(store, rungs, pairs, set(done))
        for rung, candidate, changed in _run(setup, tasks, workers, engine):
            if candidate is None:
                store.add_snapshot(rung, changed or b"")
                continue
            store.add(candidate, changed)
            done[candidate.key] = candidate
            if progress is not None:
                progress(candidate)
        store.drop_snapshots(task.rung.name for task in tasks)
    rows = [done[(str(rung.level), rung.width, *pair)] for rung in rungs for pair in pairs]
    return Exploration(tuple(rows))


def rungs_of(levels: Iterable[Level], widths: Iterable[float]) -> tuple[Rung, ...]:
    """Every level at every width, width by width; what is not factorized has no width. Raises PreconditionError."""
    levels, widths = tuple(dict.fromkeys(levels)), tuple(dict.fromkeys(widths))
    if not levels or not widths:
        raise PreconditionError(f"explore needs levels and widths, found levels={levels!r}, widths={widths!r}")
    for level in levels:
        check_level(level)
    for width in widths:
        check_width(width)
    rungs = (Rung(level, 1.0 if level == 0 else float(width)) for width in widths for level in levels)
    return tuple(dict.fromkeys(rungs))


def pairs_of(bits: Iterable[int | BitPair | None]) -> tuple[BitPair, ...]:
    """Pairs (weight bits, activation bits), from many bits to few, each once."""
    pairs = [each if isinstance(each, tuple) else (each, each) for each in bits]
    for pair in pairs:
        if len(pair) != 2:
            raise PreconditionError(f"bits must be ints or pairs (weight bits, activation bits), found {pair!r}")
        check_bits(pair[1], "bits")
        check_weight_bits(pair[0], "bits")
    return tuple(sorted(dict.fromkeys(pairs), key=lambda p: (-(p[0] or 32) * (p[1] or 32), -(p[0] or 32))))


def _target(board: str, target_fps: int, clock_ns: float, python: str | Path | None) -> Target:
    """Raises PreconditionError where finn-plus is missing, FinnError on values that FINN has no answer for."""
    from fxfactor.finn.target import Target

    if python is None:
        try:
            version("finn-plus")
        except PackageNotFoundError as error:
            raise PreconditionError(
                f"board={board!r} needs finn-plus, which is not installed here; pip install fxfactor[finn], or name another "
                "environment's interpreter with python="
            ) from error
    return Target(board, clock_ns, target_fps, python)


def _tasks(
    store: Store, rungs: Sequence[Rung], bits: Sequence[BitPair], done: set[tuple[str, float, int | None, int | None]]
) -> list[Task]:
    """What is left, rung by rung. A rung that is begun and has no snapshot starts anew, with the same result."""
    tasks = []
    for rung in rungs:
        left = tuple(pair for pair in bits if (str(rung.level), rung.width, *pair) not in done)
        if left:
            tasks.append(Task(rung, left, store.snapshot(rung.name)))
    return tasks


def _run(setup: Setup, tasks: list[Task], workers: int, engine: Engine) -> Iterator[Progressed]:
    if engine == "ray" or (workers > 1 and len(tasks) > 1):
        yield from side_by_side(setup, tasks, workers, engine, "explore")
        return
    walk = RungWalk(setup)
    for task in tasks:
        yield from walk.task(task)


def _about(setup: Setup, validation: Any) -> dict[str, str]:
    """What two runs must have in common to go on from each other."""
    weights = hashlib.sha256()
    for name, tensor in setup.model.state_dict().items():
        weights.update(name.encode() + _bytes(tensor))
    images = hashlib.sha256(b"".join(_bytes(batch) for batch in setup.images))
    first = next(iter(validation), None) if isinstance(validation, Sequence) else None
    part = first[0] if isinstance(first, tuple | list) and len(first) else first
    names = {each: getattr(each, "__qualname__", type(each).__qualname__) for each in (setup.metric, setup.finetune)}
    return {
        "model": weights.hexdigest()[:16],
        "images": images.hexdigest()[:16],
        "first validation images": hashlib.sha256(_bytes(part)).hexdigest()[:16] if isinstance(part, Tensor) else "",
        "metric": names[setup.metric],
        "finetune": "" if setup.finetune is None else names[setup.finetune],
        "boundary_bits": str(setup.boundary_bits),
        "keep": ", ".join(setup.keep),
        "board": "" if setup.target is None else str(setup.target),
        **({} if setup.precision == "float32" else {"precision": setup.precision}),  # older files have none
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
