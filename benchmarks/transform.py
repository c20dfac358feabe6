"""The time of `fxfactor.transform` beside its own floor and beside others, in one run.

    python benchmarks/transform.py --repeats 5

The floor is what any way of doing the same must do: the singular value decompositions, one copy of the model, and the
construction of the Brevitas modules that the result has. Everything is measured in CPU seconds on one thread, in turn,
so that what else the machine does disturbs all alike. Peers that are not installed or stop with an error are said so:

* tensorly-torch (`pip install tensorly-torch`): the same convolutions, Tucker, with as many parameters
* Brevitas' own graph quantization: `preprocess_for_quantize` and `quantize`; it factorizes nothing
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.quant import Int8WeightPerChannelFloat
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision import models

import fxfactor
from fxfactor.factors.weights import svd_factors
from fxfactor.graph import is_quantizer, sites
from fxfactor.quantization.brevitas_layers import (
    SignedActivation,
    UnsignedActivation,
    is_quantized_layer,
    is_signed,
    quantizer_bits,
    weight_bits_of,
)

LEVEL, BITS = 3, 4
console = Console()


def cpu_seconds(work: Callable[[], object]) -> float:
    start = time.process_time()
    work()
    return time.process_time() - start


def factorized(model: nn.Module, result: torch.fx.GraphModule) -> Iterator[tuple[nn.Conv2d, int, int]]:
    """The original convolution, groups and middle channels of every factorized site."""
    for name, site in sites(result).items():
        if site.factorized:
            yield model.get_submodule(name), site.modules[0].groups, site.modules[0].out_channels


def decompose(convolutions: list[tuple[nn.Conv2d, int, int]]) -> None:
    for conv, groups, mid in convolutions:
        svd_factors(conv.weight.detach(), groups, mid, conv.groups)


def construct(result: torch.fx.GraphModule) -> None:
    """Build every Brevitas module of the result by Brevitas' own constructors, and nothing else."""
    for layer in result.modules():
        if is_quantized_layer(layer):
            quantized: dict[str, Any] = {
                "weight_quant": Int8WeightPerChannelFloat,
                "weight_bit_width": weight_bits_of(layer),
            }
            if isinstance(layer, nn.Linear):
                qnn.QuantLinear(layer.in_features, layer.out_features, bias=layer.bias is not None, **quantized)
                continue
            sizes = (layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding)
            qnn.QuantConv2d(*sizes, groups=layer.groups, bias=layer.bias is not None, **quantized)
        elif is_quantizer(layer):
            signed = is_signed(layer)
            kind = SignedActivation if signed else UnsignedActivation
            low = {"min_val": -1.0} if signed else {}
            type(layer)(act_quant=kind, bit_width=quantizer_bits(layer), max_val=1.0, **low)


def with_tensorly(convolutions: list[tuple[nn.Conv2d, int, int]]) -> Callable[[], None]:
    import tltorch

    def run() -> None:
        for conv, groups, mid in convolutions:
            parameters = mid * conv.in_channels // groups * 9 + mid * conv.out_channels
            share = parameters / conv.weight.numel()
            tltorch.FactorizedConv.from_conv(conv, rank=share, decompose_weights=True, factorization="tucker")

    return run


def with_brevitas(model: nn.Module) -> Callable[[], None]:
    from brevitas.graph.quantize import preprocess_for_quantize, quantize

    return lambda: quantize(preprocess_for_quantize(copy.deepcopy(model)))


def ratio(values: list[float], floor: list[float]) -> str:
    """Median and range of the ratios taken repeat by repeat."""
    ratios = sorted(a / b for a, b in zip(values, floor, strict=False))
    return f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})"


def measure(name: str, size: int, repeats: int, slow_repeats: int) -> None:
    model = models.get_model(name, weights=None).eval()
    images = torch.randn(1, 3, size, size)

    def transform() -> torch.fx.GraphModule:
        return fxfactor.transform(model, level=LEVEL, bits=BITS, example_inputs=images)

    result = transform()
    convolutions = list(factorized(model, result))
    works: dict[str, tuple[Callable[[], object], int]] = {
        "fxfactor.transform": (transform, repeats),
        "floor: singular value decompositions": (lambda: decompose(convolutions), repeats),
        "floor: one copy of the model": (lambda: copy.deepcopy(model), repeats),
        "floor: Brevitas' constructors": (lambda: construct(result), repeats),
    }
    failures: dict[str, str] = {}
    for peer, make in (
        ("Brevitas' graph quantization", lambda: with_brevitas(model)),
        ("tensorly-torch, Tucker", lambda: with_tensorly(convolutions)),
    ):
        try:
            works[peer] = (make(), slow_repeats)
        except ImportError as error:
            failures[peer] = f"not installed: {error.name}"
    seconds: dict[str, list[float]] = {what: [] for what in works}
    for repeat in range(repeats):
        for what, (work, times) in works.items():
            if repeat >= times or what in failures:
                continue
            try:
                seconds[what].append(cpu_seconds(work))
            except (RuntimeError, ValueError, TypeError, AttributeError) as error:  # a peer's own code
                failures[what] = f"{type(error).__name__}: {str(error).splitlines()[0]}"
    report(name, seconds, failures, len(convolutions))


def report(name: str, seconds: dict[str, list[float]], failures: dict[str, str], count: int) -> None:
    parts = [values for what, values in seconds.items() if what.startswith("floor")]
    floor = [sum(values) for values in zip(*parts, strict=True)]
    table = Table(title=f"{name}, level {LEVEL}, {BITS} bits, {count} convolutions factorized", title_justify="left")
    table.add_column("what")
    for column in ("CPU seconds, median", "least … most", "to the floor, median (range)"):
        table.add_column(column, justify="right")
    for what, values in {**seconds, "floor, together": floor}.items():
        if values:
            spread = f"{min(values):.2f} … {max(values):.2f}"
            table.add_row(what, f"{statistics.median(values):.2f}", spread, ratio(values, floor))
    for what, reason in failures.items():
        table.add_row(what, "–", "", reason)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of fxfactor.transform beside its floor and beside others.")
    parser.add_argument("networks", nargs="*", default=["resnet18", "resnet50"])
    parser.add_argument("--size", type=int, default=224, help="pixels along a side of the image")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--slow-repeats", type=int, default=3, help="repeats for the peers, which take much longer")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    console.print(f"torch {torch.__version__}, {torch.get_num_threads()} thread, {arguments.repeats} repeats in turn")
    for name in arguments.networks:
        measure(name, arguments.size, arguments.repeats, arguments.slow_repeats)


if __name__ == "__main__":
    main()
