"""One candidate of a compression: made or trained on, kept, measured and estimated; here or in a worker."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from shutil import rmtree
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.compression.plans import is_whole
from fxfactor.compression.result import Row
from fxfactor.errors import InfeasibleError
from fxfactor.exploration.rung import Metric
from fxfactor.finn.estimation import estimate_network
from fxfactor.finn.result import Estimate
from fxfactor.finn.target import Target
from fxfactor.graph.watching import modes_kept
from fxfactor.plan.plan import Plan
from fxfactor.quantization.plain_copy import freeze
from fxfactor.recipe import transform
from fxfactor.recovery.finetune import finetune
from fxfactor.recovery.reconstruct import Augment
from fxfactor.recovery.round_weights import round_weights
from fxfactor.storage.checkpoint import load, save


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


@dataclass(frozen=True)
class Task:
    """A stage of a candidate: `more` epochs on top of the stage before, `epochs` with them. Stage 0 has none and makes it."""

    name: str
    plan: str
    stage: int
    more: int
    epochs: int


@dataclass(frozen=True)
class Candidates:
    """How candidates become rows; what is made of them lies in `folder`, which all workers must see."""

    model: nn.Module
    train: Iterable[Any]
    validation: Any
    metric: Metric
    batches: Sequence[Tensor]
    target: Target
    training: Training
    folder: Path

    def worker(self) -> Candidates:
        """What does tasks in a process of its own (`fxfactor.workers`): no candidate needs another one."""
        return self

    def steps(self, task: Task) -> Iterator[tuple[Task, Row]]:
        """The one row that a task gives."""
        yield task, self.row(task)

    def row(self, task: Task) -> Row:
        """Make a network, or train it on; then measure and estimate it."""
        plan = Plan.from_json(task.plan)
        if task.stage == 0:
            network = transform(self.model, plan=plan, calibration=self.batches, recover="none")
            round_weights(self.model, network, self.batches)
        else:
            network = load(self.place(task.name, task.stage - 1), self.model)
            self._train(network, task.more, self._checkpoint(task))
        save(network, self.place(task.name, task.stage))
        value = self.measured(network)
        metric = value if math.isfinite(value) else None
        row = Row(task.name, is_whole(plan), task.epochs, metric, by_speed=self.target.target_fps == "max")
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

    def measured(self, network: nn.Module) -> float:
        """What the metric says of a network in evaluation."""
        network = freeze(network) if isinstance(network, GraphModule) else network
        with modes_kept(network):
            return float(self.metric(network.eval(), self.validation))

    def place(self, name: str, stage: int) -> Path:
        """Where the network of a candidate lies after a stage."""
        return self.folder / f"{name.replace(' ', '-')}-stage{stage}"

    def _checkpoint(self, task: Task) -> Path:
        return self.place(task.name, task.stage).with_suffix(".checkpoint")

    def forget_training(self, task: Task) -> None:
        """Drop the checkpoint of a training whose row is kept."""
        rmtree(self._checkpoint(task), ignore_errors=True)


def _with_costs(row: Row, found: Estimate) -> Row:
    """The row with what the whole network was estimated to take."""
    shares = found.shares
    assert shares is not None  # boards have parts that are known
    used = {name: getattr(found.total, name) for name in ("lut", "bram18", "dsp", "uram")}
    return replace(row, share=sum(shares.values()), fps=found.fps, fits=bool(found.fits), **used)
