"""ResNet-20 on CIFAR-10 over the whole ladder, at 8 and at 4 bits: tables, pictures, page; time and memory of each.

    python benchmarks/distributions.py [--images 512] [--output out/distributions]

Data: see data.py. Factors and ranges are fitted to 256 training images ("fitted"), or, for comparison, factors to the
weights alone ("svd") and only the ranges to images. Measured on test images, which choose nothing.
"""

from __future__ import annotations

import argparse
import json
import platform
import resource
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from data import find
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.analysis.distributions import distributions
from fxfactor.analysis.table import Distributions
from fxfactor.report import plots, report
from fxfactor.report.style import save_png

LEVELS: tuple[Any, ...] = (0, 1, 2, 3, 4, 5, "depthwise")
SETS = (("fitted", 8), ("fitted", 4), ("svd", 4))


def main() -> None:
    options = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    options.add_argument("--images", type=int, default=512)
    options.add_argument("--output", type=Path, default=Path("out/distributions"))
    chosen = options.parse_args()
    chosen.output.mkdir(parents=True, exist_ok=True)
    torch.set_num_threads(1)
    data = find()
    model = data.cifar_resnet(20)
    train, _ = data.cifar10("train")
    images, labels = data.cifar10("test")
    train = train[:256].clone()
    print(
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}, one thread; {chosen.images} images"
    )
    print(f"{'original':28s} top-1 {accuracy(model, images, labels):.1%}")
    accuracies: dict[str, dict[str, float]] = {}
    for factors, bits in SETS:
        name = f"resnet20-{factors}-{bits}bit"
        variants, seconds = timed(lambda f=factors, b=bits: ladder(model, f, b, train))
        accuracies[name] = {"original": accuracy(model, images, labels)}
        accuracies[name] |= {level: accuracy(each, images, labels) for level, each in variants.items()}
        print(f"{name:28s} made in {seconds:5.0f} s; top-1 " + ", ".join(
            f"{level} {share:.1%}" for level, share in accuracies[name].items()))  # fmt: skip
        table = measure(model, variants, images, chosen.images, chosen.output / f"{name}.json")
        page, seconds = timed(
            lambda v=variants, t=table, n=name: report(
                v, chosen.output / f"{n}.html", original=model, distributions=t, accuracy=accuracies[n], title=n
            )
        )
        print(f"{'':28s} page in {seconds:.0f} s, {page.stat().st_size / 2**20:.1f} MiB")
        draw(table, chosen.output / name)
        for level, each in variants.items():
            fxfactor.save(each, chosen.output / f"{name}-{level.replace(' ', '')}")
    (chosen.output / "accuracy.json").write_text(json.dumps(accuracies, indent=1))


def ladder(model: nn.Module, factors: str, bits: int, train: Tensor) -> dict[str, GraphModule]:
    """The network at every level, by name."""
    made = {}
    for level in LEVELS:
        if factors == "fitted":
            made[f"level {level}"] = fxfactor.transform(model, level, bits, calibration=train.split(64), recover="none")
        else:
            graph = fxfactor.transform(model, level, bits, example_inputs=train[:1])
            made[f"level {level}"] = fxfactor.calibrate(graph, train.split(64))
    return made


def measure(
    model: nn.Module, variants: dict[str, GraphModule], images: Tensor, count: int, path: Path
) -> Distributions:
    """The table of one ladder, written to `path`; prints the time, and the peak of memory for a quarter and for all."""
    before = peak_mebibytes()
    distributions(model, variants, images[: count // 4].split(64))
    quarter = peak_mebibytes()
    table, seconds = timed(lambda: distributions(model, variants, images[:count].split(64)))
    table.to_json(path)
    table.to_csv(path.with_suffix(".csv"))
    per_image = 1000 * seconds / count / (1 + len(variants))
    print(f"{'':28s} measured in {seconds:5.0f} s ({per_image:.1f} ms for each image and network), {len(table)} rows; peak "
          f"memory {before:.0f} MiB before, {quarter:.0f} with {count // 4} images, {peak_mebibytes():.0f} with {count}; "
          f"JSON {path.stat().st_size / 2**20:.1f} MiB")  # fmt: skip
    return table


def draw(table: Distributions, stem: Path) -> None:
    """The pictures of docs/distributions.md."""
    pictures = {
        "errors": plots.errors(table),
        "channels": plots.channel_ranges(table, "between"),
        "between": plots.matrix(table, "sqnr_db", "between"),
        "ranges": plots.ranges(table, "between", ["level 1", "level 3", "level depthwise"]),
        "histograms": plots.histograms(table.where(variant="level depthwise", site="layer1.1.conv1"), 3),
    }
    for name, picture in pictures.items():
        save_png(picture, stem.with_name(f"{stem.name}-{name}.png"), 90)


@torch.no_grad()
def accuracy(network: nn.Module, images: Tensor, labels: Tensor) -> float:
    network.eval()
    right = sum(
        int((network(x).argmax(1) == y).sum()) for x, y in zip(images.split(250), labels.split(250), strict=True)
    )
    return right / len(labels)


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.perf_counter()
    result = work()
    return result, time.perf_counter() - start


def peak_mebibytes() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
