"""Small networks and the comparisons that several tests share."""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.graph.compare import relative_difference


def randomized(model: nn.Module, seed: int = 0) -> nn.Module:
    """`model` in eval with random batch-norm statistics and affine parameters, so that no channel is trivial."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None:
            module.running_mean.normal_(0, 0.2, generator=generator)
            module.running_var.uniform_(0.5, 1.5, generator=generator)
        if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.affine:
            nn.init.uniform_(module.weight, 0.5, 1.5, generator=generator)
            nn.init.normal_(module.bias, 0, 0.2, generator=generator)
    return model.eval()


def set_statistics(model: nn.Module, batches: Iterable[Tensor]) -> nn.Module:
    """Give the batch norms of `model` the statistics that these batches have there, and put it in eval."""
    for module in model.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_running_stats()
            module.momentum = None  # a plain mean over the batches
    model.train()
    with torch.no_grad():
        for batch in batches:
            model(batch)
    return model.eval()


def difference_in_float64(found: nn.Module, wanted: nn.Module, *shapes: tuple[int, ...], seed: int = 1) -> float:
    """Relative difference of the two networks' outputs on random inputs, in eval and float64."""
    generator = torch.Generator().manual_seed(seed)
    inputs = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]
    with torch.no_grad():
        outputs = [copy.deepcopy(network).eval().double()(*inputs) for network in (found, wanted)]
    return relative_difference(*outputs)


def fingerprint(model: nn.Module) -> str:
    """Hash of all that a caller could see change: structure, modes, hooks, values and dtypes of every tensor."""
    digest = hashlib.sha256(repr(model).encode())
    for name, module in model.named_modules():
        plain = {key: value for key, value in vars(module).items() if isinstance(value, int | float | str | tuple)}
        hooks = len(module._forward_hooks), len(module._forward_pre_hooks), len(module._backward_hooks)
        digest.update(repr((name, id(module), sorted(plain.items()), hooks)).encode())
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        about = name, id(tensor), tensor.dtype, tensor.requires_grad, tensor.grad is None
        digest.update(repr(about).encode() + tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def conv_bn_relu(channels_in: int, channels_out: int, **settings: Any) -> nn.Sequential:
    conv = nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False, **settings)
    return nn.Sequential(conv, nn.BatchNorm2d(channels_out), nn.ReLU())


class Residual(nn.Module):
    """relu(x + bn(conv(relu(bn(conv(x))))))"""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(x + self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))))


class ResidualNet(nn.Module):
    """Stem, one residual block, global average pooling and a classifier: 3×16×16 → 10."""

    def __init__(self, channels: int = 16) -> None:
        super().__init__()
        self.stem = conv_bn_relu(3, channels)
        self.block = Residual(channels)
        self.classifier = nn.Linear(channels, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.block(self.stem(x)).mean((2, 3)))


class Lambda(nn.Module):
    """Layers a, b, c … and a forward written in the test: `Lambda(lambda m, x: m.a(x) + x, a=nn.Conv2d(…))`."""

    def __init__(self, function: Callable[..., Any], **modules: nn.Module) -> None:
        super().__init__()
        self.function = function
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        return self.function(self, x)


def random_batches(count: int = 24, size: int = 16) -> list[Tensor]:
    """The same `count` images each time, in batches of 8."""
    return list(torch.randn(count, 3, size, size, generator=torch.Generator().manual_seed(3)).split(8))
