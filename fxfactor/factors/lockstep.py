"""A graph on several batches at once, advanced from node to node, and the moments of what passes there."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any, cast

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node
from torch.nn import functional as F

from fxfactor.factors.least_squares import PatchMoments
from fxfactor.graph.mixed_precision import Precision, computing_in
from fxfactor.graph.questions import Convolution, placeholders

_PATCH_BYTES = 1 << 26
"""Patches laid out at a time, at most (but those of one image in any case)."""


def moments_of(inputs: Tensor, outputs: Tensor, conv: Convolution) -> Iterator[PatchMoments]:
    """The moments of a batch of inputs and the outputs wanted for them, a few images at a time."""
    positions = outputs[0, 0].numel()
    bytes_per_image = conv.weight[0].numel() * conv.groups * positions * inputs.element_size()
    size = max(1, _PATCH_BYTES // bytes_per_image)
    for x, y in zip(inputs.split(size), outputs.split(size), strict=True):
        yield _moments_of(patches(x, conv), y.transpose(0, 1).reshape(conv.groups, y.shape[1] // conv.groups, -1))


def _moments_of(x: Tensor, y: Tensor) -> PatchMoments:
    """Moments of x (original_groups, d, positions) and y (original_groups, outputs, positions).

    Products are in the activations' own type: they are of one part of the images and centred, so nothing cancels.
    """
    count = x.shape[-1]
    x_mean, y_mean = x.mean(-1, dtype=torch.float64), y.mean(-1, dtype=torch.float64)
    x = x - x_mean[..., None].to(x.dtype)
    y = y - y_mean[..., None].to(y.dtype)
    return PatchMoments(
        count,
        x_mean,
        y_mean,
        inputs=(x @ x.mT).double() / count,
        cross=(y @ x.mT).double() / count,
        outputs=y.double().square().mean(-1),
    )


def patches(x: Tensor, conv: Convolution) -> Tensor:
    """What the kernel of `conv` meets at every output position: (groups, C_in/groups · ∏kernel, N · positions)."""
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    x = F.pad(x, cast(Any, conv)._reversed_padding_repeated_twice, mode=mode)
    for axis, (kernel, stride, dilation) in enumerate(zip(conv.kernel_size, conv.stride, conv.dilation, strict=True)):
        x = x.unfold(2 + axis, dilation * (kernel - 1) + 1, stride)[..., ::dilation]
    axes = len(conv.kernel_size)
    kernels, positions = range(2 + axes, 2 + 2 * axes), range(2, 2 + axes)
    return x.permute(1, *kernels, 0, *positions).reshape(conv.groups, conv.weight[0].numel(), -1)


class Lockstep:
    """A graph in evaluation on several batches at once, each of them advanced from node to node as asked for.

    Asked for a node that it has passed, a batch is run anew from the start. With precision "bfloat16" the nodes compute in
    mixed precision; what is asked for comes in the type of the weights.
    """

    def __init__(
        self, graph: GraphModule, images: list[Tensor], memory_limit: int, precision: Precision = "float32"
    ) -> None:
        parameter = next(graph.parameters())
        self.type, self.precision = parameter.dtype, precision
        self.images = [batch.to(parameter) for batch in images]
        self.memory_limit = memory_limit
        self.interpreter = Interpreter(graph)
        self.input = placeholders(graph)[0]
        self.nodes = list(graph.graph.nodes)
        self.index = {node: index for index, node in enumerate(self.nodes)}
        self.live: list[dict[Node, Any]] = [{} for _ in images]
        self.position = [0] * len(images)
        self.bytes = [0] * len(images)

    def forget_behind(self, node: Node) -> None:
        """Whatever was computed from `node` on is computed anew: its module has changed."""
        for batch, position in enumerate(self.position):
            if position > self.index[node]:
                self._forget(batch)

    def _forget(self, batch: int) -> None:
        self.live[batch], self.position[batch], self.bytes[batch] = {}, 0, 0

    def needs(self, node: Node, others: Collection[Node]) -> bool:
        """Whether `node` is computed from one of `others`."""
        return bool(set(self._ancestors(node, ())).difference([node]).intersection(others))

    def input_of(self, batch: int, node: Node) -> Tensor:
        """What enters `node`, with all nodes before it as they are now."""
        return self._in_full(self._run(batch, self.index[node])[node.all_input_nodes[0]])

    def output_of(self, batch: int, node: Node) -> Tensor:
        """What `node` computes."""
        return self._in_full(self._run(batch, self.index[node] + 1)[node])

    def input_and(self, batch: int, node: Node, other: Node) -> tuple[Tensor, Tensor]:
        """What enters `node`, and what `other` computes from there; the batch advances no further than to `node`."""
        values = self._run(batch, self.index[node])
        return self._in_full(values[node.all_input_nodes[0]]), self._beside(values, other)

    def output_and(self, batch: int, node: Node, other: Node) -> tuple[Tensor, Tensor]:
        """What `node` computes, and what `other` computes from there; the batch advances no further than `node`."""
        values = self._run(batch, self.index[node] + 1)
        return self._in_full(values[node]), self._beside(values, other)

    def _beside(self, alive: dict[Node, Any], node: Node) -> Tensor:
        self.interpreter.env = values = dict(alive)
        for missing in self._ancestors(node, values):
            values[missing] = self._computed(missing)
        return self._in_full(values[node])

    def _computed(self, node: Node) -> Any:
        with computing_in(self.precision, self.images[0].device):
            return self.interpreter.run_node(node)

    def _in_full(self, value: Tensor) -> Tensor:
        return value.to(self.type) if value.dtype is torch.bfloat16 else value

    def behind(self, node: Node, wanted: Node) -> list[Node]:
        """The nodes that `wanted` needs and that come behind `node`, in the order of execution."""
        return [each for each in self._ancestors(wanted, ()) if self.index[each] > self.index[node]]

    def _ancestors(self, node: Node, known: Collection[Node]) -> list[Node]:
        """`node` and what it needs that is not known, in the order of execution."""
        waiting, found = [node], set[Node]()
        while waiting:
            each = waiting.pop()
            if each not in known and each not in found:
                found.add(each)
                waiting += each.all_input_nodes
        return sorted(found, key=self.index.__getitem__)

    def _run(self, batch: int, stop: int) -> dict[Node, Any]:
        """Advance to `stop` and return what is alive there; keep it for the next time where memory allows."""
        if stop < self.position[batch]:
            self._forget(batch)
        values = self.live[batch] or {self.input: self.images[batch]}
        self.interpreter.env = values
        for node in self.nodes[self.position[batch] : stop]:
            if node.op != "placeholder":
                values[node] = self._computed(node)
            for source in node.all_input_nodes:
                if all(self.index[user] <= self.index[node] for user in source.users):
                    values.pop(source, None)
        used = sum(value.nbytes for value in values.values() if isinstance(value, Tensor))
        keep = sum(self.bytes) - self.bytes[batch] + used <= self.memory_limit
        self.live[batch], self.position[batch] = (values, stop) if keep else ({}, 0)
        self.bytes[batch] = used if keep else 0
        return values
