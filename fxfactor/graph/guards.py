"""A graph that is right only for the batch or image size of its capture says so when it is given another."""

from __future__ import annotations

from functools import partial
from operator import is_not

import torch
from torch import Tensor
from torch.fx import GraphModule

from fxfactor.errors import PreconditionError
from fxfactor.graph.edits import set_shape
from fxfactor.graph.questions import placeholders, shape_of


def require_shape(x: Tensor, shape: tuple[int | None, ...], name: str) -> Tensor:
    """`x` as it is, if it has this shape, where None stands for any size. Raise PreconditionError otherwise."""
    if torch.jit._trace.is_tracing():  # an exporter writes the shapes of its own example
        return x
    if len(x.shape) != len(shape) or any(b is not None and a != b for a, b in zip(x.shape, shape, strict=True)):
        wanted = "×".join("any" if size is None else str(size) for size in shape)
        raise PreconditionError(
            f"input {name!r} must be of shape {wanted}, found {'×'.join(map(str, x.shape))}: the model's forward reads this "
            "size, so that the captured graph is right for no other; capture the model again with "
            "example_inputs= of the other size"
        )
    return x


def fix_shapes(graph: GraphModule, fixed: tuple[str, ...]) -> None:
    """Check on every input what was `fixed` at capture: its "batch", its "size" or both."""
    for node in placeholders(graph):
        if "tensor_meta" not in node.meta or not node.users:
            continue
        whole = shape_of(node)
        shape = tuple(
            size if ("batch" if index == 0 else "size") in fixed else None for index, size in enumerate(whole)
        )
        with graph.graph.inserting_before(node.next):
            check = graph.graph.call_function(require_shape, (node, shape, str(node.target)))
        node.replace_all_uses_with(check, delete_user_cb=partial(is_not, check))
        set_shape(check, node)
