"""Train a compressed network on labelled or unlabelled images, with the original network as its teacher.

The network stays a plain nn.Module: any training loop can train it. This one is short, distils, keeps checkpoints, and
works as it is under torchrun.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any, Literal, cast, get_args

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, distributed, nn
from torch.fx import GraphModule
from torch.nn import functional as F
from torch.nn.parallel import DistributedDataParallel

from fxfactor.arguments import checked
from fxfactor.errors import FxfactorError, PreconditionError
from fxfactor.files import new_file
from fxfactor.graph.capture import as_graph
from fxfactor.graph.mixed_precision import Precision, computing_in, require_precision
from fxfactor.graph.questions import is_quantizer
from fxfactor.graph.watching import evaluating, inputs_of, modes_kept, not_empty
from fxfactor.pipeline import forget_judged
from fxfactor.progress import track
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.quantization.threshold_curve import ThresholdCurve
from fxfactor.quantization.weight_limits import learned_weight_limits
from fxfactor.recovery.blocks import Matching, batch_norms, channels_last, cosine
from fxfactor.recovery.oscillations import Freezing
from fxfactor.recovery.reconstruct import Augment

TRIAL_STEPS = 20  # of a learning rate, at least
KEPT_BATCHES = 8  # by which learning rates are judged
_CHECKPOINT = "checkpoint.safetensors"

BatchNorms = Literal["fixed", "updated"]
"""Whether batch norms keep the statistics they have, or take those of every batch and learn new ones."""

Oscillations = Literal["free", "frozen"]
"""Whether weights that jump to and fro between two levels may do so."""

RATES = (5e-4, 1e-3, 2e-3, 5e-3)
"""Learning rates that are tried where none is given."""

WeightLimits = Literal["largest", "learned"]
"""Whether the range of a channel's weights is the largest of them, or clips where the training finds it best."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch did; `images` and `seconds` are those of this process."""

    number: int
    loss: float  # mean over the steps
    images: int
    seconds: float
    learning_rate: float  # at the start of the cosine
    frozen_weights: int = 0  # so far


@partial(checked, but=("teacher",))
def finetune(
    model: GraphModule,
    loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    epochs: int = 2,
    learning_rate: float | None = 2e-3,
    label_weight: float = 0.0,
    label_epochs: int | None = None,
    augment: Augment | None = None,
    batch_norm: BatchNorms = "fixed",
    weight_limits: WeightLimits = "learned",
    oscillations: Oscillations = "free",
    precision: Precision = "float32",
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> list[Epoch]:
    """Train all parameters of `model` in place, by Adam with a cosine schedule.

    Before: what `fxfactor.transform` gave, quantized or not. After: the same modules, trained. With a `teacher` (the model
    that was transformed) the loss is the distance to it at every block boundary and at the output (`fxfactor.reconstruct`)
    plus label_weight · cross-entropy, in the last `label_epochs` alone where that is given; without one it is the
    cross-entropy alone.

    loader: batches (images, labels), or images alone where no label is needed; its order is fixed by `seed`. learning_rate:
    None tries each of `RATES` for a twentieth of the steps, at least 20, and takes the one after which the first batches, kept
    out of the trials, have the least loss; that costs a fifth more. augment:
    `(images, generator) → images`, such as `fxfactor.flip_and_shift`. batch_norm: "fixed" keeps the statistics, to which rounded
    weights were fitted; "updated" takes those of each batch, as the original was trained. weight_limits: "learned" trains the
    range of each output channel's weights too (`fxfactor.quantization.weight_limits`) and leaves weights that are rounded;
    "largest" keeps the range up to the largest weight. oscillations: "frozen" holds weights that jump to and fro between two
    levels (`fxfactor.recovery.oscillations`); it needs learned limits. precision: "bfloat16" computes
    convolutions and linear layers in that (torch.autocast), which is faster on GPUs that have it. checkpoint: a folder; the state
    is kept there after every epoch, and a run that finds one goes on from it, to the same result up to rounding.

    Under torchrun, with the process group initialised and a DistributedSampler in the loader, gradients are averaged over
    the processes; the first one shows progress and writes checkpoints.

    Raises PreconditionError on an empty loader, missing labels, settings out of range and a checkpoint of another run;
    FxfactorError where the loss is no longer finite.
    """
    _require_settings(epochs, learning_rate, teacher, label_weight, label_epochs)
    _require_one_of("batch_norm", batch_norm, get_args(BatchNorms))
    _require_one_of("weight_limits", weight_limits, get_args(WeightLimits))
    _require_one_of("oscillations", oscillations, get_args(Oscillations))
    if oscillations == "frozen" and weight_limits != "learned":
        raise PreconditionError(
            f'oscillations="frozen" needs weight_limits="learned", found {weight_limits!r}: levels that move with the largest '
            "weight hold nothing still"
        )
    require_precision(precision)
    label_weight = 1.0 if teacher is None else label_weight
    task: nn.Module = _Objective(model, None if teacher is None else as_graph(teacher, model), label_weight)
    rng = torch.random.fork_rng(devices=[])
    forget_judged(model)
    limits = learned_weight_limits(model) if weight_limits == "learned" else nullcontext()
    with modes_kept(model), channels_last(model), limits, fused_quantizers(model), rng, torch.enable_grad():
        settings: dict[str, Any] = {
            "epochs": epochs,
            "learning_rate": learning_rate,
            "batch_norm": batch_norm,
            "weight_limits": weight_limits,
            "seed": seed,
        }
        settings |= {} if precision == "float32" else {"precision": precision}  # older checkpoints have none of these
        settings |= {} if label_epochs is None else {"label_epochs": label_epochs}
        settings |= {} if oscillations == "free" else {"oscillations": oscillations}
        run = _Run(model, settings, None if checkpoint is None else Path(checkpoint))
        task = DistributedDataParallel(task) if _process() is not None else task
        task.train()
        if batch_norm == "fixed":
            batch_norms(model).eval()
        labelled = range(0 if label_epochs is None else epochs - label_epochs, epochs if label_weight > 0 else 0)
        if run.learning_rate is None:
            run.learning_rate = run.best_rate(task, loader, augment, 0 in labelled)
        return [run.epoch(number, task, loader, augment, number in labelled) for number in range(run.first, epochs)]


@checked
def continue_from(model: GraphModule, trained: GraphModule) -> GraphModule:
    """Give `model` the weights, biases and batch norms of `trained`, in place, and return it.

    For training by stages, say at 8 bits and then at 4: both are the same network with the same factors, one of them
    quantized or both, to whatever bits. Activation ranges stay those of `model`; `fxfactor.calibrate` sets them anew.

    >>> qmodel = continue_from(fxfactor.transform(model, level=3, bits=4), trained_at_8_bits)  # doctest: +SKIP
    >>> fxfactor.calibrate(qmodel, loader)  # doctest: +SKIP

    Raises PreconditionError where a layer of one has no counterpart of the same shape in the other.
    """
    wanted, given = _layer_tensors(model), _layer_tensors(trained)
    for name in sorted(wanted.keys() | given.keys()):
        shapes = [None if tensor is None else tuple(tensor.shape) for tensor in (wanted.get(name), given.get(name))]
        if shapes[0] != shapes[1]:
            raise PreconditionError(
                f"{name!r} has shape {shapes[0]} in the model and {shapes[1]} in the trained one (None: it is not there); "
                "continue_from needs two networks with the same factors: transform the same model with the same levels"
            )
    with torch.no_grad():
        for name, tensor in wanted.items():
            tensor.copy_(given[name])
    return model


def _layer_tensors(graph: GraphModule) -> dict[str, Tensor]:
    """What the state dict holds, without the scales of activation quantizers and the curves before them."""
    modules = graph.named_modules()
    quantizers = tuple(f"{path}." for path, each in modules if is_quantizer(each) or isinstance(each, ThresholdCurve))
    return {name: tensor for name, tensor in graph.state_dict().items() if not name.startswith(quantizers)}


class _Objective(nn.Module):
    """The loss of a batch; all of a step runs inside its forward, which is what DistributedDataParallel needs."""

    def __init__(self, model: GraphModule, teacher: GraphModule | None, label_weight: float) -> None:
        super().__init__()
        self.model = model
        self.match = None if teacher is None else Matching(teacher, model)
        self.label_weight = label_weight

    def forward(self, images: Tensor, labels: Tensor | None) -> Tensor:
        loss, output = (0.0, self.model(images)) if self.match is None else self.match(images)
        if labels is not None:
            loss = loss + self.label_weight * F.cross_entropy(output, labels)
        return cast(Tensor, loss)


class _Run:
    """The optimizer of one run, and the epoch to start with: that after the checkpoint, where there is one."""

    def __init__(self, model: GraphModule, settings: dict[str, Any], folder: Path | None) -> None:
        self.model, self.settings, self.folder = model, settings, folder
        self.epochs, self.seed = settings["epochs"], settings["seed"]
        self.learning_rate: float | None = settings["learning_rate"]
        self.first, saved = self._load()
        self.freezing = Freezing(model) if settings.get("oscillations") == "frozen" else None
        if self.freezing is not None and saved:
            self.freezing.load({name.removeprefix("freezing."): value for name, value in saved.items()})
        # after loading, since Brevitas puts new parameter objects in place then
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.Adam(self.parameters.values())
        for name, parameter in self.parameters.items():  # in the parameter's memory layout: rounding depends on it
            if f"optimizer.step.{name}" in saved:
                moments = {key: saved[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                laid_out = {key: torch.empty_like(parameter).copy_(value) for key, value in moments.items()}
                self.optimizer.state[parameter] = {"step": saved[f"optimizer.step.{name}"].cpu(), **laid_out}

    def epoch(
        self, number: int, task: nn.Module, loader: Iterable[Any], augment: Augment | None, with_labels: bool
    ) -> Epoch:
        start, images_seen, losses = time.perf_counter(), 0, []
        rank, rate = _process() or 0, cast(float, self.learning_rate)
        generator = self._begin(loader, number)
        steps = len(loader) if isinstance(loader, Sized) else None
        batches = track(loader, f"epoch {number + 1} of {self.epochs}") if rank == 0 else loader
        for step, batch in enumerate(not_empty(batches, "fine-tuning")):
            progress = (number + (0.0 if steps is None else step / steps)) / self.epochs
            images, labels = self._tensors(batch, with_labels)
            now = rate * cosine(progress, 1.0 if number else (step + 1) / 20)
            loss = self._step(task, images if augment is None else augment(images, generator), labels, now)
            if self.freezing is not None:
                self.freezing.step(progress)
            images_seen += len(images)
            losses.append(_finite(loss, number, step))
        self._keep(number)
        seconds = time.perf_counter() - start
        frozen = 0 if self.freezing is None else self.freezing.frozen
        return Epoch(number, sum(losses) / len(losses), images_seen, seconds, rate, frozen)

    def _begin(self, loader: Iterable[Any], number: int) -> torch.Generator:
        """Fix the order of the images of an epoch; gives what its augmentation draws from."""
        torch.manual_seed(self.seed + number)
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)
        return torch.Generator().manual_seed((self.seed + number) * 1_000_003 + (_process() or 0))

    def _step(self, task: nn.Module, images: Tensor, labels: Tensor | None, learning_rate: float) -> float:
        """One step of Adam; gives the loss before it."""
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate
        with computing_in(self.settings.get("precision", "float32"), images.device):
            loss = task(images, labels)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def best_rate(self, task: nn.Module, loader: Iterable[Any], augment: Augment | None, with_labels: bool) -> float:
        """The rate of `RATES` after which the first batches, not trained on, have the least loss; the network is as before."""
        tensors = [*self.model.parameters(), *self.model.buffers()]
        before = [each.detach().clone() for each in tensors]
        steps = max(TRIAL_STEPS, len(loader) * self.epochs // 20 if isinstance(loader, Sized) else 0)
        losses = {}
        for rate in RATES:
            generator = self._begin(loader, 0)
            kept = [
                self._tensors(batch, with_labels) for batch in islice(not_empty(loader, "fine-tuning"), KEPT_BATCHES)
            ]
            batches = track(islice(_again_and_again(loader, len(kept)), steps), f"trying a rate of {rate:g}", steps)
            for step, batch in enumerate(batches):
                images, labels = self._tensors(batch, with_labels)
                images = images if augment is None else augment(images, generator)
                self._step(task, images, labels, rate * cosine(step / steps, (step + 1) / 20))
            losses[rate] = _mean_loss(task, kept)
            with torch.no_grad():
                for tensor, value in zip(tensors, before, strict=True):
                    tensor.copy_(value)
            self.optimizer.state.clear()
        return min(RATES, key=losses.__getitem__)

    def _tensors(self, batch: Any, with_labels: bool) -> tuple[Tensor, Tensor | None]:
        parameter = next(iter(self.parameters.values()))
        images = inputs_of(batch).to(parameter)
        if images.dim() == 4:
            images = images.contiguous(memory_format=torch.channels_last)
        if not with_labels:
            return images, None
        labels = batch[1] if isinstance(batch, tuple | list) and len(batch) > 1 else None
        if not isinstance(labels, Tensor):
            raise PreconditionError(
                f"cross-entropy needs batches (images, labels), found a {type(batch).__name__} without labels; "
                "give a teacher and label_weight=0 to train without labels"
            )
        return images, labels.to(parameter.device)

    def _keep(self, epoch: int) -> None:
        """Write weights, optimizer and epoch, whole or not at all."""
        if self.folder is None or (_process() or 0) > 0:
            return
        tensors = {f"model.{name}": value for name, value in self.model.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.freezing is not None:
            tensors |= {f"freezing.{name}": value for name, value in self.freezing.named_tensors()}
        about = {"fxfactor": json.dumps({"epoch": epoch, "rate": self.learning_rate, **self.settings})}
        with new_file(self.folder / _CHECKPOINT, "keeping the state of the training") as temporary:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary, about)

    def _load(self) -> tuple[int, dict[str, Tensor]]:
        """Load the weights of the checkpoint, if any: the epoch that comes next, and all tensors that were kept."""
        path = None if self.folder is None else self.folder / _CHECKPOINT
        if path is None or not path.exists():
            return 0, {}
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("fxfactor", "{}"))
        epoch, rate = about.pop("epoch", None), about.pop("rate", self.learning_rate)
        if epoch is None or about != self.settings:
            raise PreconditionError(
                f"the checkpoint {str(path)!r} is of another run: it has {about}, this run {self.settings}; "
                "give the same settings to go on, or another folder to start anew"
            )
        saved = load_file(path, device=str(next(self.model.parameters()).device))
        weights = {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        self.learning_rate = rate
        return int(epoch) + 1, saved


def _process() -> int | None:
    """The rank of this process under torchrun; None where there is only one process."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else None


def _again_and_again(loader: Iterable[Any], first: int) -> Iterator[Any]:
    """The batches behind the first ones, over and over; all where there are no others. Ends with a loader that does."""
    while True:
        count = 0
        for batch in loader:
            count += 1
            if count > first:
                yield batch
        if count == 0:
            return
        first = first if count > first else 0


def _mean_loss(task: nn.Module, batches: list[tuple[Tensor, Tensor | None]]) -> float:
    """The loss of some batches, over all processes."""
    with evaluating(task), torch.no_grad():
        total = torch.stack([task(*batch) for batch in batches]).mean()
    if _process() is not None:
        distributed.all_reduce(total)
    return float(total.nan_to_num(nan=math.inf))


def _finite(loss: float, epoch: int, step: int) -> float:
    if not math.isfinite(loss):
        raise FxfactorError(
            f"the loss is {loss} at step {step} of epoch {epoch}; lower learning_rate, or check the images for values "
            "that are not finite"
        )
    return loss


def _require_settings(
    epochs: int,
    learning_rate: float | None,
    teacher: nn.Module | None,
    label_weight: float,
    label_epochs: int | None,
) -> None:
    right_rate = learning_rate is None or 0 < learning_rate < math.inf
    if epochs < 1 or not right_rate or not 0 <= label_weight < math.inf:
        raise PreconditionError(
            "fine-tuning needs epochs ≥ 1, learning_rate > 0 (None: tried out) and label_weight ≥ 0, found "
            f"epochs={epochs}, learning_rate={learning_rate}, label_weight={label_weight}"
        )
    if label_epochs is not None and (teacher is None or label_weight == 0 or not 0 < label_epochs <= epochs):
        raise PreconditionError(
            "label_epochs says in how many of the last epochs labels count beside a teacher: it needs a teacher, "
            f"label_weight > 0 and a number from 1 to epochs={epochs}, found {label_epochs}"
            + ("" if teacher is not None else " without a teacher")
            + ("" if label_weight else " with label_weight=0")
        )
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise PreconditionError(
            f"teacher must be the network that was transformed, found {type(teacher).__name__}; pass teacher=model"
        )


def _require_one_of(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        names = " or ".join(f'"{each}"' for each in allowed)
        raise PreconditionError(f"{name} must be {names}, found {found!r}")
