"""One rung of an exploration, a level at a width: its factors are fitted once, then bits are lowered on it.

Nothing is kept here: candidates and snapshots are yielded, and whoever walks decides where they go.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, cast

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.analysis.cost import Cost, cost
from fxfactor.errors import FxfactorError
from fxfactor.exploration.bit_widths import LEAST_BITS, MOST_BITS, BitWidths
from fxfactor.exploration.state_file import Candidate, rung_name
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.graph.capture import capture
from fxfactor.graph.mixed_precision import Precision, computing_in
from fxfactor.graph.questions import sites
from fxfactor.passes import FactorizeDepth, Quantize
from fxfactor.pipeline import Pipeline
from fxfactor.plan.ladder import Level
from fxfactor.plan.plan import Plan
from fxfactor.quantization.calibrate import calibrate, count_activations, set_ranges
from fxfactor.quantization.histogram import Histogram
from fxfactor.quantization.plain_copy import freeze

if TYPE_CHECKING:
    from fxfactor.finn.target import Target


Metric = Callable[[nn.Module, Any], float]
FineTune = Callable[[GraphModule, GraphModule], object]
BitPair = tuple[int | None, int | None]


def top1(model: nn.Module, validation: Iterable[Any]) -> float:
    """Share of the images, in batches (images, labels), whose largest output is at the label."""
    right = seen = 0
    parameter = next(model.parameters())
    with torch.no_grad():
        for images, labels in validation:
            found = model(images.to(parameter)).argmax(1)
            right += int((found == labels.to(found.device)).sum())
            seen += len(labels)
    return right / seen if seen else math.nan


@dataclass(frozen=True)
class Setup:
    """What all candidates have in common. `images`: batches for fitting and ranges."""

    model: nn.Module
    images: Sequence[Tensor]
    validation: Any
    metric: Metric = top1
    finetune: FineTune | None = None
    boundary_bits: int | None = 8
    keep: tuple[str, ...] = ()
    target: Target | None = None
    precision: Precision = "float32"

    def worker(self) -> RungWalk:
        """What does rungs in a process of its own (`fxfactor.workers`)."""
        return RungWalk(self)


@dataclass(frozen=True)
class Rung:
    """A level, and the channels between its factors as a multiple of the input channels."""

    level: Level
    width: float = 1.0

    @property
    def name(self) -> str:
        """ "3", or "3 ×2" where the width is not 1."""
        return rung_name(self.level, self.width)


@dataclass
class RungState:
    """What the next candidate of a rung starts from: the network in floating point, and what enters its quantizers."""

    graph: GraphModule
    histograms: dict[str, Histogram] = field(default_factory=dict)
    precisions: BitWidths | None = None

    def to_bytes(self) -> bytes:
        """The tensors as safetensors."""
        tensors = {f"graph.{name}": value.contiguous() for name, value in self.graph.state_dict().items()}
        for name, histogram in self.histograms.items():
            tensors[f"counts.{name}"] = histogram.counts
            tensors[f"limit.{name}"] = torch.tensor(histogram.limit, dtype=torch.float64)
        return bytes(save_tensors(tensors))

    def load(self, data: bytes) -> None:
        """Take over what `to_bytes` gave."""
        tensors = load_tensors(data)
        self.graph.load_state_dict(_below("graph.", tensors))
        limits = _below("limit.", tensors)
        for name, counts in _below("counts.", tensors).items():
            histogram = Histogram()
            histogram.counts, histogram.limit = counts, float(limits[name])
            self.histograms[name] = histogram


def _below(prefix: str, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}


Progressed = tuple[str, Candidate | None, bytes | None]


@dataclass(frozen=True)
class Task:
    """What is left to do on one rung."""

    rung: Rung
    bits: tuple[BitPair, ...]
    snapshot: bytes | None


class RungWalk:
    """Walks the rungs of one network one after the other; a rung starts from the one before where it is the same."""

    def __init__(self, setup: Setup) -> None:
        self.setup = setup
        example = setup.images[0][:1]
        self.original = capture(setup.model, example.to(next(setup.model.parameters(), example))).eval()
        self.previous: GraphModule | None = None

    def steps(self, task: Task) -> Iterator[Progressed]:
        """A task as the first of all: which rung was here before is chance among workers."""
        self.previous = None
        return self.task(task)

    def task(self, task: Task) -> Iterator[Progressed]:
        """What is left of a rung, with the rung's name."""
        for candidate, changed in self.rung(task.rung, task.bits, task.snapshot):
            yield task.rung.name, candidate, changed

    def rung(
        self, rung: Rung, bits: Sequence[BitPair], snapshot: bytes | None = None
    ) -> Iterator[tuple[Candidate | None, bytes | None]]:
        """The candidates of a rung at `bits`, in turn, each with the state to go on from where that has changed.

        The first thing that comes is the state after fitting, without a candidate. `snapshot` is such a state from an
        earlier, broken run. Whatever a candidate raises makes it a failed one; the walk goes on.
        """
        started = time.perf_counter()
        try:
            state = self._empty(rung)
            if snapshot is not None:
                state.load(snapshot)
            else:
                self._fit(state.graph)
                if self.setup.finetune is None:
                    self._count(state, rung, bits)
                yield None, state.to_bytes()
        except Exception as error:  # the user's images may make any step fail; it is written down for every candidate
            for pair in bits:
                yield _failed(rung, pair, error, time.perf_counter() - started), None
            return
        self.previous = copy.deepcopy(state.graph) if self.setup.finetune is None else None
        for pair in bits:
            yield self._candidate(state, rung, pair)

    def _empty(self, rung: Rung) -> RungState:
        """The graph of a rung with the truncated SVD's factors."""
        factorize = FactorizeDepth(level=rung.level, keep=self.setup.keep, width=rung.width)
        return RungState(factorize(self.original).graph)

    def _fit(self, graph: GraphModule) -> None:
        """Fit all factors, but those that the previous rung has already with nothing different before them."""
        done = _take_over(graph, self.previous)
        if any(site.factorized for site in sites(graph).values()):
            fit_to_outputs(self.original, graph, self.setup.images, done=done, precision=self.setup.precision)

    def _count(self, state: RungState, rung: Rung, bits: Sequence[BitPair]) -> None:
        """What enters every quantizer, with 8-bit weights whatever bits are asked for, so that more may be asked later."""
        if any(pair[1] is not None for pair in bits):
            state.histograms = count_activations(self._precisions(state, rung).network, self.setup.images)

    def _precisions(self, state: RungState, rung: Rung) -> BitWidths:
        if state.precisions is None:
            fewest, most = (self._quantized(state, rung, (8, bits)) for bits in (LEAST_BITS, MOST_BITS))
            state.precisions = BitWidths(fewest, most)
        return state.precisions

    def _plan(self, rung: Rung, pair: BitPair) -> Plan:
        return Plan.uniform(self.original, rung.level, *pair, self.setup.boundary_bits, self.setup.keep, rung.width)

    def _quantized(self, state: RungState, rung: Rung, pair: BitPair) -> GraphModule:
        if pair == (None, None):
            return copy.deepcopy(state.graph)
        return Pipeline(Quantize(plan=self._plan(rung, pair)))(state.graph).graph

    def _candidate(self, state: RungState, rung: Rung, pair: BitPair) -> tuple[Candidate, bytes | None]:
        started = time.perf_counter()
        seed_from(rung, pair)
        changed, qmodel = None, None
        try:
            if self.setup.finetune is None and state.histograms and None not in pair:
                network, total = self._between(state, rung, pair)
            else:
                qmodel = self._quantized(state, rung, pair).eval()
                if self.setup.finetune is not None:
                    if pair[1] is not None:
                        calibrate(qmodel, self.setup.images)
                    self.setup.finetune(qmodel, self.original)
                    qmodel.eval()
                    _carry_over(qmodel, state.graph)
                    changed = state.to_bytes()
                elif state.histograms and pair[1] is not None:
                    set_ranges(qmodel, state.histograms)
                network, total = freeze(qmodel), cost(qmodel)
            with computing_in(self.setup.precision, next(self.original.parameters()).device):
                value = float(self.setup.metric(network, self.setup.validation))
        except Exception as error:  # the user's metric and fine-tuning may raise anything; it is written down
            return _failed(rung, pair, error, time.perf_counter() - started), changed
        bad = not math.isfinite(value)
        prices, message = self._prices(state, rung, pair, qmodel)
        row = Candidate(
            level=str(rung.level),
            width=rung.width,
            weight_bits=pair[0],
            activation_bits=pair[1],
            status="nan" if bad else "done",
            metric=None if bad else value,
            macs=total.macs,
            bops=total.bops,
            total_weight_bits=total.total_weight_bits,
            seconds=time.perf_counter() - started,
            message=f"the metric is {value}" if bad else message,
            plan=self._plan(rung, pair).to_json(),
            **prices,
        )
        return row, changed

    def _prices(
        self, state: RungState, rung: Rung, pair: BitPair, qmodel: GraphModule | None
    ) -> tuple[dict[str, Any], str]:
        """FINN's estimates where a board was given, and why there are none where FINN does not take the candidate."""
        if self.setup.target is None:
            return {}, ""
        from fxfactor.finn.estimation import estimate_network

        if qmodel is None:
            qmodel = set_ranges(self._quantized(state, rung, pair).eval(), state.histograms)
        try:
            found = estimate_network(qmodel, self.setup.images[0][:1], self.setup.target)
        except FxfactorError as error:
            return {}, f"no FINN estimates: {error}"
        total = found.total
        return {"lut": total.lut, "bram18": total.bram18, "dsp": total.dsp, "fps": found.fps}, ""

    def _between(self, state: RungState, rung: Rung, pair: BitPair) -> tuple[GraphModule, Cost]:
        """The network for evaluation at `pair` and what it costs, without building it of Brevitas layers if possible."""
        plan, precisions = self._plan(rung, pair), self._precisions(state, rung)
        bits = cast(int, pair[1])
        if precisions.alike:
            return precisions.frozen(plan, bits, state.histograms), precisions.cost(plan, bits)
        qmodel = set_ranges(self._quantized(state, rung, pair).eval(), state.histograms)
        return freeze(qmodel), cost(qmodel)


def _failed(rung: Rung, pair: BitPair, error: Exception, seconds: float) -> Candidate:
    reason = f"{type(error).__name__}: {error}"
    return Candidate(str(rung.level), rung.width, *pair, "failed", None, None, None, None, seconds, reason, None)


def seed_from(rung: Rung, pair: BitPair) -> None:
    """A candidate draws the same random numbers whatever ran before it."""
    digest = hashlib.sha256(json.dumps([rung.level, rung.width, *pair]).encode()).digest()
    torch.manual_seed(int.from_bytes(digest[:4], "big"))


def _take_over(graph: GraphModule, previous: GraphModule | None) -> set[str]:
    """Copy what does not depend on where the two rungs differ; the sites that need no fit then."""
    if previous is None:
        return set()
    before = sites(previous)
    same: set[str] = set()
    for name, site in sites(graph).items():
        shapes = [[tuple(module.weight.shape) for module in each.modules] for each in (site, before[name])]
        if shapes[0] != shapes[1]:
            break
        same.add(name)
    later = {name for name in sites(graph) if name not in same}
    order = [str(node.target) for node in graph.graph.nodes if node.op == "call_module"]
    cut = next((i for i, path in enumerate(order) if any(_belongs(path, site) for site in later)), len(order))
    # a layer that is called again behind the cut sees something else there
    same = {name for name in same if not any(_belongs(path, name) for path in order[cut:])}
    state = previous.state_dict()
    for path in order[:cut]:
        module = graph.get_submodule(path)
        module.load_state_dict(_below(f"{path}.", state))
    return same


def _belongs(path: str, site: str) -> bool:
    return path == site or path.startswith(f"{site}.")


def _carry_over(qmodel: GraphModule, graph: GraphModule) -> None:
    """Weights, biases and batch norms of the fine-tuned network become those of the one in floating point."""
    known = qmodel.state_dict()
    graph.load_state_dict({name: known[name] for name in graph.state_dict() if name in known}, strict=False)
