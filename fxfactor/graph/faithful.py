"""Does a graph compute what the model computes? Model and graph are run side by side, in evaluation and in training.

In evaluation on another batch and another image size than those of the capture, where the model takes them: what was read
from the shapes while tracing shows there. The model is run twice: what it remembers from one call to the next shows in the
second. In training once, both from one seed: outputs, buffers and gradients. Small images keep this cheap (64×64 in
place of 224×224). All of it happens on copies, and the random number generators are put back.
"""

from __future__ import annotations

import copy
import math
import random
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

from fxfactor.graph.lifting import COMPUTED
from fxfactor.graph.normal_form import restore_training
from fxfactor.graph.tracing import silent
from fxfactor.graph.watching import watch

TOLERANCE = 1e-4
"""Largest relative difference between model and graph, in the model's own precision or else in float64."""

SECONDS = 60.0
"""How long the comparison may take: no run is begun after that."""

_SMALL = 64
_PLAIN = (bool, int, float, str)


@dataclass
class Verdict:
    """What a comparison found.

    difference: what the graph does not do as the model does it, None where they agree. training: the same in training.
    fixed: "batch" or "size" where the graph is right only for the batch or image size of the capture. notes: what the user
    should know although nothing is wrong.
    """

    difference: str | None = None
    training: str | None = None
    fixed: tuple[str, ...] = ()
    notes: list[str] = field(default_factory=list)


def compare(model: nn.Module, graph: GraphModule, inputs: tuple[Any, ...], seconds: float = SECONDS) -> Verdict:
    """Compare a traced graph with the model it was traced from, on random values of the shapes of `inputs` and beside.

    Neither is changed. Where the model itself does not run (on the meta device, say) there is nothing to compare with.
    """
    verdict = Verdict()
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        return verdict
    ends = time.monotonic() + seconds
    with _random_state_kept(), silent(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the user's code warns where the user runs it
        candidate = copy.deepcopy(graph).eval()
        reference: nn.Module | None = None
        taken: set[tuple[str, ...]] = set()
        for changed, alternatives in _variants(inputs):
            if changed in taken:
                continue
            for tried in alternatives:
                if time.monotonic() > ends:
                    verdict.notes.append(f"not compared to the end: {seconds:.0f} s were over")
                    return verdict
                reference = evaluate(copy.deepcopy(model)) if reference is None else reference
                before = _state(reference)
                try:
                    wanted = _outputs(reference, tried)
                except Exception:  # whatever the user's code raises on what it is not made for
                    reference = None
                    continue
                taken.add(changed)
                ran = tried
                verdict.difference = _in_evaluation(reference, candidate, tried, wanted, before, verdict.notes)
                if verdict.difference is not None:
                    break
            if changed not in taken:
                continue
            if verdict.difference is not None and changed:
                candidate, reference = copy.deepcopy(graph).eval(), None
                verdict.fixed = (*verdict.fixed, *changed)
                continue  # perhaps right for the shapes of the capture
            break
        else:
            return verdict
        verdict.fixed = tuple(dict.fromkeys(each for each in verdict.fixed if each not in changed))
        if verdict.difference is None:
            if has_its_mode_baked_in(model):
                verdict.notes.append("not compared in training: torch.export made it for evaluation")
            elif time.monotonic() > ends:
                verdict.notes.append(f"not compared in training: {seconds:.0f} s were over")
            else:
                reference = evaluate(copy.deepcopy(model)) if reference is None else reference
                _compare_training(model, reference, graph, candidate, ran, verdict)
    return verdict


def _in_evaluation(
    reference: nn.Module,
    candidate: GraphModule,
    inputs: tuple[Any, ...],
    wanted: Any,
    before: dict[str, Any],
    notes: list[str],
) -> str | None:
    """What differs in evaluation, or None; `wanted` is what the model gave, `before` its state before that."""
    after = _state(reference)
    started = _state(candidate)
    try:
        found = _outputs(candidate, inputs)
    except Exception as error:  # whatever torch raises where a size is frozen
        return f"only the model runs, the graph stops with {first_line(error)}"
    if type(found) is not type(wanted) and isinstance(wanted, Mapping | tuple | list):
        note = f"the model returns a {type(wanted).__name__}, the graph a {type(found).__name__} of the same tensors"
        if note not in notes:
            notes.append(note)
    difference = difference_of(found, wanted)
    if difference > TOLERANCE:
        difference = _in_float64(reference, candidate, inputs, difference)
    if difference > TOLERANCE:
        return f"the outputs differ by {difference:.1g} of the largest value{_first_to_differ(reference, candidate, inputs)}"
    kept = _state(candidate)
    for name in sorted(name for name in after if isinstance(after[name], Tensor) and name in before):
        if not _equal(before[name], after[name]) and not (
            name in kept and not _equal(started[name], kept[name]) and _equal(kept[name], after[name])
        ):
            return f"the model's forward changes the buffer {name!r}, the graph's does not"
    again = _outputs(reference, inputs)
    last = _state(reference)
    if difference_of(again, wanted) > TOLERANCE:
        return f"the model gives something else when it is called a second time{_changed(after, last)}"
    changed = _changed(after, last)
    return f"every call changes what the model remembers{changed}" if changed else None


def _changed(before: dict[str, Any], after: dict[str, Any]) -> str:
    names = [name for name in after if name not in before or not _equal(before[name], after[name])]
    return f" ({', '.join(sorted(names)[:3])})" if names else ""


def _state(network: nn.Module) -> dict[str, Any]:
    """Buffers, and what stands in plain attributes, by path."""
    state: dict[str, Any] = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    for path, module in network.named_modules():
        for name, value in vars(module).items():
            if isinstance(value, _PLAIN) and name not in ("training", "call_super_init"):
                state[f"{path}.{name}" if path else name] = value
    return state


def _equal(a: Any, b: Any) -> bool:
    if isinstance(a, Tensor) and isinstance(b, Tensor):
        return a.shape == b.shape and bool(torch.allclose(a.double(), b.double(), 1e-4, 1e-6, equal_nan=True))
    return type(a) is type(b) and a == b


def evaluate(model: nn.Module) -> nn.Module:
    """`model.eval()`, also for what torch.export made, which refuses that and has its mode baked in."""
    try:
        model.eval()
    except NotImplementedError:
        for module in model.modules():
            module.training = False
    return model


def has_its_mode_baked_in(model: nn.Module) -> bool:
    """Whether torch.export made the module: it was in one mode then, whatever its modules say now."""
    return isinstance(model, GraphModule) and "eval" in vars(model)


@contextmanager
def _random_state_kept() -> Iterator[None]:
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    state, numpy_state = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=devices):
        try:
            yield
        finally:
            random.setstate(state)
            np.random.set_state(numpy_state)


def _seed() -> None:
    torch.manual_seed(0)
    np.random.seed(0)
    random.seed(0)


def _variants(inputs: tuple[Any, ...]) -> Iterator[tuple[tuple[str, ...], list[tuple[Any, ...]]]]:
    """What may differ from the capture, and random inputs in which it does; last, the shapes of the capture.

    Small images first, which take little time: of uneven size and of even size after every halving, for what is read of a
    size is often whether it can be halved. Then larger ones, for models that pool too much for small ones.
    """
    batch = next((x.shape[0] for x in inputs if isinstance(x, Tensor) and x.dim() > 1), None)
    images = [x for x in inputs if isinstance(x, Tensor) and x.dim() > 2]
    other = 3 if batch == 2 else 2
    sizes = [[_uneven_size, _other_size], [_larger]]
    if batch is not None and images and batch >= 1:
        for resized in sizes:
            yield ("batch", "size"), [_reshaped(inputs, other, each) for each in resized]
        yield ("batch",), [_reshaped(inputs, other, _same_size)]
        for resized in sizes:
            yield ("size",), [_reshaped(inputs, batch, each) for each in resized]
    elif batch is not None:
        yield ("batch",), [_reshaped(inputs, other, _same_size)]
    yield (), [_as_random(inputs)]


def _reshaped(inputs: tuple[Any, ...], batch: int, resized: Callable[[int, int], int]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def reshape(x: Any) -> Any:
        if not isinstance(x, Tensor) or x.dim() < 2:
            return x
        sizes = [resized(size, axis) for axis, size in enumerate(x.shape[2:])]
        if not x.is_floating_point():
            return x.new_zeros(batch, x.shape[1], *sizes)
        return torch.randn(batch, x.shape[1], *sizes, generator=generator).to(x)

    return tuple(reshape(x) for x in inputs)


def _same_size(size: int, axis: int) -> int:
    return size


def _other_size(size: int, axis: int) -> int:
    if size >= 2 * _SMALL:
        return _SMALL
    return size // 32 * 16 if size >= 32 else 2 * size


def _uneven_size(size: int, axis: int) -> int:
    """Odd, and again after every halving: rounded up along the first axis (65, 33, 17), down along the second (63, 31, 15)."""
    power = 2 ** (min(max(size, 16), 2 * _SMALL).bit_length() - 2)
    return power + (1 if axis % 2 == 0 else -1)


def _larger(size: int, axis: int) -> int:
    return size + 32


def _as_random(inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    generator = torch.Generator().manual_seed(0)

    def fill(x: Any) -> Any:
        real = isinstance(x, Tensor) and x.is_floating_point()
        return torch.randn(x.shape, generator=generator).to(x) if real else x

    return tuple(fill(x) for x in inputs)


def _outputs(network: nn.Module, inputs: tuple[Any, ...]) -> Any:
    _seed()
    with torch.no_grad():
        return network(*tree_map_only(Tensor, Tensor.clone, inputs))


def difference_of(found: Any, wanted: Any) -> float:
    """Largest difference of all tensors in two outputs, as a share of the largest value; infinite where a part is missing.

    Mappings, sequences and dataclasses are looked into, whatever their class; NaN is equal to NaN.
    """
    a, b = list(_leaves(found)), list(_leaves(wanted))
    if len(a) != len(b):
        return math.inf
    scale, largest = 0.0, 0.0
    for x, y in zip(a, b, strict=True):
        if not isinstance(x, Tensor) or not isinstance(y, Tensor):
            if not (x is y or x == y):
                return math.inf
            continue
        if x.shape != y.shape or x.isnan().any() != y.isnan().any():
            return math.inf
        x, y = (torch.nan_to_num(t.detach().double().cpu(), 0.0, 1e30, -1e30) for t in (x, y))
        if y.numel():
            scale, largest = max(scale, float(y.abs().max())), max(largest, float((x - y).abs().max()))
    return largest / scale if scale > 0 else largest


def _leaves(output: Any) -> Iterator[Any]:
    if isinstance(output, Mapping):
        for key, value in output.items():
            yield key
            yield from _leaves(value)
    elif isinstance(output, list | tuple):
        for value in output:
            yield from _leaves(value)
    elif is_dataclass(output) and not isinstance(output, type):
        for each in fields(output):
            yield from _leaves(getattr(output, each.name))
    else:
        yield output


def _in_float64(reference: nn.Module, candidate: GraphModule, inputs: tuple[Any, ...], otherwise: float) -> float:
    """The difference in float64, where rounding does not show; `otherwise` where the model does not run in it."""
    exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        wanted = _outputs(copy.deepcopy(reference).double(), exact)
        return difference_of(_outputs(copy.deepcopy(candidate).double(), exact), wanted)
    except Exception:  # code that has its precision fixed
        return otherwise


def _compare_training(
    model: nn.Module,
    reference: nn.Module,
    graph: GraphModule,
    candidate: GraphModule,
    inputs: tuple[Any, ...],
    verdict: Verdict,
) -> None:
    """Outputs, buffers and gradients in training, both from one seed; what differs goes into `verdict`."""
    reference.train()
    modes = {name: module.training for name, module in reference.named_modules()}
    idle = [name for name, on in modes.items() if not on]
    if idle:
        verdict.notes.append(
            f"the model's train() keeps {_names(idle)} in evaluation; the graph's does not: call .eval() on them after it"
        )
    restore_training(candidate, modes)
    try:
        wanted = _trained(reference, inputs)
    except Exception:  # asks for labels, or for larger images
        verdict.notes.append("not compared in training: there the model does not run on inputs alone")
        return
    unused: set[str] = set()
    difference = _training_difference(candidate, inputs, wanted, unused)
    if unused:
        verdict.notes.append(f"no output depends on {_names(sorted(unused))}: not in the graph")
    if difference is None:
        return
    with torch.no_grad():
        counts = [
            len(list(_leaves(each)))
            for each in (wanted.outputs, candidate(*tree_map_only(Tensor, Tensor.clone, inputs)))
        ]
    if counts[0] > counts[1] and not model.training:  # GoogLeNet, Inception: made for evaluation, they lose nothing
        verdict.notes.append(
            f"in training the model returns {counts[0]} values, in evaluation {counts[1]}: the graph has no auxiliary outputs"
        )
        return
    exact = tree_map_only(Tensor, lambda x: x.double() if x.is_floating_point() else x, inputs)
    try:
        exact_model, exact_graph = copy.deepcopy(model).double(), copy.deepcopy(graph).double()
        exact_model.train()
        restore_training(exact_graph, modes)
        difference = _training_difference(exact_graph, exact, _trained(exact_model, exact), unused)
    except Exception:  # code that has its precision fixed
        pass
    if difference is not None:
        where = "" if difference.startswith("the gradient") else _first_to_differ(reference, candidate, inputs)
        verdict.training = difference + where


def _names(paths: Sequence[str]) -> str:
    return ", ".join(repr(path) for path in paths[:3]) + (" …" if len(paths) > 3 else "")


def _training_difference(
    candidate: GraphModule, inputs: tuple[Any, ...], wanted: _Trained, unused: set[str]
) -> str | None:
    """What differs, or None. Modules that the graph never calls, and that the model changes in training, go into `unused`."""
    try:
        found = _trained(candidate, inputs)
    except Exception as error:  # whatever torch raises
        return f"only the model runs in training, the graph stops with {first_line(error)}"
    difference = difference_of(found.outputs, wanted.outputs)
    if difference > TOLERANCE:
        return "the outputs differ in training" + (
            f" by {difference:.1g}" if math.isfinite(difference) else " in number"
        )
    for name, value in wanted.buffers.items():
        if name not in found.buffers or difference_of(found.buffers[name], value) <= 10 * TOLERANCE:
            continue
        if _is_unused(name, candidate):
            unused.add(name.rpartition(".")[0])
        else:
            return f"the buffer {name!r} differs after a step of training"
    largest = max((float(g.abs().max()) for g in wanted.gradients.values() if g is not None and g.numel()), default=0.0)
    computed = {name for names in candidate.meta.get(COMPUTED, {}).values() for name in names}
    for name, gradient in wanted.gradients.items():
        if name not in found.gradients or name in computed:
            continue  # a layer with another name, or one that trains what the model computes from its parameters
        a, b = (torch.zeros(()) if g is None else g.float() for g in (found.gradients[name], gradient))
        if float((a - b).abs().max()) > 1e-3 * largest:
            return f"the gradient of {name!r} differs"
    return None


def _is_unused(buffer: str, graph: GraphModule) -> bool:
    """Whether no node calls the module that a buffer of the graph's is in, nor one above it, or reads the buffer."""
    targets = {str(node.target) for node in graph.graph.nodes if node.op in ("call_module", "get_attr")}
    parts = buffer.split(".")
    return not any(".".join(parts[:end]) in targets for end in range(1, len(parts) + 1))


@dataclass
class _Trained:
    outputs: Any
    buffers: dict[str, Tensor]
    gradients: dict[str, Tensor | None]


def _trained(network: nn.Module, inputs: tuple[Any, ...]) -> _Trained:
    """What a network gives in its present modes, its buffers afterwards, and the gradients of a sum of all it gives."""
    _seed()
    given = {
        f"input {index}": x.detach().clone().requires_grad_()
        for index, x in enumerate(inputs)
        if isinstance(x, Tensor) and x.is_floating_point()
    }
    with torch.enable_grad():
        outputs = network(
            *(given[f"input {index}"].clone() if f"input {index}" in given else x for index, x in enumerate(inputs))
        )
        real = [x for x in _leaves(outputs) if isinstance(x, Tensor) and x.is_floating_point()]
        # weights that differ for every value: the sum of what a softmax gives is constant
        weights = (torch.linspace(0.5, 1.5, x.numel(), dtype=x.dtype, device=x.device).reshape(x.shape) for x in real)
        total = [(x * weight).sum() for x, weight in zip(real, weights, strict=True) if x.requires_grad]
        tensors = {**given, **{n: p for n, p in network.named_parameters() if p.requires_grad}}
        grads: Sequence[Tensor | None] = [None] * len(tensors)
        if total:
            ones = [torch.ones_like(x) for x in total]
            grads = torch.autograd.grad(total, list(tensors.values()), ones, allow_unused=True)
    buffers = {name: buffer.detach().clone() for name, buffer in network.named_buffers()}
    return _Trained(outputs, buffers, dict(zip(tensors, grads, strict=True)))


def _first_to_differ(reference: nn.Module, candidate: GraphModule, inputs: tuple[Any, ...]) -> str:
    """Where model and graph part: the first node whose module gives something else in the model; "" if none does."""
    given: dict[str, Any] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(module: nn.Module, arguments: Any, output: Any) -> None:
            given.setdefault(path, _cloned(output))

        return hook

    hooks = [module.register_forward_hook(keep(path)) for path, module in reference.named_modules() if path]
    apart: list[str] = []

    def see(node: Node, arguments: tuple[Any, ...], value: Any) -> None:
        path = str(node.target)
        if node.op == "call_module" and path in given and not apart and difference_of(value, given[path]) > TOLERANCE:
            apart.append(f", first at node {node.name!r} (module {path!r})")

    try:
        _outputs(reference, inputs)
        _seed()
        with torch.no_grad():
            watch(candidate, tree_map_only(Tensor, Tensor.clone, inputs), see)
    except Exception:  # the graph stops: what was seen until then counts
        pass
    finally:
        for hook in hooks:
            hook.remove()
    return apart[0] if apart else ", behind the last layer that both have"


def _cloned(output: Any) -> Any:
    """Tensors as they are now: what comes next may work on them in place."""
    return tree_map_only(Tensor, Tensor.clone, output)


def first_line(error: BaseException) -> str:
    """Kind and first line of an error that others raised."""
    return f"{type(error).__name__}: {(str(error).splitlines() or [''])[0]}"
