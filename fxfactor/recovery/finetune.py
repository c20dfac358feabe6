"""Train a compressed network on labelled or unlabelled images, with the original network as its teacher.

The network stays a plain nn.Module: any training loop can train it. This one is short, distils, keeps checkpoints, and
works as it is under torchrun.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Sized
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
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
from fxfactor.graph.watching import inputs_of, modes_kept, not_empty
from fxfactor.pipeline import forget_judged
from fxfactor.progress import track
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.quantization.threshold_curve import ThresholdCurve
from fxfactor.quantization.weight_limits import learned_weight_limits
from fxfactor.recovery.blocks import Matching, batch_norms, channels_last, cosine
from fxfactor.recovery.reconstruct import Augment

_CHECKPOINT = "checkpoint.safetensors"

BatchNorms = Literal["fixed", "updated"]
"""Whether batch norms keep the statistics they have, or take those of every batch and learn new ones."""

WeightLimits = Literal["largest", "learned"]
"""Whether the range of a channel's weights is the largest of them, or clips where the training finds it best."""


@dataclass(frozen=True)
class Epoch:
    """What one epoch did; `images` and `seconds` are those of this process."""

    number: int
    loss: float  # mean over the steps
    images: int
    seconds: float


@partial(checked, but=("teacher",))
def finetune(
    model: GraphModule,
    loader: Iterable[Any],
    *,
    teacher: nn.Module | None = None,
    epochs: int = 2,
    learning_rate: float = 2e-3,
    label_weight: float = 0.0,
    augment: Augment | None = None,
    batch_norm: BatchNorms = "fixed",
    weight_limits: WeightLimits = "learned",
    precision: Precision = "float32",
    seed: int = 0,
    checkpoint: str | Path | None = None,
) -> list[Epoch]:
    """Train all parameters of `model` in place, by Adam with a cosine schedule.

    Before: what `fxfactor.transform` gave, quantized or not. After: the same modules, trained. With a `teacher` (the model
    that was transformed) the loss is the distance to it at every block boundary and at the output (`fxfactor.reconstruct`)
    plus label_weight · cross-entropy; without one it is the cross-entropy alone.

    loader: batches (images, labels), or images alone where no label is needed; its order is fixed by `seed`. augment:
    `(images, generator) → images`, such as `fxfactor.flip_and_shift`. batch_norm: "fixed" keeps the statistics, to which rounded
    weights were fitted; "updated" takes those of each batch, as the original was trained. weight_limits: "learned" trains the
    range of each output channel's weights too (`fxfactor.quantization.weight_limits`) and leaves weights that are rounded;
    "largest" keeps the range up to the largest weight. precision: "bfloat16" computes
    convolutions and linear layers in that (torch.autocast), which is faster on GPUs that have it. checkpoint: a folder; the state
    is kept there after every epoch, and a run that finds one goes on from it, to the same result up to rounding.

    Under torchrun, with the process group initialised and a DistributedSampler in the loader, gradients are averaged over
    the processes; the first one shows progress and writes checkpoints.

    Raises PreconditionError on an empty loader, missing labels, settings out of range and a checkpoint of another run;
    FxfactorError where the loss is no longer finite.
    """
    _require_settings(epochs, learning_rate, teacher, label_weight)
    _require_one_of("batch_norm", batch_norm, get_args(BatchNorms))
    _require_one_of("weight_limits", weight_limits, get_args(WeightLimits))
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
        settings |= {} if precision == "float32" else {"precision": precision}  # older checkpoints have none
        run = _Run(model, settings, None if checkpoint is None else Path(checkpoint))
        task = DistributedDataParallel(task) if _process() is not None else task
        task.train()
        if batch_norm == "fixed":
            batch_norms(model).eval()
        return [run.epoch(number, task, loader, augment, label_weight > 0) for number in range(run.first, epochs)]


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
        self.epochs, self.learning_rate, self.seed = (settings[name] for name in ("epochs", "learning_rate", "seed"))
        self.first, saved = self._load()
        # after loading, since Brevitas puts new parameter objects in place then
        self.parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.optimizer = torch.optim.Adam(self.parameters.values(), self.learning_rate)
        for name, parameter in self.parameters.items():  # in the parameter's memory layout: rounding depends on it
            if f"optimizer.step.{name}" in saved:
                moments = {key: saved[f"optimizer.{key}.{name}"] for key in ("exp_avg", "exp_avg_sq")}
                laid_out = {key: torch.empty_like(parameter).copy_(value) for key, value in moments.items()}
                self.optimizer.state[parameter] = {"step": saved[f"optimizer.step.{name}"].cpu(), **laid_out}

    def epoch(
        self, number: int, task: nn.Module, loader: Iterable[Any], augment: Augment | None, with_labels: bool
    ) -> Epoch:
        start, images_seen, losses = time.perf_counter(), 0, []
        rank = _process() or 0
        torch.manual_seed(self.seed + number)
        generator = torch.Generator().manual_seed((self.seed + number) * 1_000_003 + rank)
        sampler: Any = getattr(loader, "sampler", None)
        if hasattr(sampler, "set_epoch"):
            sampler.set_epoch(number)
        steps = len(loader) if isinstance(loader, Sized) else None
        batches = track(loader, f"epoch {number + 1} of {self.epochs}") if rank == 0 else loader
        for step, batch in enumerate(not_empty(batches, "fine-tuning")):
            self._set_learning_rate(number, step, steps)
            images, labels = self._tensors(batch, with_labels)
            with computing_in(self.settings.get("precision", "float32"), images.device):
                loss = task(images if augment is None else augment(images, generator), labels)
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            images_seen += len(images)
            losses.append(_finite(float(loss.detach()), number, step))
        self._keep(number)
        return Epoch(number, sum(losses) / len(losses), images_seen, time.perf_counter() - start)

    def _set_learning_rate(self, epoch: int, step: int, steps: int | None) -> None:
        within = 0.0 if steps is None else step / steps
        warm_up = 1.0 if epoch else (step + 1) / 20
        for group in self.optimizer.param_groups:
            group["lr"] = self.learning_rate * cosine((epoch + within) / self.epochs, warm_up)

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
        about = {"fxfactor": json.dumps({"epoch": epoch, **self.settings})}
        with new_file(self.folder / _CHECKPOINT, "keeping the state of the training") as temporary:
            save_file({name: value.detach().contiguous() for name, value in tensors.items()}, temporary, about)

    def _load(self) -> tuple[int, dict[str, Tensor]]:
        """Load the weights of the checkpoint, if any: the epoch that comes next, and all tensors that were kept."""
        path = None if self.folder is None else self.folder / _CHECKPOINT
        if path is None or not path.exists():
            return 0, {}
        with safe_open(path, framework="pt") as file:
            about = json.loads((file.metadata() or {}).get("fxfactor", "{}"))
        epoch = about.pop("epoch", None)
        if epoch is None or about != self.settings:
            raise PreconditionError(
                f"the checkpoint {str(path)!r} is of another run: it has {about}, this run {self.settings}; "
                "give the same settings to go on, or another folder to start anew"
            )
        saved = load_file(path, device=str(next(self.model.parameters()).device))
        weights = {name.removeprefix("model."): value for name, value in saved.items() if name.startswith("model.")}
        self.model.load_state_dict(weights)
        return int(epoch) + 1, saved


def _process() -> int | None:
    """The rank of this process under torchrun; None where there is only one process."""
    return distributed.get_rank() if distributed.is_available() and distributed.is_initialized() else None


def _finite(loss: float, epoch: int, step: int) -> float:
    if not math.isfinite(loss):
        raise FxfactorError(
            f"the loss is {loss} at step {step} of epoch {epoch}; lower learning_rate, or check the images for values "
            "that are not finite"
        )
    return loss


def _require_settings(epochs: int, learning_rate: float, teacher: nn.Module | None, label_weight: float) -> None:
    if epochs < 1 or not 0 < learning_rate < math.inf or not 0 <= label_weight < math.inf:
        raise PreconditionError(
            "fine-tuning needs epochs ≥ 1, learning_rate > 0 and label_weight ≥ 0, found "
            f"epochs={epochs}, learning_rate={learning_rate}, label_weight={label_weight}"
        )
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise PreconditionError(
            f"teacher must be the network that was transformed, found {type(teacher).__name__}; pass teacher=model"
        )


def _require_one_of(name: str, found: str, allowed: tuple[str, ...]) -> None:
    if found not in allowed:
        names = " or ".join(f'"{each}"' for each in allowed)
        raise PreconditionError(f"{name} must be {names}, found {found!r}")
