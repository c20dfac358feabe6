"""A pass of your own, in a pipeline with fxfactor's: average pooling becomes a convolution. 15 seconds.

python examples/06_your_own_pass.py
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.graph import module_of, put_module, shape_of
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Change, Pass, Skip


@dataclass(frozen=True)
class PoolByConvolution(Pass):
    """Exact: an nn.AvgPool2d of k×k becomes a depthwise convolution whose weights are all 1/k².

    Before: `pool`, k×k. After: a convolution at the same path, weight (C, 1, k, k), C groups, that can be trained.
    Skipped where the pooling does not count its padding or rounds its output size up: a convolution cannot.
    """

    exact: ClassVar[bool] = True  # Pipeline(verify=True) takes us at our word and compares in float64
    largest: int = 8

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        for node in graph.graph.nodes:
            pool = module_of(node)
            if not isinstance(pool, nn.AvgPool2d):
                continue
            height, width = nn.modules.utils._pair(pool.kernel_size)
            if max(height, width) > self.largest:
                yield Skip(node.target, f"{height}×{width} is larger than {self.largest}")
            elif pool.ceil_mode or pool.divisor_override or (pool.padding and not pool.count_include_pad):
                yield Skip(node.target, "it weighs the pixels at the edge in another way")
            else:
                channels, like = shape_of(node)[1], next(graph.parameters())  # keep the graph's own dtype
                size, stride, padding = (height, width), pool.stride, pool.padding
                conv = nn.Conv2d(channels, channels, size, stride, padding, groups=channels, bias=False)
                conv.weight = nn.Parameter(torch.full_like(conv.weight, 1 / (height * width), dtype=like.dtype))
                put_module(graph, node.target, conv)
                yield Change(node.target, (f"depthwise {height}×{width} convolution",))


model = nn.Sequential(
    *(nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU()),
    *(nn.Conv2d(16, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU()),
    *(nn.AvgPool2d(2), nn.Conv2d(32, 32, 3), nn.ReLU(), nn.AvgPool2d(14), nn.Flatten(), nn.Linear(32, 10)),
).eval()

torch.manual_seed(0)
graph = fxfactor.capture(model, torch.randn(1, 3, 32, 32))
print("by itself:")
result = PoolByConvolution()(graph)
for record in (*result.changes, *result.skips):
    print("  ", record)
print("a second run changes nothing:", PoolByConvolution()(result.graph).changes == ())

pipeline = fxfactor.Pipeline(
    PoolByConvolution(largest=16), FactorizeDepth(level=2), Quantize(weight_bits=4, activation_bits=4), verify=True
)
print("in", pipeline)
fxfactor.summary(pipeline(graph).graph)
