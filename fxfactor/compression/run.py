"""One compression on its way: its candidates, stage by stage, and what is written in the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.compression.candidates import Candidates, Task, Training
from fxfactor.compression.plans import Choices, plans_for
from fxfactor.compression.result import Compressed, Row, best_half, best_rows, front_of, taken
from fxfactor.compression.state_file import Store
from fxfactor.errors import FxfactorError
from fxfactor.files import write_text
from fxfactor.finn.exact_reference import reference
from fxfactor.finn.preparation import prepare
from fxfactor.finn.target import Target
from fxfactor.progress import track
from fxfactor.report.page import SINGLE, report
from fxfactor.storage.checkpoint import load, save
from fxfactor.storage.qonnx import export
from fxfactor.workers import ALONE, Crew

_COMPARED = 8
"""Images on which the build of the best is compared with PyTorch."""


@dataclass
class Run:
    """One compression; results are kept in `store` as soon as they are there."""

    candidates: Candidates
    tolerance: float
    folder: Path
    store: Store
    crew: Crew = ALONE

    @property
    def target(self) -> Target:
        """The board, the frames per second and the limits that candidates are judged by."""
        return self.candidates.target

    def compress(self, choices: Choices, count: int, cache: str | Path | None) -> Compressed:
        """All stages; each candidate of each is kept as soon as it is there."""
        texts: dict[str, str] = self.store.once("plans", lambda: self._plans(choices, count))
        original: float = self.store.once("original", lambda: self.candidates.measured(self.candidates.model))
        rows: list[Row] = []
        epochs, names = 0, set(texts)
        for stage, more in enumerate((0, *self.candidates.training.stages)):
            epochs += more
            found = self._rows([Task(name, texts[name], stage, more, epochs) for name in texts if name in names])
            judged = [row for row in best_rows([*rows, *found]) if row.name in names]  # a short training may do harm
            is_last = stage == len(self.candidates.training.stages)
            if is_last:
                names = {row.name for row in front_of(judged)}
            elif stage == 0:  # what factors lose before training says little about what they lose after it
                names = set().union(
                    *(best_half([row for row in judged if row.whole == kind]) for kind in (True, False))
                )
            else:
                names = best_half(judged)
            rows += [replace(row, kept=row.name in names) for row in found]
            if not names:
                raise self._nothing_fits(found)
        best = taken(rows, self.tolerance)
        result = Compressed(tuple(rows), best, self.folder, str(self.target), original, texts, self.tolerance)
        self._write(result, cache)
        return result

    def _plans(self, choices: Choices, count: int) -> dict[str, str]:
        found = plans_for(self.candidates.model, self.candidates.batches, choices, self.target, count, self.crew)
        return {name: plan.to_json() for name, plan in found.items()}

    def _rows(self, tasks: Sequence[Task]) -> list[Row]:
        """The rows of a stage, in the order of the tasks; each is kept as soon as it is there."""
        left = [task for task in tasks if self.store.known(_key(task)) is None]
        for task in tasks:
            if task not in left:
                self.candidates.forget_training(task)  # a kill may have come before that
        what = "candidates, rounded" if not tasks or tasks[0].stage == 0 else f"candidates, {tasks[0].epochs} epochs"
        for task, row in track(self.crew.steps(self.candidates, left, "compress"), what, len(left)):
            self.store.keep(_key(task), asdict(row))
            self.candidates.forget_training(task)
        return [Row(**self.store.known(_key(task))) for task in tasks]

    def _write(self, result: Compressed, cache: str | Path | None) -> None:
        """What `folder` holds in the end; the build is made once."""
        stage = list(accumulate((0, *self.candidates.training.stages))).index(result.best.epochs)
        network = load(self.candidates.place(result.best.name, stage), self.candidates.model)
        save(network, self.folder / "best")
        result.plan.save(self.folder / "plan.json")
        write_text(self.folder / "result.json", result.to_json(), "writing the result")

        def build() -> bool:
            sample = torch.cat(list(self.candidates.batches))[:_COMPARED].cpu()
            export(network, self.folder / "model.onnx", target="finn", example_inputs=sample[:1])
            target, verify = self.target, (sample, reference(network, sample))
            places: dict[str, Any] = {"limits": target.limits, "python": target.python, "cache": cache}
            file = self.folder / "model.onnx"
            prepare(
                self.folder / "build", file, target.board, target.target_fps, target.clock_ns, verify=verify, **places
            )
            return True

        self.store.once("build", build)
        if find_spec("matplotlib") is not None:
            self._write_page(network, result)

    def _write_page(self, network: GraphModule, result: Compressed) -> None:
        """Everything on one page; accuracies where the metric is a share."""
        metrics = {"original": result.original, SINGLE: _value(result.best)}
        is_share = all(0 <= value <= 1 for value in metrics.values())
        report(
            network,
            self.folder / "report.html",
            original=self.candidates.model,
            accuracy=metrics if is_share else None,
            finn=json.loads((self.folder / "build" / "estimate.json").read_text()),
            compressed=result,
            title=f"Compressed for {self.target.board}",
        )

    def _nothing_fits(self, rows: Sequence[Row]) -> FxfactorError:
        told = "; ".join(f"{row.name}: {row.message or _too_large(row, self.target)}" for row in rows)
        return FxfactorError(
            f"none of {len(rows)} candidates fits {self.target}: {told}; ask for fewer frames/s, allow fewer bits or deeper "
            "levels, lower join_bits, or choose a larger board"
        )


def _key(task: Task) -> str:
    """What the row of a task is called in the file."""
    return f"{task.name}, stage {task.stage}"


def _too_large(row: Row, target: Target) -> str:
    there = target.available
    over = [
        f"{getattr(row, name):,} {name} of {getattr(there, name):,}"
        for name in ("lut", "bram18", "dsp", "uram")
        if (getattr(row, name) or 0) > getattr(there, name)
    ]
    return ", ".join(over) or "its metric is no number"


def _value(row: Row) -> float:
    return -math.inf if row.metric is None else row.metric


def about_run(
    model: nn.Module,
    batches: Sequence[Tensor],
    metric: Callable[..., float],
    choices: Choices,
    target: Target,
    training: Training,
    plans: int,
    tolerance: float,
) -> dict[str, str]:
    """What two runs must have in common to go on from each other."""
    weights, images = hashlib.sha256(), hashlib.sha256()
    for name, tensor in model.state_dict().items():
        weights.update(name.encode() + _bytes(tensor))
    for batch in batches:
        images.update(_bytes(batch))
    return {
        "model": weights.hexdigest()[:16],
        "images": images.hexdigest()[:16],
        "metric": getattr(metric, "__qualname__", type(metric).__qualname__),
        "choices": str(choices),
        "target": f"{target}, limits {dict(target.limits or {})}",
        "training": str(replace(training, augment=None)) + getattr(training.augment, "__qualname__", ""),
        "plans": str(plans),
        "tolerance": str(tolerance),
    }


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
