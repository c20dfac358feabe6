"""Does a search's prediction give the order that plans have after recovery? Random plans of ResNet-20 on CIFAR-10.

    python benchmarks/prediction.py out.json                    # 30 plans: rounded, then one epoch of 10,000 images: an hour
    python benchmarks/prediction.py out.json --plans 4 --train 1280

Every plan is drawn with a share of layers to factorize of its own, and with two to four numbers of bits of its own, so that plans
differ in how much they lose and in what they lose it by. What is predicted: the sum over the layers of what `search` measures
one layer at a time (every measure), on 512 training images. What is found: accuracy, and the Kullback-Leibler divergence from the
original's outputs, on the 1,000 test images, rounded and after training. Ends with Spearman's rank correlations, also of
predictions corrected by a few of the plans (each plan predicted by corrections learnt from others).

Plans that are done are kept in the file; a run that was stopped goes on there. Data: see data.py.
"""

from __future__ import annotations

import argparse
import json
import random
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from data import find
from scipy.optimize import nnls
from scipy.stats import spearmanr
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor.exploration.rung import top1
from fxfactor.files import write_text
from fxfactor.graph.capture import capture
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import Plan
from fxfactor.planning.search import LEVELS
from fxfactor.planning.sensitivity import MEASURES, SiteErrors, measure_errors
from fxfactor.planning.space import Shape, Space, space_of
from fxfactor.quantization.plain_copy import freeze

BITS = (2, 3, 4, 6, 8)
LEARNT_FROM = 10
"""Plans from which a correction is learnt; the others are predicted with it."""


def random_plan(space: Space, draw: random.Random) -> Plan:
    """Layers are factorized with one probability, and take their bits from a few numbers, both the plan's own."""
    share = draw.random()
    bits = draw.sample(BITS, draw.randint(2, 4))
    shared: dict[str, int] = {}
    layers = {}
    for name, shapes in space.shapes.items():
        shape = draw.choice(shapes[1:]) if len(shapes) > 1 and draw.random() < share else Shape()
        inner = len(space.weight_bits[name]) > 1
        weight = draw.choice(bits) if inner else space.weight_bits[name][0]
        activation = (
            shared.setdefault(space.sharing[name], draw.choice(bits)) if inner else space.activation_bits[name][0]
        )
        layers[name] = LayerPlan(shape.groups, shape.mid, weight, activation)
    return Plan(layers, 8)


def predicted(plan: Plan, errors: dict[str, SiteErrors]) -> tuple[dict[str, float], list[float]]:
    """What the plan loses by every measure; and what factors, rounded weights and rounded activations lose by "both"."""
    layers = [(name, Shape(layer.groups, layer.mid), layer) for name, layer in plan.layers.items()]
    totals = {
        measure: sum(errors[name].of(shape, layer, measure) for name, shape, layer in layers) for measure in MEASURES
    }
    return totals, np.sum([errors[name].parts(shape, layer) for name, shape, layer in layers], axis=0).tolist()


def divergence(network: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Mean Kullback-Leibler divergence from the original's softmax, in nats."""
    total = 0.0
    with torch.no_grad():
        for part in images.split(250):
            p, q = original(part).log_softmax(1), network(part).log_softmax(1)
            total += float((p.exp() * (p - q)).sum())
    return total / len(images)


def correlations(rows: Sequence[dict[str, Any]], errors: dict[str, SiteErrors]) -> Iterable[str]:
    """A line for each prediction: its order beside the order found; then what training leaves of each part."""
    found = {
        "accuracy, rounded": [-row["rounded"]["accuracy"] for row in rows],
        "accuracy, trained": [-row["trained"]["accuracy"] for row in rows],
        "divergence, rounded": [row["rounded"]["divergence"] for row in rows],
        "divergence, trained": [row["trained"]["divergence"] for row in rows],
    }
    totals, parts = zip(*(predicted(Plan.from_json(json.dumps(row["plan"])), errors) for row in rows), strict=True)
    predictions = {measure: [total[measure] for total in totals] for measure in MEASURES}
    predictions["divergence, rounded, as found"] = found["divergence, rounded"]
    for stage in ("rounded", "trained"):
        weights = weights_of(np.array(parts), np.array(found[f"divergence, {stage}"]))
        yield f"weights of factors, weights, activations, {stage}: {' : '.join(f'{each / weights[0]:.2f}' for each in weights)}"
    predictions[f"corrected by {LEARNT_FROM} other plans"] = corrected(
        np.array(parts), np.array(found["divergence, trained"])
    )
    for name, values in predictions.items():
        yield f"{name}: " + "; ".join(
            f"{what} {spearmanr(values, order).statistic:.3f}" for what, order in found.items()
        )


def weights_of(parts: np.ndarray, divergences: np.ndarray) -> np.ndarray:
    """Weights of the parts (plans, 3) that give the divergences (plans,) best; relative errors count, none is below 0."""
    return np.asarray(nnls(parts / divergences[:, None], np.ones(len(parts)))[0])


def corrected(parts: np.ndarray, divergences: np.ndarray) -> list[float]:
    """Every plan's divergence after training, by weights learnt from plans drawn among the others, 20 times: the median."""
    found = []
    for index in range(len(parts)):
        others = [each for each in range(len(parts)) if each != index]
        drawn = [random.Random(seed).sample(others, min(LEARNT_FROM, len(others))) for seed in range(20)]
        weights = [weights_of(parts[learnt], divergences[learnt]) for learnt in drawn]
        found.append(float(np.median(np.array(weights) @ parts[index])))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--train", type=int, default=10_000, help="training images of the epoch")
    parser.add_argument("--depth", type=int, default=20, choices=(20, 32))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument(
        "--without-first", type=int, default=0, metavar="N", help="correlations of the other plans alone"
    )
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = find().cifar_resnet(options.depth).eval()
    images, labels = find().cifar10("train")
    test = find().cifar10("test")
    batches = images[:512].split(64)
    graph = capture(model, images[:1]).eval()
    space = space_of(graph, LEVELS, BITS, widths=(1, 2))
    rows: list[dict[str, Any]] = json.loads(options.file.read_text()) if options.file.exists() else []
    for number in range(len(rows), options.plans):
        plan = random_plan(space, random.Random(f"{options.seed}.{number}"))
        row: dict[str, Any] = {"plan": json.loads(plan.to_json())}
        network = fxfactor.transform(model, plan=plan, calibration=batches[:4], recover="none")
        fxfactor.round_weights(model, network, batches[:4])
        for stage in ("rounded", "trained"):
            if stage == "trained":
                torch.manual_seed(number)
                loader = DataLoader(TensorDataset(images[: options.train], labels[: options.train]), 64, shuffle=True)
                fxfactor.finetune(network, loader, teacher=model, epochs=1, augment=fxfactor.flip_and_shift)
            plain = freeze(network).eval()
            row[stage] = {"accuracy": top1(plain, [test]), "divergence": divergence(plain, model, test[0])}
        rows.append(row)
        write_text(options.file, json.dumps(rows, indent=1), "keeping what was found")
        print(f"plan {number}: rounded {row['rounded']}, trained {row['trained']}", flush=True)
    for line in correlations(rows[options.without_first :], measure_errors(graph, batches, space)):
        print(line)


if __name__ == "__main__":
    main()
