"""One small network, and what ordinary models do that a graph cannot: the rows of what capture must get right."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHAPE = (2, 3, 8, 8)


class Small(nn.Module):
    """conv a, conv b, global average, linear l: 3 channels → 4."""

    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Conv2d(3, 16, 3, padding=1)
        self.b = nn.Conv2d(16, 16, 3, padding=1)
        self.l = nn.Linear(16, 4)

    def body(self, x: Tensor) -> Tensor:
        return torch.relu(self.b(torch.relu(self.a(x))))

    def forward(self, x: Tensor) -> Any:
        return self.l(self.body(x).mean((2, 3)))


class FunctionalDropout(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(F.dropout(self.body(x).mean((2, 3)), 0.5, self.training))


class NoiseInTraining(Small):
    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        return self.l((h + torch.randn_like(h) if self.training else h).mean((2, 3)))


class AuxiliaryInTraining(Small):
    def forward(self, x: Tensor) -> Any:
        h = self.body(x)
        y = self.l(h.mean((2, 3)))
        return (y, h) if self.training else y


class AnswersTooMany(Small):
    """Computes what no output depends on, as MSDNet's earlier classifiers."""

    def __init__(self) -> None:
        super().__init__()
        self.early = nn.Sequential(nn.Conv2d(16, 4, 3), nn.BatchNorm2d(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.body(x)
        answers = [self.early(h), self.l(h.mean((2, 3)))]
        return answers[-1]


class CountsCalls(Small):
    n = 0

    def forward(self, x: Tensor) -> Tensor:
        self.n += 1
        return super().forward(x)


class RemembersShape(Small):
    """What is set anew in every call is no memory."""

    def forward(self, x: Tensor) -> Tensor:
        self.height = 8
        return super().forward(x)


class WritesIntoBuffer(Small):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("last", torch.zeros(4))

    def forward(self, x: Tensor) -> Tensor:
        y = super().forward(x)
        self.last.copy_(y.detach().mean(0))
        return y


class _HalfGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * 1

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient * 0.5


class OwnGradient(Small):
    def forward(self, x: Tensor) -> Tensor:
        return self.l(_HalfGradient.apply(self.body(x)).mean((2, 3)))


class _SquareRoot(torch.autograd.Function):
    """The root of what is not zero, column by column: no symbolic value goes through, and how many there are is no shape."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        columns = torch.ones(x.shape[1]).nonzero().view(-1)
        root = x[:, columns].clamp_min(1e-3).sqrt()
        ctx.save_for_backward(root)
        return root

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (root,) = ctx.saved_tensors
        return gradient / root.clamp_min(0.1)


class _Root(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return _SquareRoot.apply(x)


class OwnGradientInAModule(Small):
    """A module without layers that nothing sees through: its gradient is not that of its operations."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), _Root())

    def forward(self, x: Tensor) -> Tensor:
        return self.l(self.pool(self.body(x)))


class OwnGradientAroundALayer(Small):
    """The same, with a layer inside the module."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), _RootAndLayer())

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))


class _RootAndLayer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.l = nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.l(_SquareRoot.apply(x))


class WithoutGradient(Small):
    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            h = self.body(x)
        return self.l(h.mean((2, 3)))


class ReadsSize(Small):
    def forward(self, x: Tensor) -> Tensor:
        assert x.shape[-1] >= 8
        h = F.interpolate(self.body(x)[:, :, ::2, ::2], size=x.shape[-2:])
        return self.l((h * torch.linspace(0, 1, x.shape[-1])).sum((2, 3)))


class OptionalArguments(Small):
    def forward(self, x: Tensor, scale: float = 2.0, mask: Tensor | None = None) -> Tensor:
        h = self.body(x) * scale
        return self.l((h if mask is None else h * mask).mean((2, 3)))


class Answer(dict[str, Tensor]):
    pass


class OwnDictionary(Small):
    def forward(self, x: Tensor) -> Answer:
        return Answer(out=super().forward(x))


class FrozenInTraining(Small):
    def train(self, mode: bool = True) -> FrozenInTraining:
        super().train(mode)
        self.a.eval()
        return self
