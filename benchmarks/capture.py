"""How many convolutions of foreign networks capture makes visible: the smallest member of every family of pytorchcv.

    pip install --no-deps pytorchcv==0.0.74
    python benchmarks/capture.py

One network for each file of pytorchcv that holds a classifier of 1,000 classes, with random weights. Counted are the calls of
F.conv2d in a run of the network against the convolutions of its graph. "less": the graph gives the same outputs with fewer
convolutions, since what leads to no output is dropped. "refused": by an error of ours, which is printed.
"""

from __future__ import annotations

import argparse
import inspect
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import fxfactor
from fxfactor.graph import convolutions, hidden_convolutions
from fxfactor.graph.compare import relative_difference

OTHER_TASKS = ("_cifar", "_svhn", "_cub", "_voc", "_coco", "_ade20k", "_cityscapes", "_celeba")


def smallest_of_each_family() -> Iterator[tuple[str, Callable[..., nn.Module]]]:
    """Name and builder, from few parameters to many; members that do not run are passed over."""
    from pytorchcv.model_provider import _models

    found: dict[str, tuple[int, str, Callable[..., nn.Module]]] = {}
    for name, build in _models.items():
        family = inspect.getmodule(build).__name__  # type: ignore[union-attr]
        if any(task in name for task in OTHER_TASKS):
            continue
        try:
            with torch.device("meta"):
                model = build(pretrained=False)
        except (RuntimeError, ValueError, TypeError, ModuleNotFoundError):  # made of values, not for "meta"; speech
            continue
        if getattr(model, "num_classes", None) == 1000:
            size = sum(parameter.numel() for parameter in model.parameters())
            found[family] = min(found.get(family, (size, name, build)), (size, name, build), key=lambda each: each[0])
    for _, name, build in sorted(found.values(), key=lambda each: each[0]):
        yield name, build


class Counting(TorchFunctionMode):
    """Counts the calls of F.conv2d."""

    calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.calls += func in (F.conv2d, torch.conv2d)
        return func(*args, **(kwargs or {}))


def verdict(model: nn.Module, images: Tensor) -> tuple[str, str]:
    """In a word what came of it, and the numbers."""
    with torch.no_grad(), Counting() as counting:
        wanted = model(images)
    try:
        graph = fxfactor.capture(model, images)
    except fxfactor.FxfactorError as error:
        return "refused", str(error)
    with torch.no_grad():
        different = relative_difference(graph(images), wanted)
    visible, hidden = len(list(convolutions(graph))), len(hidden_convolutions(graph))
    numbers = f"{visible} of {counting.calls} convolutions, {hidden} hidden, outputs differ by {different:.1e}"
    if different > 1e-4:
        return "different", numbers
    return ("hidden" if hidden else "all" if visible >= counting.calls else "less"), numbers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", default=(), help="names of networks")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    words: Counter[str] = Counter()
    for name, build in smallest_of_each_family():
        if options.only and name not in options.only:
            continue
        torch.manual_seed(0)
        model, started = build(pretrained=False).eval(), time.perf_counter()
        word, text = verdict(model, torch.randn(1, 3, *getattr(model, "in_size", (224, 224))))
        words[word] += 1
        print(f"{word:9} {name:24} {text} ({time.perf_counter() - started:.0f} s)", flush=True)
    print(", ".join(f"{count} {word}" for word, count in words.most_common()), "of", sum(words.values()))


if __name__ == "__main__":
    main()
