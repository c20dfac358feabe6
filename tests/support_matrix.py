"""Which operations go where: docs/support.md is what this prints. `python tests/support_matrix.py > docs/support.md`.

Each operation stands in a small network of floating point, as users have it, which is captured, transformed at level 1 with 4 bits, exported
and checked. What FINN does with what `check` lets pass is tested on the networks of tests/finn/small_networks.py.
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxfactor
from fxfactor.errors import FxfactorError
from fxfactor.graph import kept_whole


class Function(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class Shortcut(nn.Module):
    """x joined with a convolution of x."""

    def __init__(self, join: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8))
        self.join = join

    def forward(self, x: Tensor) -> Tensor:
        return self.join(x, self.body(x))


class Gate(nn.Module):
    """Squeeze and excitation."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(8, 8, 1), nn.Sigmoid())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squeeze(x)


class Twice(nn.Module):
    """One convolution, called two times."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.conv(F.relu(self.conv(x))))


class Attention(nn.Module):
    """Self-attention over the places of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        places = x.flatten(2).transpose(1, 2)
        return self.attention(places, places, places)[0].transpose(1, 2).view(x.shape)


class Recurrent(nn.Module):
    """An LSTM over a signal."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.transpose(1, 2))[0].transpose(1, 2)


def shuffled(x: Tensor) -> Tensor:
    """Channels of two groups in turn."""
    return x.view(x.shape[0], 2, 4, *x.shape[2:]).transpose(1, 2).reshape(x.shape)


def conv(channels_out: int = 8, kernel: Any = 3, **options: Any) -> list[nn.Module]:
    return [nn.Conv2d(8, channels_out, kernel, **options), nn.BatchNorm2d(channels_out), nn.ReLU()]


def around(*operation: nn.Module, channels: int = 8, dims: int = 2) -> nn.Module:
    """The operation between a first convolution and a last layer."""
    first = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    norm = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)[dims - 1]
    pool = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)[dims - 1]
    stem = nn.Sequential(first(3, 8, 3, padding=1), norm(8), nn.ReLU())
    return in_turn(
        stem=stem, op=nn.Sequential(*operation), pool=pool(1), flat=nn.Flatten(), head=nn.Linear(channels, 10)
    )


def in_turn(**modules: nn.Module) -> nn.Module:
    """Modules with names, one after the other."""
    return nn.Sequential(OrderedDict(modules))


OPERATIONS: dict[str, dict[str, Callable[[], nn.Module]]] = {
    "Layers": {
        "Conv2d 3×3": lambda: around(*conv(padding=1)),
        "Conv2d 1×1": lambda: around(*conv(kernel=1)),
        "Conv2d, stride, dilation, any kernel": lambda: around(*conv(kernel=(3, 5), stride=2, dilation=2, padding=2)),
        "Conv2d, depthwise": lambda: around(*conv(padding=1, groups=8)),
        "Conv2d, 2 groups": lambda: around(*conv(padding=1, groups=2)),
        "Conv1d": lambda: around(nn.Conv1d(8, 8, 3, padding=1), nn.ReLU(), dims=1),
        "Conv3d": lambda: around(nn.Conv3d(8, 8, 3, padding=1), nn.ReLU(), dims=3),
        "ConvTranspose2d": lambda: around(nn.ConvTranspose2d(8, 8, 2, 2), nn.ReLU()),
        "Linear": lambda: in_turn(
            flat=nn.Flatten(), first=nn.Linear(768, 8), relu=nn.ReLU(), op=nn.Sequential(nn.Linear(8, 8), nn.ReLU()), head=nn.Linear(8, 4)
        ),
        "a layer called twice": lambda: around(Twice()),
        "LSTM": lambda: around(Recurrent(), dims=1),
        "MultiheadAttention": lambda: around(Attention()),
    },
    "Normalisation": {
        "BatchNorm2d": lambda: around(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), nn.ReLU()),
        "GroupNorm": lambda: around(nn.Conv2d(8, 8, 3), nn.GroupNorm(2, 8), nn.ReLU()),
        "InstanceNorm2d": lambda: around(nn.Conv2d(8, 8, 3), nn.InstanceNorm2d(8), nn.ReLU()),
        "LayerNorm": lambda: around(nn.Conv2d(8, 8, 3, padding=1), nn.LayerNorm([8, 16, 16]), nn.ReLU()),
    },
    "Activations": {
        name: lambda activation=activation: around(nn.Conv2d(8, 8, 3), nn.BatchNorm2d(8), activation())
        for name, activation in {
            "ReLU": nn.ReLU, "ReLU6": nn.ReLU6, "LeakyReLU": nn.LeakyReLU, "PReLU": nn.PReLU, "ELU": nn.ELU, "Sigmoid": nn.Sigmoid,
            "Tanh": nn.Tanh, "Hardtanh": nn.Hardtanh, "Hardsigmoid": nn.Hardsigmoid, "Hardswish": nn.Hardswish, "SiLU": nn.SiLU,
            "GELU": nn.GELU, "Mish": nn.Mish, "Softplus": nn.Softplus,
        }.items()
    },
    "Pooling and sizes": {
        "MaxPool2d": lambda: around(nn.MaxPool2d(2), *conv()),
        "MaxPool2d, overlapping, padded": lambda: around(nn.MaxPool2d(3, 2, 1), *conv()),
        "AvgPool2d": lambda: around(nn.AvgPool2d(2), *conv()),
        "AvgPool2d, padding not counted": lambda: around(nn.AvgPool2d(3, 2, 1, count_include_pad=False), *conv()),
        "AdaptiveAvgPool2d(1), mean": lambda: around(nn.AdaptiveAvgPool2d(1), *conv(kernel=1)),
        "AdaptiveAvgPool2d(7) of 16": lambda: around(nn.AdaptiveAvgPool2d(7), *conv()),
        "AdaptiveMaxPool2d": lambda: around(nn.AdaptiveMaxPool2d(4), *conv()),
        "Upsample, nearest, by 2": lambda: around(nn.Upsample(scale_factor=2), *conv()),
        "Upsample, bilinear": lambda: around(nn.Upsample(scale_factor=2, mode="bilinear"), *conv()),
        "PixelShuffle": lambda: around(nn.PixelShuffle(2), nn.Conv2d(2, 8, 3), nn.ReLU()),
        "ZeroPad2d": lambda: around(nn.ZeroPad2d(1), *conv()),
        "ReflectionPad2d": lambda: around(nn.ReflectionPad2d(1), *conv()),
    },
    "Joins and channels": {
        "addition": lambda: around(Shortcut(torch.add), nn.ReLU(), *conv()),
        "concatenation": lambda: around(
            Shortcut(lambda a, b: torch.cat([a, b], 1)), nn.Conv2d(16, 8, 1), nn.BatchNorm2d(8), nn.ReLU()
        ),
        "product of two activations": lambda: around(Gate(), *conv()),
        "channel shuffle, pointwise behind": lambda: around(Function(shuffled), *conv(kernel=1)),
        "channel shuffle, 2 groups behind": lambda: around(Function(shuffled), *conv(groups=2)),
        "chunk or split of channels": lambda: around(
            Function(lambda x: torch.cat(x.chunk(2, 1)[::-1], 1)), *conv()
        ),
        "a part of the channels": lambda: around(Function(lambda x: x[:, 2:]), nn.Conv2d(6, 8, 3), nn.ReLU()),
        "matmul of activations": lambda: around(Function(lambda x: (x @ x.transpose(2, 3)).relu()), *conv()),
    },
    "At the end": {
        "Softmax": lambda: in_turn(network=around(*conv()), op=nn.Softmax(1)),
        "argmax": lambda: in_turn(network=around(*conv()), op=Function(lambda x: x.argmax(1))),
    },
}  # fmt: skip
IMAGES = {"Conv1d": (1, 3, 16), "LSTM": (1, 3, 16), "Conv3d": (1, 3, 8, 8, 8)}
HEAD = """# Support matrix

Written by `python tests/support_matrix.py > docs/support.md`; a slow test makes it anew. Each operation stands between a convolution and a linear
layer, with random weights, and goes through `fxfactor.capture` (compared with the model), `transform(level=1, bits=4)` and
`fxfactor.finn.check`. *Factors*: split, both parts quantized. *4 bits*: quantized in one piece.
What `check` lets pass is taken through FINN's own steps, bit by bit, on the networks of `tests/finn/small_networks.py`.
"""


def became(graph: Any, is_layer: bool) -> str:
    """What `transform` made of the operation."""
    if kept_whole(graph):
        return "kept, in floating point"
    if not is_layer:
        return "yes"
    found = [
        path
        for path, module in graph.named_modules()
        if path.startswith("op.") and type(module).__name__.startswith("Quant")
    ]
    return "factors" if any(path.endswith("spatial") for path in found) else "4 bits" if found else "kept"


def finn_says(graph: Any) -> str:
    """Yes, or the first finding that blocks, with its remedy."""
    found = [finding for finding in fxfactor.finn.check(graph) if finding.blocks]
    return "yes" if not found else f"no: {found[0].found}; {found[0].remedy}"


def row(name: str, build: Callable[[], nn.Module]) -> str:
    """One operation as a row of the table."""
    torch.manual_seed(0)
    images = torch.randn(IMAGES.get(name, (1, 3, 16, 16)))
    model = build().eval()
    cells = [name]
    try:
        graph = fxfactor.capture(model, images)
        cells.append("yes")
        qmodel = fxfactor.transform(graph, level=1, bits=4)
        cells.append(became(qmodel, name in OPERATIONS["Layers"]))
        cells.append(finn_says(qmodel))
    except FxfactorError as error:
        cells.append(f"no: {str(error).splitlines()[0]}")
    return f"| {' | '.join(cell.replace('|', '/') for cell in cells)} |" + " |" * (4 - len(cells))


def page() -> str:
    """docs/support.md."""
    parts = [HEAD]
    for title, operations in OPERATIONS.items():
        parts.append(f"\n## {title}\n\n| operation | capture | transform | FINN |\n|---|---|---|---|\n")
        parts += [row(name, build) + "\n" for name, build in operations.items()]
    return "".join(parts)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    print(page(), end="")
