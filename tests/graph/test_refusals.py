"""Wrappers are opened; what cannot be captured is refused by its true cause."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from networks import difference_in_float64
from small_model import SHAPE, Small
from torch import nn
from torch.nn.utils import prune

import fxfactor
from fxfactor.errors import CaptureError, PreconditionError
from fxfactor.graph import sites

X = torch.zeros(SHAPE)


@pytest.mark.filterwarnings("ignore")  # torch.compile warns about itself
@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, torch.compile, torch.optim.swa_utils.AveragedModel, lambda m: torch.compile(nn.DataParallel(m))],
)
def test_the_model_inside_a_wrapper_is_taken(wrap: Callable[[nn.Module], nn.Module]):
    model = Small()
    graph = fxfactor.capture(wrap(model), X)
    assert [*sites(graph)] == ["a", "b", "l"]
    assert difference_in_float64(graph, model, SHAPE) < 1e-6


def _pruned() -> nn.Module:
    model = Small()
    prune.l1_unstructured(model.b, "weight", 0.5)
    return model


def _normed(name: str) -> nn.Module:
    model = Small()
    getattr(nn.utils, name)(model.b)
    return model


def _lazy() -> nn.Module:
    model = Small()
    model.a = nn.LazyConv2d(16, 3)
    return model


def _script_inside() -> nn.Module:
    model = Small()
    model.b = torch.jit.script(model.b)
    return model


def _brevitas() -> nn.Module:
    from brevitas.nn import QuantConv2d, QuantIdentity

    return nn.Sequential(QuantIdentity(return_quant_tensor=True), QuantConv2d(3, 8, 3, return_quant_tensor=True))


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("build", "what"),
    [
        (_pruned, r"module 'b' \(Conv2d\) is pruned .*prune.remove\(layer, \"weight\"\)"),
        (lambda: _normed("weight_norm"), r"module 'b' .*old torch.nn.utils.weight_norm.*remove_weight_norm"),
        (lambda: _normed("spectral_norm"), r"module 'b' .*old torch.nn.utils.spectral_norm.*remove_spectral_norm"),
        (_lazy, r"module 'a' \(LazyConv2d\) is lazy.*run the model once"),
        (lambda: torch.jit.script(Small()), r"the model \(RecursiveScriptModule\) is a script.*torch.jit.script"),
        (_script_inside, r"module 'b' \(RecursiveScriptModule\) is a script"),
        (_brevitas, r"module '0' \(QuantIdentity\) is a Brevitas layer with return_quant_tensor=True.*floating point"),
    ],
)
def test_the_true_cause_is_named(build: Callable[[], nn.Module], what: str):
    with pytest.raises(CaptureError, match=what):
        fxfactor.capture(build(), X)


def test_the_new_weight_norm_is_taken():
    model = Small()
    nn.utils.parametrizations.weight_norm(model.b)
    assert difference_in_float64(fxfactor.capture(model, X), model, SHAPE) < 1e-6


def test_inputs_that_the_model_itself_refuses_are_the_cause(capfd: pytest.CaptureFixture[str]):
    class Deep(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.conv(x)
            for _ in range(6 if x.shape[1] == 3 else 0):
                x = nn.functional.max_pool2d(x, 2)
            return x

    wanted = r"1×3×16×16 do not fit the network, Deep itself raises RuntimeError: Given input size.*of a shape that"
    with pytest.raises(PreconditionError, match=wanted):
        fxfactor.capture(Deep(), torch.randn(1, 3, 16, 16))
    assert capfd.readouterr() == ("", "")


def test_control_flow_on_values_prints_nothing(capfd: pytest.CaptureFixture[str]):
    class OnValues(Small):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x * 2 if x.sum() > 0 else x)

    with pytest.raises(CaptureError, match="Control flow must not depend on the values of tensors"):
        fxfactor.capture(OnValues(), X)
    assert capfd.readouterr() == ("", "")


def test_float16_is_refused_where_it_would_be_quantized():
    model, half = Small().half(), X.half()
    with pytest.raises(PreconditionError, match=r"'a.weight' in float16, whose gradients overflow.*model.float\(\)"):
        fxfactor.transform(model, level=3, bits=4, example_inputs=half)
    assert fxfactor.transform(model, level=3, example_inputs=half)(half).dtype == torch.float16
