"""Fine-tuning of compressed CIFAR-10 networks: accuracy on 1,000 test images before and after each stage.

    python benchmarks/finetuning.py                                  # level 3: 8 bits trained, then 4 bits from there
    python benchmarks/finetuning.py --stages 4:6 --level 2           # 4 bits at once, six epochs
    python benchmarks/finetuning.py --width 2 --learning-rate 2e-3   # twice the channels between the factors
    python benchmarks/finetuning.py --stages 32:2 4:4                # in floating point first
    python benchmarks/finetuning.py --stages 8:2 3:2 --pieces 4      # thresholds learned at 3 bits (at most 4)
    python benchmarks/finetuning.py --stages 8:1 4:1 --qat 1200      # plain Brevitas QAT of the same network, for as long
    python benchmarks/finetuning.py --hold-out --images 6400         # choose settings: 2,000 training images are kept back

A stage is BITS:EPOCHS (32: floating point); each starts from the weights of the stage before. Data: see
data.py; all 20,000 training images, the original network as teacher, no labels unless --label-weight. With --out, every
epoch is kept in that folder and a second call goes on from there; --stop-after ends the run after a stage.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from data import Data, find
from rich.console import Console
from rich.table import Table
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.passes import FactorizeDepth, LearnThresholds, Quantize
from fxfactor.plan.plan import Plan
from fxfactor.recovery.augment import flip_and_shift
from fxfactor.recovery.finetune import continue_from, finetune

Row = dict[str, Any]
Images = tuple[Tensor, Tensor]


@torch.no_grad()
def accuracy(model: nn.Module, images: Images) -> float:
    """Top-1 in per cent."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images[0].split(200)])
    return 100 * float((predicted == images[1]).double().mean())


def standard_error(percent: float, count: int) -> float:
    """Binomial standard error of an accuracy, in points."""
    return (percent * (100 - percent) / count) ** 0.5


def steps_of(
    model: nn.Module, train: Images, calibration: list[Tensor], options: argparse.Namespace
) -> Iterator[tuple[str, GraphModule]]:
    """The network after each step, with the step's name."""
    original = fxfactor.capture(model, train[0][:1])
    given = None if options.plan is None else Plan.load(options.plan)
    if given is not None:
        factorized = FactorizeDepth(plan=given)(original).graph
    else:
        factorized = FactorizeDepth(level=options.level, width=options.width)(original).graph
    if given is not None or options.level != 0:
        fit_to_outputs(original, factorized, calibration)
        yield "fitted to outputs, fp32", factorized
    if options.start is not None:
        _take_over(factorized, options.start)
    graph = factorized
    for number, (weight_bits, bits, epochs) in enumerate(options.stages):
        name = {0: "bits of the plan", 32: "fp32"}.get(bits, f"W{weight_bits}A{bits}")
        if bits < 32:
            if given is None:
                plan = Plan.uniform(factorized, 0, weight_bits, bits, join_bits=options.join_bits)
            else:
                plan = given if bits == 0 else _with_bits(given, weight_bits, bits)
            graph = Quantize(plan=plan)(factorized).graph
            if number:
                continue_from(graph, factorized)
            graph = fxfactor.calibrate(graph, calibration)
            graph = LearnThresholds(options.pieces)(graph).graph if options.pieces else graph
            yield f"{name}, calibrated", graph
        if options.qat:
            seen = plain_qat(graph, train, options)
            yield f"{name}, plain QAT with {seen:,} images", graph
            continue_from(factorized, graph)
            continue
        torch.manual_seed(options.seed)
        finetune(
            graph, DataLoader(TensorDataset(*train), batch_size=options.batch_size, shuffle=True, drop_last=True),
            teacher=model, epochs=epochs, augment=flip_and_shift, seed=options.seed, learning_rate=options.learning_rate,
            label_weight=options.label_weight, label_epochs=options.label_epochs, batch_norm=options.batch_norm,
            weight_limits=options.weight_limits, oscillations=options.oscillations,
            checkpoint=options.out and options.out / f"{number}-{bits}bits",
        )  # fmt: skip
        yield f"{name}, fine-tuned for {epochs} epochs", graph
        continue_from(factorized, graph)


def plain_qat(graph: GraphModule, train: Images, options: argparse.Namespace) -> int:
    """Quantization-aware training as Brevitas' examples do it, in place: labels, Brevitas' own quantizers, SGD with momentum.

    For as many CPU seconds as `--qat` says, with a cosine over them; batch norms are updated. Gives the images seen.
    """
    torch.manual_seed(options.seed)
    generator = torch.Generator().manual_seed(options.seed)
    optimizer = torch.optim.SGD(graph.parameters(), options.qat_rate, momentum=0.9, weight_decay=1e-4)
    loader = DataLoader(TensorDataset(*train), batch_size=options.batch_size, shuffle=True, drop_last=True)
    start, seen = time.process_time(), 0
    graph.train()
    while True:
        for images, labels in loader:
            spent = (time.process_time() - start) / options.qat
            if spent >= 1:
                graph.eval()
                return seen
            for group in optimizer.param_groups:
                group["lr"] = options.qat_rate * 0.5 * (1 + math.cos(math.pi * spent))
            loss = nn.functional.cross_entropy(graph(flip_and_shift(images, generator)), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            seen += len(images)


@torch.no_grad()
def _take_over(factorized: GraphModule, stage: Path) -> None:
    """The weights and batch norms that a stage of another run ended with."""
    saved = load_file(stage / "checkpoint.safetensors")
    for name, tensor in factorized.state_dict().items():
        tensor.copy_(saved[f"model.{name}"])


def _with_bits(plan: Plan, weight_bits: int, activation_bits: int) -> Plan:
    """The groups of a plan with other bits; its joins stay."""
    layers = {
        name: replace(layer, weight_bits=weight_bits, activation_bits=activation_bits)
        for name, layer in plan.layers.items()
    }
    return Plan(layers, plan.join_bits)


def measure(options: argparse.Namespace, data: Data) -> Iterator[Row]:
    train, judged = data.cifar10(options.split), data.cifar10("test")
    calibration = list(train[0][: options.calibration].split(64))
    if options.hold_out:
        judged = train[0][1000:3000], train[1][1000:3000]
        train = tuple(torch.cat([part[:1000], part[3000:]]) for part in train)
    train = tuple(part[: options.images] for part in train)
    model = data.cifar_resnet(options.depth)
    base = {"network": f"ResNet-{options.depth}", "level": str(options.plan or options.level), "width": options.width,
            "images": len(train[0]),
            "learning_rate": options.learning_rate, "batch_size": options.batch_size, "seed": options.seed,
            "label_weight": options.label_weight, "judged_on": len(judged[0])}  # fmt: skip
    yield {**base, "step": "original, fp32", "accuracy": accuracy(model, judged), "cpu_seconds": 0.0}
    start = time.process_time()
    for step, graph in steps_of(model, train, calibration, options):
        seconds = time.process_time() - start
        yield {**base, "step": step, "accuracy": accuracy(graph, judged), "cpu_seconds": round(seconds, 1)}
        if options.stop_after is not None and step.startswith(options.stop_after) and "fine-tuned" in step:
            return
        start = time.process_time()


def _stage(text: str) -> tuple[int, int, int]:
    """ "4:2", "2/4:3", "plan:3": weight bits, activation bits (0 for those of the plan) and epochs."""
    bits, epochs = text.replace("plan", "0").split(":")
    weight_bits, _, activation_bits = bits.partition("/")
    return int(weight_bits), int(activation_bits or weight_bits), int(epochs)


def _rate(text: str) -> float | None:
    return None if text == "try" else float(text)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="20 or 32")
    parser.add_argument("--level", default="3")
    parser.add_argument("--width", type=float, default=1.0, help="channels between the factors / input channels")
    parser.add_argument(
        "--stages",
        type=_stage,
        nargs="+",
        default=[(8, 8, 2), (4, 4, 2)],
        metavar="BITS:EPOCHS",
        help="4:2, or weight bits/activation bits: 2/4:3, or those of --plan: plan:3",
    )
    parser.add_argument("--plan", type=Path, help="a plan in the place of level and width")
    parser.add_argument(
        "--start",
        type=Path,
        metavar="OUT/0-8bits",
        help="begin with the weights of a stage of another run, as for an ablation",
    )
    parser.add_argument("--stop-after", metavar="W8A8", help="end after fine-tuning at these bits")
    parser.add_argument("--learning-rate", type=_rate, default=5e-3, help='a number, or "try"')
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--label-weight", type=float, default=0.0)
    parser.add_argument("--label-epochs", type=int, help="labels in so many of the last epochs of each stage alone")
    parser.add_argument("--pieces", type=int, default=0, help="learn thresholds, by curves of so many pieces")
    parser.add_argument(
        "--join-bits",
        type=int,
        help="of tensors that enter additions; 8 if not given, as many as the others in older tables",
    )
    parser.add_argument("--split", default="train", help="train: 20,000 images; train_all: 50,000")
    parser.add_argument("--images", type=int, default=50_000, help="how many of the training images")
    parser.add_argument("--calibration", type=int, default=256, help="training images for factors and ranges")
    parser.add_argument(
        "--hold-out", action="store_true", help="judge on 2,000 training images that are not trained on"
    )
    parser.add_argument("--batch-norm", default="updated", help="fixed or updated; the tables were made with updated")
    parser.add_argument("--weight-limits", default="learned", help="learned or largest; older tables: largest")
    parser.add_argument(
        "--qat",
        type=float,
        metavar="SECONDS",
        help="plain quantization-aware training instead, for so many CPU seconds a stage",
    )
    parser.add_argument("--qat-rate", type=float, default=0.02, help="of its SGD")
    parser.add_argument("--oscillations", default="free", help="free or frozen")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="folder for checkpoints and rows.jsonl")
    options = parser.parse_args()
    options.level = options.level if options.level == "depthwise" else int(options.level)
    torch.set_num_threads(options.threads)
    table = Table(
        "network", "level", "width", "step", "held out %" if options.hold_out else "test %", "± s.e.", "CPU s"
    )
    for row in measure(options, find()):
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.out is not None:
            options.out.mkdir(parents=True, exist_ok=True)
            with open(options.out / "rows.jsonl", "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        error = standard_error(row["accuracy"], row["judged_on"])
        cells = (row["network"], row["level"], f"{row['width']:g}", row["step"], f"{row['accuracy']:.1f}", f"{error:.1f}",
                 row["cpu_seconds"])  # fmt: skip
        table.add_row(*map(str, cells))
    Console().print(table)


if __name__ == "__main__":
    main()
