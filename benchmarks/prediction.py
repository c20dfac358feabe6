"""Does a search's prediction give the order that plans have after recovery? Random plans of ResNet-20 on CIFAR-10.

    python benchmarks/prediction.py out.json                    # 30 plans: rounded, then one epoch of 10,000 images: an hour
    python benchmarks/prediction.py out.json --plans 4 --train 1280

Every plan is drawn with a share of layers to factorize of its own, and with two to four numbers of bits of its own, so that plans
differ in how much they lose and in what they lose it by. What is predicted: the sum over the layers of what `search` measures
one layer at a time (every measure), on 512 training images. What is found: accuracy, and the Kullback-Leibler divergence from the
original's outputs, on the 1,000 test images, rounded and after training. Ends with Spearman's rank correlations, and those
of predictions corrected by a few of the plans (each plan predicted by corrections learnt from others).

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


def parts(plan: Plan, errors: dict[str, SiteErrors]) -> dict[str, Any]:
    """What is predicted: by each measure; and of "both" what factors, rounded weights and rounded activations lose."""
    predicted: dict[str, Any] = dict.fromkeys(MEASURES, 0.0)
    split = np.zeros(3)
    for name, layer in plan.layers.items():
        shape = Shape(layer.groups, layer.mid)
        for measure in MEASURES:
            predicted[measure] += errors[name].of(shape, layer, measure)
        weights = errors[name].weights[shape, layer.weight_bits].prod().sqrt()
        exact = errors[name].weights.get((shape, None))  # layers at the ends have 8 bits and nothing else
        factors = weights * (shape != Shape()) if exact is None else exact.prod().sqrt()
        activations = errors[name].activations[shape, layer.activation_bits].prod().sqrt()
        split += [float(factors), max(float(weights - factors), 0.0), float(activations)]
    return {**predicted, "parts": split.tolist()}


def divergence(network: nn.Module, original: nn.Module, images: Tensor) -> float:
    """Mean Kullback-Leibler divergence from the original's softmax, in nats."""
    total = 0.0
    with torch.no_grad():
        for part in images.split(250):
            p, q = original(part).log_softmax(1), network(part).log_softmax(1)
            total += float((p.exp() * (p - q)).sum())
    return total / len(images)


def correlations(rows: Sequence[dict[str, Any]]) -> Iterable[str]:
    """A line for each prediction: its order beside the order found."""
    found = {
        "accuracy, rounded": [-row["rounded"]["accuracy"] for row in rows],
        "accuracy, trained": [-row["trained"]["accuracy"] for row in rows],
        "divergence, rounded": [row["rounded"]["divergence"] for row in rows],
        "divergence, trained": [row["trained"]["divergence"] for row in rows],
    }
    predictions = {measure: [row["predicted"][measure] for row in rows] for measure in MEASURES}
    predictions["divergence, rounded, as found"] = found["divergence, rounded"]
    predictions[f"corrected by {LEARNT_FROM} trained plans"] = corrected(rows)
    for name, values in predictions.items():
        yield f"{name}: " + "; ".join(
            f"{what} {spearmanr(values, order).statistic:.3f}" for what, order in found.items()
        )


def corrected(rows: Sequence[dict[str, Any]]) -> list[float]:
    """Every plan's divergence after training, with weights of the three parts learnt from plans drawn among the others."""
    features = np.array([row["predicted"]["parts"] for row in rows])
    wanted = np.array([row["trained"]["divergence"] for row in rows])
    predicted = []
    for index in range(len(rows)):
        others = [each for each in range(len(rows)) if each != index]
        weights = []
        for seed in range(20):
            learnt = random.Random(seed).sample(others, min(LEARNT_FROM, len(others)))
            scale = 1 / wanted[learnt]  # relative errors count
            weights.append(nnls(features[learnt] * scale[:, None], wanted[learnt] * scale)[0])
        predicted.append(float(np.median(np.array(weights) @ features[index])))
    return predicted


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--plans", type=int, default=30)
    parser.add_argument("--train", type=int, default=10_000, help="training images of the epoch")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    model = find().cifar_resnet(20).eval()
    images, labels = find().cifar10("train")
    test = find().cifar10("test")
    batches = images[:512].split(64)
    graph = capture(model, images[:1]).eval()
    space = space_of(graph, LEVELS, (*BITS, None), widths=(1, 2))
    rows: list[dict[str, Any]] = json.loads(options.file.read_text()) if options.file.exists() else []
    if len(rows) < options.plans:
        errors = measure_errors(graph, batches, space)
    for number in range(len(rows), options.plans):
        plan = random_plan(space, random.Random(f"{options.seed}.{number}"))
        row: dict[str, Any] = {"plan": json.loads(plan.to_json()), "predicted": parts(plan, errors)}
        network = fxfactor.transform(model, plan=plan, calibration=batches[:4])
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
        print(
            f"plan {number}: {row['predicted']['both']:.3f} predicted, {row['rounded']}, {row['trained']}", flush=True
        )
    for line in correlations(rows):
        print(line)


if __name__ == "__main__":
    main()
