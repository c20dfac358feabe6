"""Accuracy of compressed CIFAR-10 networks on 1,000 test images, step by step: which step gives how many points.

    python benchmarks/accuracy.py --level 1 2 3 depthwise            # fp32 weights, 256 calibration images, no labels
    python benchmarks/accuracy.py --level 0 1 2 3 depthwise --bits 8 6 4 --steps 0 --brevitas    # post-training quantization
    python benchmarks/accuracy.py --level 3 --width 2                # twice the channels between the factors
    python benchmarks/accuracy.py --level 3 --bits 4 --epochs 3      # then fine-tuned with labels' images

Data: see data.py. Calibration: the first 256 training images. `held out` is the accuracy on 2,000 other
training images, which is what settings were chosen by; the test images choose nothing. Rows are appended to --out as JSON.
--brevitas adds Brevitas' own post-training quantization of the network as it is, by the functions of its ImageNet example.
"""

from __future__ import annotations

import argparse
import copy
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import torch
from data import Data, find
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.graph.mixed_precision import Precision
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.recovery.augment import flip_and_shift, flip_shift_and_cut
from fxfactor.recovery.finetune import finetune
from fxfactor.recovery.reconstruct import reconstruct
from fxfactor.recovery.round_weights import round_weights

Row = dict[str, Any]


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Top-1 in per cent; NaN without images."""
    if not len(images):
        return float("nan")
    with fused_quantizers(model):
        predicted = torch.cat([model(batch).argmax(1) for batch in images.split(200)])
    return 100 * float((predicted == labels).double().mean())


def standard_error(percent: float, count: int) -> float:
    """Binomial standard error of an accuracy, in points."""
    return (percent * (100 - percent) / count) ** 0.5


def factorized(
    original: GraphModule, calibration: list[Tensor], level: Any, width: float, precision: Precision
) -> Iterator[tuple[str, GraphModule]]:
    """The network with its factors by the truncated SVD, and then fitted."""
    graph = FactorizeDepth(level=level, width=width)(original).graph
    if level == 0:
        yield "original", graph
        return
    yield "truncated SVD", graph
    fit_to_outputs(original, graph, calibration, precision=precision)
    yield "fitted to outputs", graph


def steps_of(model: nn.Module, train: tuple[Tensor, Tensor], options: argparse.Namespace, graph: GraphModule, bits: Any
             ) -> Iterator[tuple[str, GraphModule]]:  # fmt: skip
    """The network after each further step, with the step's name. `graph` is not changed."""
    calibration = list(train[0][: options.calibration].split(64))
    original = fxfactor.capture(model, train[0][:1])
    graph = copy.deepcopy(graph)
    if bits is not None:
        graph = fxfactor.calibrate(Quantize(bits, bits, join_bits=options.join_bits)(graph).graph, calibration)
        yield "quantized, calibrated", graph
        if options.round:
            round_weights(original, graph, calibration)
            yield "weights rounded", graph
    if options.steps:
        augment = flip_shift_and_cut if options.mix else flip_and_shift
        done = reconstruct(original, graph, calibration, steps=options.steps, augment=augment, seed=options.seed,
                           learning_rate=options.reconstruction_rate)  # fmt: skip
        yield f"reconstructed at {done.learning_rate:g}, no labels", graph
    if options.epochs:
        torch.manual_seed(options.seed)
        loader = DataLoader(TensorDataset(*train), batch_size=64, shuffle=True)
        finetune(graph, loader, teacher=model, epochs=options.epochs, augment=flip_and_shift, seed=options.seed,
                 learning_rate=options.learning_rate, batch_norm=options.batch_norm)  # fmt: skip
        yield "fine-tuned", graph


def brevitas_ptq(
    model: nn.Module, calibration: list[Tensor], bits: int, backend: str
) -> Iterator[tuple[str, nn.Module]]:
    """Brevitas' own way, as its ImageNet example: batch norms folded, equalization, MSE scales, bias correction.

    backend: "fx" quantizes every layer and the additions at `bits`; "layerwise" the inputs and weights of the layers, the
    first convolution's at 8 bits. The network is given as captured: there the shortcuts, which Brevitas cannot slice, are
    convolutions.
    """
    from brevitas.graph.quantize import preprocess_for_quantize
    from brevitas_examples.imagenet_classification.ptq import ptq_common as ptq

    loader = [(batch, None) for batch in calibration]
    for gptq in (False, True) if backend == "layerwise" else (False,):
        graph = fxfactor.capture(model, calibration[0][:1])
        prepared = preprocess_for_quantize(graph, equalize_iters=20, equalize_merge_bias=True, merge_bn=True)
        quantized = ptq.quantize_model(
            prepared, backend=backend, weight_bit_width=bits, act_bit_width=bits,
            bias_bit_width=32 if backend == "fx" else None, weight_quant_granularity="per_channel",
            act_quant_percentile=99.999, act_quant_type="sym", scale_factor_type="float_scale", quant_format="int",
            weight_param_method="mse", act_param_method="stats", weight_narrow_range=True,
        )  # fmt: skip
        ptq.calibrate(loader, quantized)
        with torch.no_grad():
            quantized(calibration[0])  # its weight scales are found at the first call
        if gptq:
            ptq.apply_gptq(loader, quantized, act_order=True, use_quant_activations=True, create_weight_orig=True)
        ptq.apply_bias_correction(loader, quantized)
        yield f"Brevitas {backend}{', GPTQ' if gptq else ''}", quantized


def measure(options: argparse.Namespace, data: Data) -> Iterator[Row]:
    train, test = data.cifar10("train"), data.cifar10("test")
    held_out = train[0][1000 : 1000 + options.held_out], train[1][1000 : 1000 + options.held_out]
    calibration = list(train[0][: options.calibration].split(64))

    def rows(steps: Iterator[tuple[str, Any]], **common: Any) -> Iterator[Row]:
        start = time.process_time()
        for step, graph in steps:
            seconds = time.process_time() - start
            yield {**common, "step": step, "test": accuracy(graph, *test), "held_out": accuracy(graph, *held_out),
                   "million_macs": round(fxfactor.cost(graph).macs / 1e6, 1) if isinstance(graph, GraphModule) else None,
                   "cpu_seconds": round(seconds, 1), "steps": options.steps, "epochs": options.epochs}  # fmt: skip
            start = time.process_time()

    for depth in options.depth:
        model = data.cifar_resnet(depth)
        base = {"network": f"ResNet-{depth}", "calibration": options.calibration, "seed": options.seed}
        yield from rows(iter([("original", model)]), **base, level=0, bits=None)
        for level in options.level:
            fitted = []
            shape = {"level": level, "width": options.width}
            original = fxfactor.capture(model, train[0][:1])
            graphs = factorized(original, calibration, level, options.width, options.precision)
            for row in rows(_remember(graphs, fitted), **base, **shape, bits=None):
                if level != 0:
                    yield row
            for bits in options.bits:
                yield from rows(steps_of(model, train, options, fitted[-1], bits), **base, **shape, bits=bits)
        for bits in options.bits if options.brevitas else ():
            for backend in ("fx", "layerwise"):
                yield from rows(brevitas_ptq(model, calibration, bits, backend), **base, level=0, bits=bits)


def _remember(steps: Iterator[tuple[str, GraphModule]], seen: list[GraphModule]) -> Iterator[tuple[str, GraphModule]]:
    for step, graph in steps:
        seen.append(graph)
        yield step, graph


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--depth", type=int, nargs="+", default=[20], help="20 or 32")
    parser.add_argument("--level", nargs="+", default=["1", "2", "3", "depthwise"])
    parser.add_argument("--width", type=float, default=1.0, help="channels between the factors / input channels")
    parser.add_argument("--bits", type=int, nargs="+", default=[None])
    parser.add_argument(
        "--precision", default="float32", choices=get_args(Precision), help="of the networks while they are fitted"
    )
    parser.add_argument("--calibration", type=int, default=256, help="training images for calibration")
    parser.add_argument("--held-out", type=int, default=2000, help="other training images that are predicted too")
    parser.add_argument("--no-round", dest="round", action="store_false", help="leave fxfactor.round_weights out")
    parser.add_argument("--join-bits", type=int, help="of tensors that enter additions; 8 if nothing is said")
    parser.add_argument("--brevitas", action="store_true", help="Brevitas' post-training quantization beside it")
    parser.add_argument("--steps", type=int, default=1300, help="steps of reconstruction; 0 for none")
    parser.add_argument(
        "--reconstruction-rate", type=float, help="learning rate of reconstruction, else chosen by trials"
    )
    parser.add_argument("--no-mix", dest="mix", action="store_false", help="images flipped and shifted only")
    parser.add_argument("--epochs", type=int, default=0, help="epochs of fine-tuning on all training images")
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--batch-norm", default="updated", help="fixed or updated; the tables were made with updated")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append the rows to this file, one JSON object a line")
    options = parser.parse_args()
    options.level = [level if level == "depthwise" else int(level) for level in options.level]
    torch.set_num_threads(options.threads)
    table = Table("network", "level", "bits", "step", "million MACs", "test %", "± s.e.", "held out %", "CPU s")
    for row in measure(options, find()):
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.out is not None:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        error, bits, macs = standard_error(row["test"], 1000), row["bits"] or "fp32", row["million_macs"] or ""
        cells = [row["network"], row["level"], bits, row["step"], macs, f"{row['test']:.1f}", f"{error:.1f}",
                 f"{row['held_out']:.1f}", row["cpu_seconds"]]  # fmt: skip
        table.add_row(*map(str, cells))
    console = Console()
    console.width = max(120, console.width)  # else a table that goes to a file is folded to 80
    console.print(table)


if __name__ == "__main__":
    main()
