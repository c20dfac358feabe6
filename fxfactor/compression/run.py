"""One compression on its way: its candidates, stage by stage, and what is written in the end."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from itertools import accumulate
from pathlib import Path
from shutil import rmtree
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.compression.plans import Choices, is_whole, plans_for
from fxfactor.compression.result import Compressed, Row, best_half, best_rows, front_of, taken
from fxfactor.compression.state_file import Store
from fxfactor.errors import FxfactorError, InfeasibleError
from fxfactor.exploration.rung import Metric
from fxfactor.files import write_text
from fxfactor.finn.estimation import estimate_network
from fxfactor.finn.exact_reference import reference
from fxfactor.finn.preparation import prepare
from fxfactor.finn.result import Estimate
from fxfactor.finn.target import Target
from fxfactor.graph.watching import modes_kept
from fxfactor.plan.plan import Plan
from fxfactor.progress import track
from fxfactor.quantization.plain_copy import freeze
from fxfactor.recipe import transform
from fxfactor.recovery.finetune import finetune
from fxfactor.recovery.reconstruct import Augment
from fxfactor.recovery.round_weights import round_weights
from fxfactor.report.page import SINGLE, report
from fxfactor.storage.checkpoint import load, save
from fxfactor.storage.qonnx import export

_COMPARED = 8
"""Images on which the build of the best is compared with PyTorch."""


@dataclass(frozen=True)
class Training:
    """How candidates are trained."""

    epochs: int
    learning_rate: float
    label_weight: float
    augment: Augment | None
    seed: int

    @property
    def stages(self) -> tuple[int, ...]:
        """Epochs of the stages after the first, which has none: a quarter, then the rest."""
        if self.epochs == 0:
            return ()
        short = max(1, self.epochs // 4)
        return (short,) if short == self.epochs else (short, self.epochs - short)


@dataclass
class Run:
    """One compression; results are kept in `store` as soon as they are there."""

    model: nn.Module
    train: Iterable[Any]
    validation: Any
    metric: Metric
    batches: Sequence[Tensor]
    target: Target
    training: Training
    tolerance: float
    folder: Path
    store: Store

    def compress(self, choices: Choices, count: int, cache: str | Path | None) -> Compressed:
        """All stages; each candidate of each is kept as soon as it is there."""
        texts: dict[str, str] = self.store.once("plans", lambda: self._plans(choices, count))
        original: float = self.store.once("original", lambda: self._measured(self.model))
        rows: list[Row] = []
        epochs, names = 0, set(texts)
        for stage, more in enumerate((0, *self.training.stages)):
            epochs += more
            what = "candidates, rounded" if stage == 0 else f"candidates, {epochs} epochs"
            found = [
                self._row(name, texts[name], stage, more, epochs)
                for name in track([name for name in texts if name in names], what)
            ]
            judged = [row for row in best_rows([*rows, *found]) if row.name in names]  # a short training may do harm
            is_last = stage == len(self.training.stages)
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
        found = plans_for(self.model, self.batches, choices, self.target, count)
        return {name: plan.to_json() for name, plan in found.items()}

    def _row(self, name: str, plan: str, stage: int, more: int, epochs: int) -> Row:
        key = f"{name}, stage {stage}"

        def make() -> dict[str, Any]:
            return asdict(self._candidate(name, Plan.from_json(plan), stage, more, epochs))

        row = Row(**self.store.once(key, make))
        rmtree(self._checkpoint(name, stage), ignore_errors=True)
        return row

    def _candidate(self, name: str, plan: Plan, stage: int, more: int, epochs: int) -> Row:
        """Make a network, or train it on; then measure and estimate it."""
        if stage == 0:
            network = transform(self.model, plan=plan, calibration=self.batches)
            round_weights(self.model, network, self.batches)
        else:
            network = load(self._place(name, stage - 1), self.model)
            self._train(network, more, self._checkpoint(name, stage))
        save(network, self._place(name, stage))
        value = self._measured(network)
        metric = value if math.isfinite(value) else None
        row = Row(name, is_whole(plan), epochs, metric, by_speed=self.target.target_fps == "max")
        try:
            found = estimate_network(network, self.batches[0][:1].cpu(), self.target)
        except InfeasibleError as error:
            return replace(row, message=str(error).partition(";")[0])
        return _with_costs(row, found)

    def _train(self, network: GraphModule, epochs: int, checkpoint: Path) -> None:
        training = self.training
        finetune(
            network,
            self.train,
            teacher=self.model,
            epochs=epochs,
            learning_rate=training.learning_rate,
            label_weight=training.label_weight,
            augment=training.augment,
            seed=training.seed,
            checkpoint=checkpoint,
        )

    def _measured(self, network: nn.Module) -> float:
        network = freeze(network) if isinstance(network, GraphModule) else network
        with modes_kept(network):
            return float(self.metric(network.eval(), self.validation))

    def _place(self, name: str, stage: int) -> Path:
        return self.folder / "candidates" / f"{name.replace(' ', '-')}-stage{stage}"

    def _checkpoint(self, name: str, stage: int) -> Path:
        return self._place(name, stage).with_suffix(".checkpoint")

    def _write(self, result: Compressed, cache: str | Path | None) -> None:
        """What `folder` holds in the end; the build is made once."""
        stage = list(accumulate((0, *self.training.stages))).index(result.best.epochs)
        network = load(self._place(result.best.name, stage), self.model)
        save(network, self.folder / "best")
        result.plan.save(self.folder / "plan.json")
        write_text(self.folder / "result.json", result.to_json(), "writing the result")

        def build() -> bool:
            sample = torch.cat(list(self.batches))[:_COMPARED].cpu()
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
            original=self.model,
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


def _with_costs(row: Row, found: Estimate) -> Row:
    """The row with what the whole network was estimated to take."""
    shares = found.shares
    assert shares is not None  # boards have parts that are known
    used = {name: getattr(found.total, name) for name in ("lut", "bram18", "dsp", "uram")}
    return replace(row, share=sum(shares.values()), fps=found.fps, fits=bool(found.fits), **used)


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
