"""Learned weight limits: the gradients of the formula, the same network afterwards, and what they are for."""

from __future__ import annotations

import copy

import pytest
import torch
from networks import ResidualNet, randomized
from torch import Tensor, nn

from fxfactor import finetune, transform
from fxfactor.quantization.brevitas_layers import quantize_layer
from fxfactor.quantization.fused import fused_quantizers
from fxfactor.quantization.weight_limits import PARAMETER, learned_weight_limits

LAYERS = {
    "grouped": (nn.Conv2d(6, 4, 3, groups=2), (2, 6, 7, 5)),
    "series": (nn.Conv1d(6, 4, 3), (2, 6, 9)),
    "linear": (nn.Linear(6, 4), (3, 6)),
}


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def quantized(kind: str, bits: int) -> tuple[nn.Module, Tensor]:
    plain, shape = LAYERS[kind]
    layer = copy.deepcopy(plain)
    with torch.no_grad():
        layer.weight.copy_(random(*layer.weight.shape, seed=1) ** 3)  # a few large weights among many small ones
    return quantize_layer(layer, bits), random(*shape)


def formula(layer: nn.Module, high: int) -> Tensor:
    """As the module says it, by autograd: rounding is straight through."""
    rows, limit = layer.weight.flatten(1), layer.weight_limit
    bound = torch.minimum(limit.abs(), rows.detach().abs().amax(1, keepdim=True))
    bound = limit.abs() - (limit.abs() - bound).detach()  # its value; the gradient goes to the limit
    last = high * (1 + 1e-6)  # the largest weight is inside, whatever the division's last digit
    levels = (rows / (bound / high)).clamp(-last, last)
    rounded = levels + (levels.round() - levels).detach()
    return (rounded * bound / high).view(layer.weight.shape)


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("part", [0.4, 0.75, None])
def test_values_and_gradients_are_those_of_the_formula(kind, bits, part):
    layer, x = quantized(kind, bits)
    high = 2 ** (bits - 1) - 1
    with learned_weight_limits(layer):
        if part is not None:
            with torch.no_grad():
                layer.weight_limit.copy_(part * layer.weight.flatten(1).abs().amax(1, keepdim=True))
        found = layer(x)
        pattern = torch.linspace(-1, 2, found.numel()).reshape(found.shape)
        (found * pattern).sum().backward()
        gradients = [layer.weight.grad.clone(), layer.weight_limit.grad.clone()]
        layer.zero_grad()
        wanted = layer.inner_forward_impl(x, formula(layer, high), layer.bias)
        (wanted * pattern).sum().backward()
        torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(gradients[0], layer.weight.grad, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(gradients[1], layer.weight_limit.grad, rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("kind", LAYERS)
def test_afterwards_the_layers_own_quantizer_gives_the_same(kind, bits):
    layer, x = quantized(kind, bits)
    names = [*layer.state_dict()]
    with learned_weight_limits(layer), torch.no_grad():
        layer.weight_limit.mul_(0.9)
        inside = layer(x)
    assert [*layer.state_dict()] == names
    assert not hasattr(layer, PARAMETER)
    torch.testing.assert_close(layer(x), inside, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.quant_weight().value, layer.weight, rtol=1e-6, atol=1e-7)


def test_a_limit_beyond_the_largest_weight_is_the_largest_weight_and_only_comes_back():
    layer, x = quantized("linear", 4)
    wanted = layer(x)
    with learned_weight_limits(layer):
        with torch.no_grad():
            layer.weight_limit.fill_(100.0)
        for sign in (1, -1):
            layer.zero_grad()
            found = layer(x)
            torch.testing.assert_close(found, wanted)
            (sign * found * torch.linspace(-1, 2, found.numel()).reshape(found.shape)).sum().backward()
            assert (layer.weight_limit.grad >= 0).all()
            assert (layer.weight_limit.grad > 0).any()


def test_limits_start_where_rounding_loses_least():
    layer, _ = quantized("grouped", 3)
    with torch.no_grad():
        layer.weight.copy_(random(*layer.weight.shape, seed=2))
    nearest = (layer.quant_weight().value - layer.weight).square().flatten(1).sum(1)
    before = layer.weight.detach().clone()
    with learned_weight_limits(layer):
        limits, largest = layer.weight_limit.detach(), before.flatten(1).abs().amax(1, keepdim=True)
        assert (limits <= largest).all()
        assert (limits < 0.9 * largest).any()
    assert ((layer.weight - before).square().flatten(1).sum(1) <= nearest + 1e-6).all()


def test_rounded_weights_stay_as_they_are():
    layer, _ = quantized("grouped", 3)
    with torch.no_grad():
        layer.weight.copy_(layer.quant_weight().value)
    before = layer.weight.detach().clone()
    with learned_weight_limits(layer):
        pass
    torch.testing.assert_close(layer.weight, before)


def test_a_channel_of_zeros_stays_finite_and_can_grow():
    layer, x = quantized("linear", 4)
    with torch.no_grad():
        layer.weight[1] = 0.0
    with learned_weight_limits(layer):
        assert layer(x).isfinite().all()
        with torch.no_grad():
            layer.weight[1] = 0.1 * layer.weight[0]
            assert layer(x)[:, 1].sub(layer.bias[1]).abs().max() > 0


def test_layers_of_another_kind_are_left_alone():
    transposed = quantize_layer(nn.ConvTranspose2d(4, 6, 3), 4)
    plain = nn.Linear(3, 2)
    with learned_weight_limits(nn.ModuleList([transposed, plain])):
        assert not hasattr(transposed, PARAMETER)
        assert not hasattr(plain, PARAMETER)


def test_everything_is_as_before_after_an_error():
    layer, x = quantized("linear", 4)
    names = [*layer.state_dict()]
    with pytest.raises(ValueError, match="stop"), learned_weight_limits(layer):
        raise ValueError("stop")
    assert [*layer.state_dict()] == names
    assert "forward" not in layer.__dict__
    assert layer(x).isfinite().all()


@pytest.mark.parametrize("limits", ["learned", "largest"])
def test_finetune_leaves_a_network_whose_own_quantizers_give_what_was_trained(limits):
    torch.manual_seed(0)
    model = randomized(ResidualNet())
    images = random(16, 3, 16, 16)
    graph = transform(model, level=1, bits=2, calibration=[images])
    names = [*graph.state_dict()]
    finetune(graph, images.split(4), teacher=model, epochs=1, weight_limits=limits)
    assert [*graph.state_dict()] == names
    layers = [module for module in graph.modules() if hasattr(module, "quant_weight") and module.weight.dim() == 4]
    on_levels = [torch.allclose(each.quant_weight().value, each.weight, atol=1e-6) for each in layers]
    assert all(on_levels) == (limits == "learned")
    with torch.no_grad(), fused_quantizers(graph):
        assert graph.eval()(images).isfinite().all()
