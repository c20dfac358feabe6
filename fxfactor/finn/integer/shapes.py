"""Flattening, padding, concatenation and splits: the same integers in another place."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx

from fxfactor.finn import rules
from fxfactor.finn.integer.channels import SHUFFLE
from fxfactor.finn.integer.context import Context, Handler
from fxfactor.finn.integer.emitting import flattened, joined, split_channels
from fxfactor.finn.integer.onnx_constants import Broken, Value, attributes_of
from fxfactor.finn.integer.streams import Integers, Stream
from fxfactor.finn.integer.values import operand, require_quantized

_FLAT = 2
"""Dimensions of what a linear layer works on."""


def _flatten(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    features = int(np.prod(x.shape))
    if node.op_type == "Flatten":
        target: tuple[int, ...] = (1, -1) if attributes_of(node).get("axis", 1) == 1 else ()
    elif node.op_type == "Reshape":
        target = tuple(int(size) for size in np.ravel(inputs[1]))  # type: ignore[arg-type]
    else:  # Squeeze of a pooled tensor
        target = (1, features) if len(x.shape) == 3 and x.shape[1:] == (1, 1) else ()
    if target in ((1, *x.shape), (0, *x.shape)):
        return (x,)
    if target not in ((1, -1), (1, features), (-1, features), (0, -1), (0, features)):
        found = f"{node.op_type} from {(1, *x.shape)} to {target}"
        if len(target) > _FLAT:
            raise Broken(rules.OPERATION, found, rules.REMEDIES["Reshape"])
        raise Broken(rules.LINEAR_INPUT, found, "use torch.flatten(x, 1)")
    return (x if len(x.shape) == 1 else flattened(context, node, x),)


def _pad(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    attributes = attributes_of(node)
    pads = [int(pad) for pad in np.ravel(inputs[1])] if len(inputs) > 1 else attributes.get("pads", [])  # type: ignore[arg-type]
    value = inputs[2] if len(inputs) > 2 else attributes.get("value")
    if attributes.get("mode", "constant") != "constant" or (value is not None and np.any(value)):  # type: ignore[arg-type]
        raise Broken(rules.PADDING, f"padding mode {attributes.get('mode')}", rules.REMEDIES["Pad"])
    if len(pads) != 8 or any(pads[0:2]) or any(pads[4:6]) or min(pads) < 0 or x.functions or x.pools or x.offset.any():
        raise Broken(rules.PADDING, f"padding {pads} as an operation of its own", rules.REMEDIES["Pad"])
    new = tuple(a + b for a, b in zip((pads[2], pads[3], pads[6], pads[7]), x.pads, strict=True))
    return (replace(x, pads=cast("tuple[int, int, int, int]", new)),)


def _concatenate(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    streams = [value for value in inputs if isinstance(value, Stream)]
    if len(streams) != len(inputs):
        raise Broken(rules.OPERATION, "a concatenation with a constant", rules.REMEDIES["Pad"])
    axis, rank = attributes_of(node)["axis"], len(streams[0].shape) + 1
    for x in streams:
        require_quantized(x, "put a quantizer before the concatenation")
    if axis % rank != 1 or (rank == 2 and any(x.order is not None for x in streams)):
        raise Broken(rules.OPERATION, f"a concatenation along axis {axis}", "concatenate along the channels")
    if len({x.tensor for x in streams}) < len(streams):
        raise Broken(rules.OPERATION, "a concatenation of a tensor with itself", "use a convolution with wider output")
    shape = (sum(x.channels for x in streams), *streams[0].shape[1:])
    return (replace(joined(context, context.site(node), streams), shape=shape, order=_order_of_all(streams)),)


def _order_of_all(streams: list[Stream]) -> Integers | None:
    """The order of the channels of a concatenation."""
    if all(x.order is None for x in streams):
        return None
    starts = np.cumsum([0, *(x.channels for x in streams)])
    orders = [np.arange(x.channels) if x.order is None else x.order for x in streams]
    return cast(Integers, np.concatenate([order + start for order, start in zip(orders, starts, strict=False)]))


def _split(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    attributes = attributes_of(node)
    axis, rank = attributes.get("axis", 0), len(x.shape) + 1
    sizes = inputs[1] if len(inputs) > 1 and inputs[1] is not None else attributes.get("split")
    if sizes is None:
        sizes = [x.channels // len(node.output)] * len(node.output)
    sizes = [int(size) for size in np.ravel(sizes)]  # type: ignore[arg-type]
    require_quantized(x, "split after a quantizer")
    if axis % rank != 1 or sum(sizes) != x.channels or (rank == 2 and x.order is not None):
        raise Broken(rules.SPLIT, f"sizes {sizes} along axis {axis}", "use torch.split(x, [n, ...], 1)")
    return _parts(context, context.site(node), x, sizes)


def _parts(context: Context, site: str, x: Stream, sizes: list[int]) -> Iterable[Value]:
    """The parts of x; where its channels lie in another order, each part is put together from the runs that it has in x."""
    order = np.arange(x.channels) if x.order is None else x.order
    starts = np.cumsum([0, *sizes])
    owner = np.searchsorted(starts, order, side="right") - 1
    cuts = [0, *(np.flatnonzero(np.diff(owner)) + 1).tolist(), x.channels]
    lengths = np.diff(cuts).tolist()
    names = split_channels(context, site, x.tensor, lengths)
    runs: list[list[Stream]] = [[] for _ in sizes]
    for name, start, length in zip(names, cuts, lengths, strict=False):
        chosen = slice(start, start + length)
        arrays: dict[str, Any] = {key: getattr(x, key)[chosen] for key in ("low", "high", "scale", "offset")}
        index = int(owner[start])
        own = None if x.order is None else order[chosen] - starts[index]
        runs[index].append(replace(x, tensor=name, shape=(length, *x.shape[1:]), columns=None, order=own, **arrays))
    for part in runs:
        if len(part) == 1:
            yield part[0]
        else:
            whole = joined(context, f"{site}.part", part)
            orders = [run.order for run in part if run.order is not None]
            yield replace(whole, shape=(whole.channels, *x.shape[1:]), order=np.concatenate(orders))


def _shuffle(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    """The same tensor, with its channels under other numbers."""
    x = operand(inputs)
    taken = np.asarray(attributes_of(node)["order"])
    place = np.argsort(taken)  # channel of the input → of the result
    order = place if x.order is None else place[x.order]
    return (replace(x, order=None if (order == np.arange(x.channels)).all() else order),)


def _identity(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    return (inputs[0],)


def _shape(context: Context, node: onnx.NodeProto, inputs: list[Value]) -> Iterable[Value]:
    x = operand(inputs)
    return (np.array([1, *x.shape], np.int64),)


HANDLERS: dict[str, Handler] = {
    SHUFFLE: _shuffle,
    "Concat": _concatenate,
    "Dropout": _identity,
    "Flatten": _flatten,
    "Identity": _identity,
    "Pad": _pad,
    "Reshape": _flatten,
    "Shape": _shape,
    "Split": _split,
    "Squeeze": _flatten,
}
