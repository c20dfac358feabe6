"""Foreign networks through everything: capture, transform, a training step, save and load, another batch and size.

    python benchmarks/zoo.py torchvision
    pip install --no-deps pytorchcv==0.0.74 && python benchmarks/zoo.py pytorchcv
    pip install --no-deps segmentation-models-pytorch monai efficientnet-pytorch geffnet pretrainedmodels resnest timm
    python benchmarks/zoo.py packages

Networks have random weights. Each runs in a process of its own, with a limit of time and parameters. A row says for every step
"ok", "refused" (an error of ours, which is printed), "raw" (any other error) or "wrong" (other numbers than the original's); the
steps behind a refusal are empty. Detectors are tried by their backbones and heads.
"""

from __future__ import annotations

import argparse
import importlib
import multiprocessing
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from capture import smallest_of_each_family
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import fxfactor
from fxfactor.graph.compare import relative_difference

Network = tuple[str, Callable[[], nn.Module], tuple[int, ...]]
"""Name, builder, shape of the images."""
STEPS = ("capture", "other sizes", "transform", "training step", "save and load")
TOLERANCE = 1e-4


# ---- sources ----


def from_torchvision() -> Iterator[Network]:
    """Every model that torchvision lists."""
    from torchvision import models

    large = ("vit", "swin", "maxvit", "mvit", "s3d")
    for name in models.list_models():
        builder = models.get_model_builder(name)
        kind = builder.__module__.split(".")[2]
        size = 224 if name.startswith(large) else 128 if name.startswith(("inception", "quantized_inception")) else 96
        if kind == "detection":
            size = 300 if name.startswith("ssd") else 256 if name.startswith("fasterrcnn_mobilenet") else 128
            yield f"{name} (backbone and heads)", lambda builder=builder: _Detector(builder), (1, 3, size, size)
        elif kind == "video":
            frames = 16 if name.startswith(("mvit", "swin3d", "s3d")) else 8
            yield name, lambda builder=builder: builder(weights=None), (1, 3, frames, size, size)
        elif kind == "segmentation":
            yield name, lambda builder=builder: builder(weights=None, weights_backbone=None), (1, 3, 96, 96)
        elif kind == "optical_flow":
            yield name, lambda builder=builder: _OfOne(builder(weights=None)), (1, 3, 128, 128)
        else:
            extra = {"init_weights": False} if "inception" in name or "googlenet" in name else {}
            yield name, lambda builder=builder, extra=extra: builder(weights=None, **extra), (1, 3, size, size)


class _Detector(nn.Module):
    """Backbone and heads of a detector: all of it but what chooses boxes by their values."""

    def __init__(self, builder: Callable[..., Any]) -> None:
        super().__init__()
        detector = builder(weights=None, weights_backbone=None)
        self.backbone = detector.backbone
        self.head = detector.head if hasattr(detector, "head") else detector.rpn.head
        regions = getattr(detector, "roi_heads", None)
        self.of_regions = None if regions is None else nn.Sequential(regions.box_head, regions.box_predictor)

    def forward(self, x: Tensor) -> Any:
        """What the heads give for every place, and for one region of each image."""
        features = self.backbone(x)
        features = [features] if isinstance(features, Tensor) else list(features.values())
        found = self.head(features)
        return found if self.of_regions is None else (found, self.of_regions(features[0][:, :, :7, :7]))


class _OfOne(nn.Module):
    """A network of two images, given one and the same shifted."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:
        """Whatever the network gives."""
        return self.network(x, x.roll(1, -1))


def from_pytorchcv() -> Iterator[Network]:
    """The smallest classifier of each family."""
    for name, build in smallest_of_each_family():
        yield name, lambda build=build: build(pretrained=False), (1, 3, 224, 224)


SEGMENTATION = ("Unet", "UnetPlusPlus", "MAnet", "Linknet", "FPN", "PSPNet", "PAN", "DeepLabV3", "DeepLabV3Plus",
                "UPerNet", "Segformer")  # fmt: skip
MONAI: dict[str, dict[str, Any]] = {
    "UNet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)},
    "AttentionUnet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "channels": (8, 16, 32), "strides": (2, 2)},
    "SegResNet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2},
    "BasicUNet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2},
    "BasicUNetPlusPlus": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2},
    "FlexibleUNet": {"in_channels": 3, "out_channels": 2, "backbone": "efficientnet-b0"},
    "HighResNet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2},
    "DenseNet121": {"spatial_dims": 2, "in_channels": 3, "out_channels": 10},
    "SEResNet50": {"spatial_dims": 2, "in_channels": 3, "num_classes": 10},
    "EfficientNetBN": {"model_name": "efficientnet-b0", "pretrained": False},
    "AutoEncoder": {"spatial_dims": 2, "in_channels": 3, "out_channels": 3, "channels": (8, 16), "strides": (2, 2)},
    "DynUNet": {"spatial_dims": 2, "in_channels": 3, "out_channels": 2, "kernel_size": [3, 3, 3], "strides": [1, 2, 2],
                "upsample_kernel_size": [2, 2]},
    "SwinUNETR": {"in_channels": 3, "out_channels": 2, "spatial_dims": 2, "feature_size": 12},
}  # fmt: skip
OTHERS: dict[str, tuple[str, ...]] = {
    "geffnet": ("efficientnet_lite0", "mixnet_s", "mobilenetv3_rw", "fbnetc_100", "spnasnet_100", "mnasnet_b1"),
    "pretrainedmodels": ("resnext101_32x4d", "nasnetamobile", "dpn68", "xception", "inceptionv4", "bninception",
                         "se_resnet50", "cafferesnet101", "inceptionresnetv2"),
    "resnest.torch": ("resnest50", "resnest50_fast_1s1x64d"),
    "timm": ("mobileone_s0", "repvgg_a0", "ghostnetv2_100", "hardcorenas_a", "tinynet_e", "edgenext_xx_small",
             "lcnet_050", "fastvit_t8", "efficientvit_b0", "repghostnet_050", "mobilenetv4_conv_small", "starnet_s1",
             "inception_next_atto", "hgnetv2_b0"),
}  # fmt: skip


def from_packages() -> Iterator[Network]:
    """Fifty and some networks of other packages."""
    for name in SEGMENTATION:
        encoder = "mobilenet_v2" if name in ("Unet", "FPN", "Linknet") else "resnet18"
        size = 128 if name == "PAN" else 96  # which pools more than the others
        yield f"smp {name}, {encoder}", lambda name=name, encoder=encoder: _made(
            "segmentation_models_pytorch", name, encoder_name=encoder, encoder_weights=None), (1, 3, size, size)  # fmt: skip
    for name, options in MONAI.items():
        shape = (1, 3, 96, 96)
        yield f"monai {name}", lambda name=name, options=options: _made("monai.networks.nets", name, **options), shape
    yield "efficientnet_pytorch b0", _efficientnet, (1, 3, 96, 96)
    for package, names in OTHERS.items():
        options = {"pretrained": None, "num_classes": 1000} if package == "pretrainedmodels" else {"pretrained": False}
        for name in names:
            size = 299 if name in ("xception", "inceptionv4", "inceptionresnetv2") else 224
            size = 256 if name == "fastvit_t8" else size
            yield f"{package} {name}", lambda package=package, name=name, options=options: _made(
                package, "create_model" if package == "timm" else name, *((name,) if package == "timm" else ()), **options
            ), (1, 3, size, size)  # fmt: skip


def _made(package: str, name: str, *args: Any, **options: Any) -> nn.Module:
    made: nn.Module = getattr(importlib.import_module(package), name)(*args, **options)
    return made


def _efficientnet() -> nn.Module:
    from efficientnet_pytorch import EfficientNet

    made: nn.Module = EfficientNet.from_name("efficientnet-b0")
    return made


SOURCES = {"torchvision": from_torchvision, "pytorchcv": from_pytorchcv, "packages": from_packages}


# ---- steps ----


def through(build: Callable[[], nn.Module], shape: tuple[int, ...], most: float) -> Iterator[tuple[str, str]]:
    """Step after step: its name, and what came of it."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    torch.manual_seed(0)
    model = build().eval()
    shape = (*shape[:2], *getattr(model, "in_size", shape[2:]))  # pytorchcv's networks say what they are made for
    size = sum(parameter.numel() for parameter in model.parameters())
    if size > most:
        yield "capture", f"left out: {size / 1e6:.0f} million parameters"
        return
    images = torch.randn(shape)
    graph = fxfactor.capture(model, images).eval()
    yield "capture", "ok"
    yield "other sizes", _other_sizes(model, graph, shape)
    del graph  # the largest networks take 13 times the memory of their weights with it
    network = fxfactor.transform(model, level=3, bits=4, example_inputs=images)
    yield "transform", "ok" if _finite(network(images)) else "wrong: outputs are not finite"
    yield "training step", _training_step(network, images)
    with tempfile.TemporaryDirectory() as folder:
        fxfactor.save(network.eval(), Path(folder) / "network")
        again = fxfactor.load(Path(folder) / "network", model).eval()
        with torch.no_grad():
            same = relative_difference(again(images), network(images)) == 0
    yield "save and load", "ok" if same else "wrong: other outputs"


def _other_sizes(model: nn.Module, graph: nn.Module, shape: tuple[int, ...]) -> str:
    """Two images, and images half as large again, where the original takes them."""
    told = []
    for name, other in (("batch", (2, *shape[1:])), ("size", (*shape[:-2], *(each * 3 // 2 for each in shape[-2:])))):
        images = torch.randn(other)
        try:
            with torch.no_grad():
                wanted = model(images)
        except Exception:  # whatever the original says
            continue
        try:
            with torch.no_grad():
                difference = relative_difference(graph(images), wanted)
        except (fxfactor.FxfactorError, AssertionError) as error:  # the graph's own guards
            told.append(f"{name} refused ({_first(error)})")
            continue
        if not difference <= TOLERANCE:
            return f"wrong: another {name} differs by {difference:.1e}"
    return ", ".join(told) or "ok"


def _training_step(network: nn.Module, images: Tensor) -> str:
    network.train()
    batch = images.repeat(2, *[1] * (images.dim() - 1)) + 0.1 * torch.randn(2, *images.shape[1:])
    optimizer = torch.optim.SGD(network.parameters(), 1e-4)
    leaves = [each for each in tree_leaves(network(batch)) if isinstance(each, Tensor) and each.requires_grad]
    sum(each.float().pow(2).mean() for each in leaves).backward()  # type: ignore[union-attr]
    gradients = [each.grad for each in network.parameters() if each.grad is not None]
    optimizer.step()
    if not gradients or not all(torch.isfinite(each).all() for each in gradients):
        return f"wrong: {len(gradients)} gradients, not all finite"
    return "ok"


def _finite(outputs: Any) -> bool:
    return all(bool(torch.isfinite(each).all()) for each in tree_leaves(outputs) if isinstance(each, Tensor))


def _first(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:160]


def _child(queue: Any, source: str, name: str, most: float) -> None:
    build, shape = next((build, shape) for other, build, shape in SOURCES[source]() if other == name)
    step = iter(STEPS)
    try:
        for made, word in through(build, shape, most):
            next(step)
            queue.put((made, word))
    except fxfactor.FxfactorError as error:
        queue.put((next(step), f"refused: {_first(error)}"))
    except Exception as error:  # this is what is looked for
        queue.put((next(step), f"raw: {type(error).__name__}: {_first(error)}"))


def verdicts(source: str, name: str, most: float, limit_s: float) -> dict[str, str]:
    """Step -> what came of it, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue: Any = context.Queue()
    process = context.Process(target=_child, args=(queue, source, name, most))
    process.start()
    process.join(limit_s)
    late = process.is_alive()
    if late:
        process.kill()
        process.join()
    found: dict[str, str] = {}
    while not queue.empty():
        step, word = queue.get()
        found[step] = word
    missing = next((step for step in STEPS if step not in found), None)
    if late and missing:
        found[missing] = f"not done in {limit_s:.0f} s"
    elif process.exitcode and missing:
        found[missing] = f"raw: ended with status {process.exitcode}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", choices=SOURCES)
    parser.add_argument("--only", nargs="+", default=(), help="names of networks, or parts of them")
    parser.add_argument("--seconds", type=float, default=900, help="for each network")
    parser.add_argument("--parameters", type=float, default=70, help="millions at most")
    options = parser.parse_args()
    words: dict[str, Counter[str]] = {step: Counter() for step in STEPS}
    print(f"| network | {' | '.join(STEPS)} | seconds |\n|{'---|' * (len(STEPS) + 2)}")
    for name, *_ in SOURCES[options.source]():
        if options.only and not any(part in name for part in options.only):
            continue
        started = time.perf_counter()
        found = verdicts(options.source, name, options.parameters * 1e6, options.seconds)
        for step, word in found.items():
            words[step][word.partition(":")[0].partition(" (")[0]] += 1
        cells = (found.get(step, "").replace("|", "/") for step in STEPS)
        print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - started:.0f} |", flush=True)
    for step, counts in words.items():
        print(f"{step}: {', '.join(f'{count} {word}' for word, count in counts.most_common())}")


if __name__ == "__main__":
    main()
