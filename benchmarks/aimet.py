"""Depth factorization beside AIMET's spatial SVD (k×1 then 1×k) at equal MACs: ResNet-20 in floating point, no training.

    pip install aimet-torch           # pulls a torch of its own: use an environment for it
    python benchmarks/aimet.py

Every layer that fxfactor factorizes at a level is given to AIMET (ModelCompressor, spatial SVD, manual mode) with the
compression ratio that it has here; both need no data. The last row of a level fits fxfactor's factors to the layers' outputs
on 256 training images, which AIMET does not offer for spatial SVD. MACs are counted on what came out. Data: see data.py.
"""

from __future__ import annotations

import argparse
import contextlib
import copy
import io
import time
from collections.abc import Iterator
from decimal import Decimal
from typing import Any

import torch
from data import Data, find
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

import fxfactor
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.passes import FactorizeDepth


@torch.no_grad()
def macs(model: nn.Module, image: Tensor) -> dict[str, int]:
    """Multiply-accumulates of every convolution and linear layer for one image."""
    found: dict[str, int] = {}

    def count(name: str) -> Any:
        def hook(module: Any, inputs: Any, output: Tensor) -> None:
            pixels = output.numel() // output.shape[1]
            found[name] = pixels * module.weight.numel()

        return hook

    hooks = [
        module.register_forward_hook(count(name))
        for name, module in model.named_modules()
        if isinstance(module, nn.Conv2d | nn.Linear)
    ]
    model(image)
    for hook in hooks:
        hook.remove()
    return found


def by_aimet(model: nn.Module, ratios: dict[str, float], image: Tensor) -> nn.Module:
    """Spatial SVD of the layers in `ratios`, each left with that share of its MACs."""
    from aimet_torch.common.defs import CompressionScheme, CostMetric
    from aimet_torch.compress import ModelCompressor
    from aimet_torch.defs import ModuleCompRatioPair, SpatialSvdParameters

    model = copy.deepcopy(model)
    pairs = [ModuleCompRatioPair(model.get_submodule(name), Decimal(f"{ratio:.4f}")) for name, ratio in ratios.items()]
    mode = SpatialSvdParameters.ManualModeParams(pairs)
    parameters = SpatialSvdParameters(SpatialSvdParameters.Mode.manual, mode)
    compressed, _ = ModelCompressor.compress_model(
        model, eval_callback=lambda *_: 0.0, eval_iterations=1, input_shape=tuple(image.shape), cost_metric=CostMetric.mac,
        compress_scheme=CompressionScheme.spatial_svd, parameters=parameters,
    )  # fmt: skip
    return compressed.eval()


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in per cent."""
    predicted = torch.cat([model(batch).argmax(1) for batch in images.split(200)])
    return 100 * float((predicted == labels).double().mean())


def measure(options: argparse.Namespace, data: Data) -> Iterator[tuple[Any, str, int, float, float]]:
    calibration, test = data.cifar10("train")[0][:256], data.cifar10("test")
    image = calibration[:1]
    original = fxfactor.capture(data.cifar_resnet(options.depth), image)
    dense = macs(original, image)
    yield 0, "original", sum(dense.values()), accuracy(original, *test), 0.0
    for level in options.level:
        start = time.process_time()
        graph = FactorizeDepth(level=level)(original).graph
        seconds, ours = time.process_time() - start, macs(graph, image)
        yield level, "fxfactor, truncated SVD", sum(ours.values()), accuracy(graph, *test), seconds
        shares = {name: sum(ours.get(f"{name}.{part}", 0) for part in ("spatial", "pointwise")) for name in dense}
        ratios = {name: share / dense[name] for name, share in shares.items() if share}
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = by_aimet(original, ratios, image)
        seconds = time.process_time() - start
        yield level, "AIMET, spatial SVD", sum(macs(theirs, image).values()), accuracy(theirs, *test), seconds
        start = time.process_time()
        fit_to_outputs(original, graph, list(calibration.split(64)))
        seconds = time.process_time() - start
        yield level, "fxfactor, fitted to outputs", sum(ours.values()), accuracy(graph, *test), seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, default=20, help="20 or 32")
    parser.add_argument("--level", type=int, nargs="+", default=[1, 2, 3])
    options = parser.parse_args()
    torch.set_num_threads(1)
    table = Table("level", "", "million MACs", "test %", "± s.e.", "CPU s")
    for level, what, count, percent, seconds in measure(options, find()):
        error = (percent * (100 - percent) / 1000) ** 0.5
        table.add_row(str(level), what, f"{count / 1e6:.2f}", f"{percent:.1f}", f"{error:.1f}", f"{seconds:.1f}")
    Console().print(table)


if __name__ == "__main__":
    main()
