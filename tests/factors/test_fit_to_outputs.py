"""The walk over calibration images: what it fits, on small networks of every shape."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import fxfactor
from fxfactor.errors import PreconditionError
from fxfactor.factors.fit_to_outputs import fit_to_outputs
from fxfactor.passes import FactorizeDepth

WIDTH = 16


class Residual(nn.Module):
    """A convolution, a residual block with batch norms, and a convolution with a bias."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTH, 3, padding=1)
        self.conv1 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(WIDTH)
        self.last = nn.Conv2d(WIDTH, 24, 3, stride=2)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).relu()
        x = (x + self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))).relu()
        return self.head(self.last(x).relu().mean((2, 3)))


def images(count: int = 32, seed: int = 0) -> Tensor:
    return torch.randn(count, 3, 10, 12, generator=torch.Generator().manual_seed(seed)).cumsum(-1)


def network() -> GraphModule:
    torch.manual_seed(0)
    model = Residual()
    model(images())  # in training mode: gives the batch norms statistics
    return fxfactor.capture(model.eval(), images(1))


def factorized(original: GraphModule, level: int | str = 2) -> GraphModule:
    return FactorizeDepth(level=level)(original).graph


def difference(a: nn.Module, b: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        return float((a(x) - b(x)).norm() / a(x).norm())


@pytest.mark.parametrize("level", [1, 2, "depthwise"])
def test_fitted_network_is_nearer_to_the_original(level):
    original = network()
    graph = factorized(original, level)
    before = difference(original, graph, images(seed=1))
    fitted = fit_to_outputs(original, graph, images().split(4))
    assert [each.site for each in fitted] == ["conv1", "conv2", "last"]
    assert all(each.output_error < each.svd_error for each in fitted)
    assert difference(original, graph, images(seed=1)) < before


def test_mixed_precision_fits_nearly_alike():
    original = network()
    plain, mixed = factorized(original), factorized(original)
    errors = [each.output_error for each in fit_to_outputs(original, plain, images().split(4))]
    found = [each.output_error for each in fit_to_outputs(original, mixed, images().split(4), precision="bfloat16")]
    assert found != errors
    assert found == pytest.approx(errors, rel=0.02)
    assert {each.dtype for each in mixed.state_dict().values()} <= {torch.float32, torch.int64}
    assert difference(plain, mixed, images(seed=1)) < 0.05
    again = fxfactor.transform(original, level=3, calibration=images().split(4), precision="bfloat16")
    assert [each.dtype for each in again.parameters()] == [torch.float32] * len(list(again.parameters()))
    with pytest.raises(PreconditionError, match='precision must be "float32" or "bfloat16"'):
        fxfactor.transform(original, level=3, calibration=images().split(4), precision="half")


def test_only_factors_and_means_change():
    original = network()
    graph = factorized(original)
    before, untouched = copy.deepcopy(graph.state_dict()), copy.deepcopy(original.state_dict())
    fit_to_outputs(original, graph, images().split(8))
    changed = {name for name, value in graph.state_dict().items() if not torch.equal(value, before[name])}
    factors = {f"{site}.{factor}.weight" for site in ("conv1", "conv2", "last") for factor in ("spatial", "pointwise")}
    assert changed == factors | {"bn1.running_mean", "bn2.running_mean", "last.pointwise.bias"}
    assert all(torch.equal(value, untouched[name]) for name, value in original.state_dict().items())


def test_means_of_the_outputs_agree():
    original = network()
    graph = factorized(original)
    fit_to_outputs(original, graph, images().split(8))
    for name in ("bn1", "bn2", "last"):
        wanted, found = (mean_at(each, images(), name) for each in (original, graph))
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def mean_at(graph: GraphModule, x: Tensor, name: str) -> Tensor:
    kept = []
    path = f"{name}.pointwise" if name == "last" and hasattr(graph.last, "pointwise") else name
    handle = graph.get_submodule(path).register_forward_hook(lambda _m, _i, output: kept.append(output))
    with torch.no_grad():
        graph(x)
    handle.remove()
    return kept[0].mean((0, 2, 3))


def test_fitting_twice_changes_nothing_more():
    original = network()
    graph = factorized(original)
    first = fit_to_outputs(original, graph, images().split(8))
    state = copy.deepcopy(graph.state_dict())
    second = fit_to_outputs(original, graph, images().split(8))
    assert [a.output_error for a in first] == [b.output_error for b in second]
    assert all(torch.equal(value, state[name]) for name, value in graph.state_dict().items())


def test_memory_limit_changes_only_the_cost():
    original = network()
    kept, rerun = factorized(original), factorized(original)
    fit_to_outputs(original, kept, images().split(8))
    fit_to_outputs(original, rerun, images().split(8), memory_limit=0)
    assert all(torch.equal(a, b) for a, b in zip(kept.state_dict().values(), rerun.state_dict().values(), strict=True))


def test_batches_may_be_tuples_or_one_tensor_for_all():
    original = network()
    plain, labelled, whole = (factorized(original) for _ in range(3))
    fit_to_outputs(original, plain, images().split(8))
    fit_to_outputs(original, labelled, [(x, torch.zeros(len(x))) for x in images().split(8)])
    fit_to_outputs(original, whole, [images()])
    x = images(seed=1)
    assert torch.equal(plain(x), labelled(x))
    torch.testing.assert_close(plain(x), whole(x), rtol=1e-3, atol=1e-3)


def test_one_image_is_enough_to_run():
    original = network()
    graph = factorized(original)
    assert len(fit_to_outputs(original, graph, [images(1)])) == 3
    assert torch.isfinite(graph(images(2))).all()


def test_empty_loader_is_refused():
    original = network()
    with pytest.raises(PreconditionError, match="at least one batch of images"):
        fit_to_outputs(original, factorized(original), [])


def test_convolution_with_neither_bias_nor_batch_norm():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 16, 3), nn.Conv1d(16, 16, 5, bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(416, 3)
    )
    x = torch.randn(16, 4, 32).cumsum(-1)
    original = fxfactor.capture(model.eval(), x[:1])
    graph = factorized(original, 3)
    before = difference(original, graph, x)
    fit_to_outputs(original, graph, x.split(4))
    assert graph.get_submodule("1.pointwise").bias is None
    assert difference(original, graph, x) < before


def test_a_few_images_do_no_harm_on_others():
    """With far fewer positions than weights, a fit that nothing held out restrains would be worse than the SVD."""
    original = network()
    few = images()[:4, :, :6, :6]
    graph, svd = factorized(original), factorized(original)
    fit_to_outputs(original, graph, few.split(1))
    assert difference(original, graph, images(seed=1)) < difference(original, svd, images(seed=1))


def test_a_memory_limit_is_kept():
    """What does not fit is computed anew for every site; what fits is computed once."""
    calls: list[int] = []
    original = network()
    original.stem.register_forward_hook(lambda *_: calls.append(1))
    fit_to_outputs(original, factorized(original), images().split(8))
    once = len(calls)
    assert once == 2 * 4  # the hook was copied with the network
    calls.clear()
    fit_to_outputs(original, factorized(original), images().split(8), memory_limit=0)
    assert len(calls) == 3 * once
