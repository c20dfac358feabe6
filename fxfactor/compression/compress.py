"""Compress for a board: plans, short recovery of all, longer recovery of the better ones, and a build of the best.

Each candidate's row has its trained accuracy beside our estimates of its hardware. Candidates are dropped by successive
halving (Jamieson and Talwalkar 2016, arXiv 1502.07943) between stages; what is dropped is what others beat at no more of the
board. The usual pruners know one number per candidate (Optuna refuses to prune where there are several objectives); here there
are two, so the rule is our own: `result.best_half`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from fxfactor.arguments import checked
from fxfactor.compression.result import Compressed
from fxfactor.errors import PreconditionError
from fxfactor.exploration.rung import Metric, top1
from fxfactor.finn.target import Frames, Limits, Target
from fxfactor.graph.watching import images_of
from fxfactor.plan.ladder import Level
from fxfactor.recovery.reconstruct import Augment
from fxfactor.workers import Crew, Engine

STATE = "compress.sqlite"


_TOLERANCE = 0.01
"""What the fastest network may lose against the most accurate one, where speed is what was asked for."""


@partial(checked, but=("epochs", "target_fps"))
def compress(
    model: nn.Module,
    train: Iterable[Any],
    validation: Any,
    folder: str | Path,
    *,
    board: str = "ZCU104",
    target_fps: Frames = 1000,
    clock_ns: float = 5.0,
    limits: Limits | None = None,
    epochs: int = 8,
    plans: int = 5,
    levels: Iterable[Level] = (*range(7), "depthwise"),
    bits: Sequence[int] = (2, 3, 4, 6, 8),
    widths: Sequence[float] = (1, 2),
    boundary_bits: int | None = 8,
    join_bits: int | Sequence[int] = 8,
    keep: Iterable[str] = (),
    metric: Metric = top1,
    tolerance: float | None = None,
    images: int = 512,
    learning_rate: float = 2e-3,
    label_weight: float = 0.0,
    augment: Augment | None = None,
    seed: int = 0,
    python: str | Path | None = None,
    cache: str | Path | None = None,
    workers: int = 1,
    engine: Engine = "local",
) -> Compressed:
    """Find the factorized, quantized network for a board, train it, and write what its bitstream is built from.

    Before: a trained network; `train`, batches of images, or (images, labels), that can be gone through again and again (labels
    are not looked at where `label_weight` is 0, as it is if not given); `validation`, what
    `metric(network, validation)` gets (larger is better; top-1 accuracy of batches (images, labels) if nothing is given).
    After, in `folder`: best/ (`fxfactor.load` reads it), plan.json, model.onnx, build/ (`fxfactor.finn.prepare`), result.json
    with all rows. The model itself is not changed.

    What happens: FINN's prices of all choices (groups, channels, bits of every layer; folded to `target_fps` on `board` at a
    clock of `clock_ns` nanoseconds within `limits`), what each loses, and from these up to `plans` plans without factors,
    `plans` with all layers factorized that can be, and `plans` that choose freely, from small to good. Each becomes a network,
    is fitted and rounded on the first `images` images of `train`, measured and estimated as a whole. The better half of
    those with and of those without factors is trained for a quarter of `epochs`, with the original as its teacher
    (`fxfactor.finetune`), the better half of these for all `epochs`. Of the networks that fit, whenever they were measured, the
    cheapest is taken whose metric is at most `tolerance` below the best (0 if not given: the best), so training that makes
    one worse is taken back; `Compressed.front()` has the others that are worth their price. With `target_fps="max"` every
    network gets all of the board (and `limits`), plans lie at speeds each twice the one before, cheaper means faster, and
    `tolerance` is 0.01 if not given. `validation` must be images that the original was not trained on, or training looks harmful.

    `levels`, `bits`, `widths`, `boundary_bits`, `join_bits` and `keep` are as in `fxfactor.search`; `learning_rate`,
    `label_weight`, `augment` and `seed` as in `fxfactor.finetune`; `cache` and `python` as in `fxfactor.finn.estimate`.

    workers: how many prices and sensitivities are worked out, and candidates made or trained, side by side, with one thread
    each. engine: "local" for processes of this machine, "ray" for a Ray cluster, whose machines must all see `folder`. The
    rows are those of one worker with one thread.

    A run that was interrupted or killed goes on when called again with the same arguments, and loses the epoch or estimate
    it was at, at most. Raises PreconditionError on values out of range, where the board is too small or slow for every choice
    (known from the prices, before anything is measured) and where `folder` is another run's or being written; FinnError
    where FINN is missing or refuses the network; FxfactorError where nothing of what was tried fits.
    """
    from fxfactor.compression.candidates import Candidates, Training
    from fxfactor.compression.plans import Choices
    from fxfactor.compression.run import Run, about_run
    from fxfactor.compression.state_file import Store

    joins = (join_bits,) if isinstance(join_bits, int) else tuple(join_bits)
    choices = Choices(tuple(levels), tuple(bits), tuple(widths), boundary_bits, joins, tuple(keep))
    target = Target(board, clock_ns, target_fps, python, limits)
    tolerance = (_TOLERANCE if target_fps == "max" else 0.0) if tolerance is None else tolerance
    _require(epochs, plans, tolerance)
    crew = Crew(workers, engine)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # a loader that shuffles gives the same images to a run that goes on
        batches = [batch.to(next(model.parameters(), batch)) for batch in images_of(train, "compressing", images)]
    place = Path(folder)
    (place / "candidates").mkdir(parents=True, exist_ok=True)
    training = Training(epochs, learning_rate, label_weight, augment, seed)
    about = about_run(model, batches, metric, choices, target, training, plans, tolerance)
    with Store(place / STATE, about) as store:
        made = Candidates(model, train, validation, metric, batches, target, training, place.absolute() / "candidates")
        return Run(made, tolerance, place, store, crew).compress(choices, plans, cache)


def _require(epochs: int, plans: int, tolerance: float) -> None:
    if not isinstance(epochs, int) or epochs < 0:
        raise PreconditionError(f"required: epochs, a whole number of at least 0; found: {epochs!r}")
    if not isinstance(plans, int) or plans < 1:
        raise PreconditionError(f"required: plans, a whole number of at least 1; found: {plans!r}")
    if not 0 <= tolerance < math.inf:
        raise PreconditionError(f"required: tolerance, a number of at least 0; found: {tolerance!r}")
