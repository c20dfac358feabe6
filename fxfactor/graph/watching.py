"""Images in, and what runs inside a network meanwhile: batches of a loader, modules in evaluation, recorded tensors."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, nn
from torch.fx import GraphModule, Interpreter, Node

from fxfactor.errors import PreconditionError


def inputs_of(batch: Any) -> Tensor:
    """The images of a batch: the batch itself, or its first element where it is a tuple or list."""
    images = batch[0] if isinstance(batch, tuple | list) and len(batch) else batch
    if not isinstance(images, Tensor):
        raise PreconditionError(
            f"a batch must be a tensor of images or a tuple that starts with one, found {type(images).__name__}; "
            "wrap your loader: (images for images, labels in loader)"
        )
    if not images.numel():
        raise PreconditionError(
            f"a batch must hold at least one image, found a tensor of shape {tuple(images.shape)}; skip empty batches"
        )
    return images


def finite_inputs_of(batch: Any, what: str) -> Tensor:
    """As `inputs_of`, and raise PreconditionError for images that are NaN or infinite anywhere."""
    images = inputs_of(batch)
    if images.is_floating_point() and not bool(images.isfinite().all()):
        raise PreconditionError(
            f"{what} needs images whose values are numbers, found NaN or infinite ones in a batch of shape "
            f"{tuple(images.shape)}; repair or drop these images"
        )
    return images


def not_empty(loader: Iterable[Any], what: str) -> Iterator[Any]:
    """Every batch of a loader. Raises PreconditionError at the end of one that had none."""
    empty = True
    for batch in loader:
        empty = False
        yield batch
    if empty:
        raise PreconditionError(f"{what} needs at least one batch of images, found an empty loader")


def images_of(loader: Iterable[Any], what: str, at_most: int | None = None) -> list[Tensor]:
    """Batches of the images of a loader, of the first `at_most` where that is given.

    Raises PreconditionError where there are none, and on a batch that holds no tensor, no image, or no finite numbers.
    """
    batches: list[Tensor] = []
    left = at_most
    for batch in not_empty(loader, what):
        batches.append(finite_inputs_of(batch, what)[:left])
        if left is not None:
            left -= len(batches[-1])
            if left <= 0:
                break
    return batches


@contextmanager
def modes_kept(*models: nn.Module) -> Iterator[None]:
    """Afterwards every module is in the mode, training or evaluation, that it was in, also where something is raised."""
    modes = {module: module.training for model in models for module in model.modules()}
    try:
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """All modules evaluate meanwhile; afterwards each is in the mode that it was in."""
    with modes_kept(*models):
        for model in models:
            model.eval()
        yield


class _Watched(Interpreter):
    def __init__(self, graph: GraphModule, see: Callable[[Node, tuple[Any, ...], Any], None]) -> None:
        super().__init__(graph)
        self.see = see

    def run_node(self, node: Node) -> Any:
        arguments, _ = self.fetch_args_kwargs_from_env(node)
        value = super().run_node(node)
        self.see(node, arguments, value)
        return value


def watch(graph: GraphModule, inputs: Sequence[Any], see: Callable[[Node, tuple[Any, ...], Any], None]) -> Any:
    """Run a graph, call `see(node, its arguments, its value)` at every node, and return the output."""
    return _Watched(graph, see).run(*inputs, enable_io_processing=False)


def record(graph: GraphModule, inputs: Sequence[Any], nodes: Collection[Node]) -> tuple[Any, dict[Node, Tensor]]:
    """The output of a graph, and what `nodes` compute, in the order of execution."""
    wanted, values = set(nodes), dict[Node, Tensor]()

    def see(node: Node, arguments: tuple[Any, ...], value: Any) -> None:
        if node in wanted:
            values[node] = value

    return watch(graph, inputs, see), values
