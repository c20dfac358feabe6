"""Activation ranges from images: what enters each quantizer is counted, and the range that loses least is set."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Interpreter, Node

from fxfactor.arguments import checked
from fxfactor.errors import PreconditionError
from fxfactor.graph.questions import is_quantizer, module_of
from fxfactor.graph.watching import evaluating, inputs_of, not_empty
from fxfactor.progress import track
from fxfactor.quantization.brevitas_layers import is_signed, quantizer_bits, set_limit
from fxfactor.quantization.histogram import Histogram, best_limit


class _Counting(Interpreter):
    """Runs the graph with every quantizer counting what it is given; the quantizers pass it on unrounded."""

    def __init__(self, graph: GraphModule, histograms: dict[nn.Module, Histogram]) -> None:
        super().__init__(graph)
        self.histograms = histograms

    def run_node(self, node: Node) -> Any:
        module = module_of(node)
        if module is None or not is_quantizer(module):
            return super().run_node(node)
        (value,), _ = self.fetch_args_kwargs_from_env(node)
        try:
            self.histograms.setdefault(module, Histogram()).add(value)
        except ValueError as error:
            raise PreconditionError(
                f"calibration: NaN or infinite activations enter {str(node.target)!r}; check the images and the weights"
            ) from error
        if is_signed(module):
            return value
        return value.clamp(0, getattr(module, "at_most", None))


@checked
def calibrate(qmodel: GraphModule, loader: Iterable[Any]) -> GraphModule:
    """Set every activation range from images, in place, and return `qmodel`; its weights stay as they are.

    `loader` yields batches (N, C, H, W), or tuples that start with one; all of it is walked once. Each quantizer sees
    the activations of the network without activation quantization, collects them in a histogram, and gets the range at
    which rounding and clipping together lose least (`fxfactor.quantization.histogram.best_limit`). Memory: one
    histogram per quantizer.

    Raises PreconditionError on an empty loader, a batch that holds no tensor or no image, and images or activations that
    are not finite.
    """
    return set_ranges(qmodel, count_activations(qmodel, loader))


def count_activations(qmodel: GraphModule, loader: Iterable[Any]) -> dict[str, Histogram]:
    """What enters every quantizer on all images of `loader`, unrounded, by the path of the quantizer.

    Raises PreconditionError as `calibrate` does.
    """
    if not any(is_quantizer(module) for module in qmodel.modules()):
        return {}
    histograms: dict[nn.Module, Histogram] = {}
    counting = _Counting(qmodel, histograms)
    like = next(qmodel.parameters())
    with evaluating(qmodel), torch.no_grad():
        for batch in not_empty(track(loader, "calibrating"), "calibration"):
            counting.run(inputs_of(batch).to(like), enable_io_processing=False)
    return {name: histograms[module] for name, module in qmodel.named_modules() if module in histograms}


def set_ranges(qmodel: GraphModule, histograms: Mapping[str, Histogram]) -> GraphModule:
    """Set the range of every quantizer that was counted to the one that loses least at its bits, in place.

    What was counted in a network with more quantizers will do.
    """
    for name, quantizer in qmodel.named_modules():
        if name in histograms:
            set_limit(quantizer, best_limit(histograms[name], quantizer_bits(quantizer), is_signed(quantizer)))
    return qmodel
