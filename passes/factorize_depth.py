"""FactorizeDepth: a k×k convolution becomes a grouped k×k convolution and a pointwise one."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from fxfactor.errors import PreconditionError
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.factors.weights import svd_factors
from fxfactor.graph import (
    CONVOLUTIONS,
    Convolution,
    Site,
    finish,
    hidden_convolutions,
    owner_path,
    replace_with_chain,
    shape_of,
    sites,
)
from fxfactor.graph.mixed_precision import Precision
from fxfactor.pipeline import Change, Pass, Skip
from fxfactor.plan.ladder import Level, check_level, check_width, choose_shape, reason_to_keep
from fxfactor.plan.layer_plan import LayerPlan
from fxfactor.plan.plan import Plan, kept_sites


@dataclass(frozen=True)
class FactorizeDepth(Pass):
    """Split convolutions into depth-factorized subgraphs, by a level for all or by a plan.

    Before: `site`, weight (C_out, C_in/g, k, k). After: `site.spatial`, weight (mid, C_in/G, k, k), G groups, with the
    stride, padding, padding mode and dilation of the original; then `site.pointwise`, weight (C_out, mid/g, 1, 1), with
    its bias. A layer that is called several times has the same factors in every call. mid is width · C_in, rounded to a
    multiple of G, or what the plan says: more channels between the factors lose less and cost more MACs.

    Left as they are: the first convolution, 1×1 and depthwise ones, those with fewer than 8 input channels, and where
    the factors would not need fewer MACs. A plan may split the first one and small ones too. Sites in `keep`, or below
    a path in it, are left alone.

    Loses: without `calibration` the factors are the best for the weights (truncated SVD per group, Eckart and Young
    1936), and ‖W − UV‖/‖W‖ of every site is reported as `relative_error`. With `calibration`, batches of images, they are
    fitted to the outputs that the network had on them (`fxfactor.factors.fit_to_outputs`), and `output_error` says what is missed
    there. With `fit=False` the factors stay empty, for weights to be loaded. `precision="bfloat16"` runs the network in mixed
    precision meanwhile.

    Raises PreconditionError on a level below 0, a width that is not above 0, and on a site in `plan` or `keep` that the
    network does not have or that cannot have the groups and mid that the plan wants. Source: FactorizeNet (Yun and Wong
    2020, arXiv 2011.14586).
    """

    level: Level | None = None
    plan: Plan | None = None
    keep: tuple[str, ...] = ()
    calibration: Sequence[Any] | None = None
    fit: bool = True
    precision: Precision = "float32"
    width: float = 1

    def __post_init__(self) -> None:
        if (self.level is None) == (self.plan is None):
            raise PreconditionError(
                f"FactorizeDepth needs a level or a plan, found level={self.level!r} and "
                f"{'a' if self.plan else 'no'} plan; pass one of them"
            )
        if self.level is not None:
            check_level(self.level)
        check_width(self.width)
        if self.plan is not None and self.width != 1:
            raise PreconditionError(f"give a plan or a width, not both, found a plan and width={self.width!r}")

    def check(self, graph: GraphModule) -> None:
        kept_sites(graph, self.keep)
        if self.plan is not None:
            self.plan.require_fits(graph)

    def rewrite(self, graph: GraphModule) -> Iterator[Change | Skip]:
        original = graph if self.calibration is None else copy.deepcopy(graph)
        records = list(self._split_all(graph))
        if self.calibration is not None and any(isinstance(record, Change) for record in records):
            finish(graph)
            fitted = {
                each.site: each.output_error
                for each in fit_to_outputs(original, graph, self.calibration, precision=self.precision)
            }
            records = [_with_output_error(record, fitted.get(record.site)) for record in records]
        yield from records

    def _split_all(self, graph: GraphModule) -> Iterator[Change | Skip]:
        kept = kept_sites(graph, self.keep)
        for index, (name, site) in enumerate(sites(graph).items()):
            if isinstance(site.modules[0], nn.Linear):
                continue
            if name in kept:
                yield Skip(name, "kept on request")
                continue
            wanted = self._wanted(site, first=index == 0)
            if isinstance(wanted, str):
                yield Skip(name, wanted)
            else:
                yield self._split(graph, site, *wanted)
        for node in hidden_convolutions(graph):
            yield Skip(owner_path(node) or node.name, "its weight is computed from the network's input")

    def _wanted(self, site: Site, first: bool) -> tuple[int, int] | str:
        """Groups and mid for a site, or the reason to leave it as it is."""
        conv = site.modules[0]
        if self.plan is None:
            return choose_shape(site, cast(Level, self.level), first, self.width)
        layer = self.plan.layers.get(site.name, LayerPlan())
        if site.factorized:
            return "already factorized"
        if layer.groups is None:
            return reason_to_keep(conv, first) or "the plan leaves it in one piece"
        return layer.groups, layer.mid or conv.in_channels

    def _split(self, graph: GraphModule, site: Site, groups: int, mid: int) -> Change:
        conv = site.modules[0]
        if self.fit:
            factors = svd_factors(conv.weight.detach(), groups, mid, conv.groups)
            spatial_weight, pointwise_weight, error = factors.spatial, factors.pointwise, factors.relative_error
        else:
            ones = [1] * len(conv.kernel_size)
            spatial_weight = conv.weight.new_zeros(mid, conv.in_channels // groups, *conv.kernel_size)
            pointwise_weight, error = conv.weight.new_zeros(conv.out_channels, mid // conv.groups, *ones), None
        spatial = convolution_like(conv, spatial_weight, groups, bias=None)
        pointwise = pointwise_like(conv, pointwise_weight)
        for (node,) in site.calls:
            shape = shape_of(node)
            replace_with_chain(
                graph, node, {"spatial": (spatial, (shape[0], mid, *shape[2:])), "pointwise": (pointwise, shape)}
            )
        return Change(site.name, (f"{site.name}.spatial", f"{site.name}.pointwise"), error)


def _with_output_error(record: Change | Skip, error: float | None) -> Change | Skip:
    return replace(record, output_error=error) if isinstance(record, Change) else record


def convolution_like(conv: Convolution, weight: Tensor, groups: int, bias: Tensor | None) -> nn.Module:
    """A convolution of the same class, stride, padding and dilation as `conv`, with another weight, groups and bias."""
    kind = next(known for known in CONVOLUTIONS if isinstance(conv, known))
    with torch.device("meta"):
        new = kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),  # type: ignore[arg-type]
            stride=conv.stride,  # type: ignore[arg-type]
            padding=conv.padding,  # type: ignore[arg-type]
            dilation=conv.dilation,  # type: ignore[arg-type]
            groups=groups,
            bias=bias is not None,
            padding_mode=conv.padding_mode,
        )
    return _with_tensors(new, conv, weight, bias)


def pointwise_like(conv: Convolution, weight: Tensor) -> nn.Module:
    """The 1×1 convolution that stands behind the spatial factor of `conv` and takes over its groups and bias."""
    kind = next(known for known in CONVOLUTIONS if isinstance(conv, known))
    with torch.device("meta"):
        new = kind(weight.shape[1] * conv.groups, weight.shape[0], 1, groups=conv.groups, bias=conv.bias is not None)
    return _with_tensors(new, conv, weight, None if conv.bias is None else conv.bias.detach())


def _with_tensors(new: nn.Module, conv: Convolution, weight: Tensor, bias: Tensor | None) -> nn.Module:
    new.weight = nn.Parameter(weight, requires_grad=conv.weight.requires_grad)
    if bias is not None:
        like = conv.weight if conv.bias is None else conv.bias
        new.bias = nn.Parameter(bias, requires_grad=like.requires_grad)
    new.training = conv.training
    return new
