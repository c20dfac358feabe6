"""Small quantized networks, each for one thing that FINN takes or refuses: the table behind `fxfactor.finn.check`.

Every network is `input quantizer → stem → block → head` unless it says otherwise, on images of 3 x 8 x 8.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from typing import Any

import torch
from brevitas import nn as qnn
from brevitas.inject.enum import RestrictValueType
from brevitas.quant import (
    Int8ActPerTensorFloat,
    Int8WeightPerChannelFloat,
    Int8WeightPerTensorFloat,
    Int16Bias,
    ShiftedUint8ActPerTensorFloat,
    ShiftedUint8WeightPerTensorFloat,
    SignedBinaryActPerTensorConst,
    SignedBinaryWeightPerTensorConst,
    SignedTernaryWeightPerTensorConst,
    TruncTo8bit,
    Uint8ActPerTensorFloat,
)
from torch import Tensor, nn
from torch.nn import functional as F

from fxfactor.finn import rules

Build = Callable[[], nn.Module]


def conv(inputs: int, outputs: int, kernel: Any = 3, bits: int = 4, **settings: Any) -> nn.Module:
    """A quantized convolution that keeps height and width, with one weight scale per output channel and no bias."""
    size = kernel if isinstance(kernel, tuple) else (kernel, kernel)
    settings.setdefault("padding", (size[0] // 2, size[1] // 2))
    settings.setdefault("bias", False)
    settings.setdefault("weight_quant", Int8WeightPerChannelFloat)
    return qnn.QuantConv2d(inputs, outputs, kernel, weight_bit_width=bits, return_quant_tensor=False, **settings)


def transposed(
    inputs: int, outputs: int, kernel: int, stride: int, padding: int = 0, more: int = 0, **settings: Any
) -> nn.Module:
    """A quantized transposed convolution; `more` is its output padding."""
    return qnn.QuantConvTranspose2d(
        inputs,
        outputs,
        kernel,
        stride,
        padding,
        more,
        bias=False,
        weight_bit_width=4,
        return_quant_tensor=False,
        **settings,
    )


def norm(channels: int) -> nn.Module:
    """A batch norm that does something."""
    module = nn.BatchNorm2d(channels)
    nn.init.uniform_(module.weight, 0.5, 1.5)
    nn.init.uniform_(module.bias, -0.3, 0.3)
    return module


def relu(bits: int = 4, **settings: Any) -> nn.Module:
    """An unsigned quantizer that is a ReLU too."""
    return qnn.QuantReLU(bit_width=bits, return_quant_tensor=False, **settings)


def quantizer(bits: int = 4, **settings: Any) -> nn.Module:
    """A signed quantizer."""
    settings.setdefault("act_quant", Int8ActPerTensorFloat)
    return qnn.QuantIdentity(bit_width=bits, return_quant_tensor=False, **settings)


def unsigned(bits: int = 4) -> nn.Module:
    """An unsigned quantizer for an activation of its own."""
    return quantizer(bits, act_quant=Uint8ActPerTensorFloat)


def linear(inputs: int, outputs: int = 10, **settings: Any) -> nn.Module:
    """The classifier."""
    settings.setdefault("weight_quant", Int8WeightPerChannelFloat)
    return qnn.QuantLinear(inputs, outputs, bias=True, weight_bit_width=4, return_quant_tensor=False, **settings)


class Lambda(nn.Module):
    """A function as a module."""

    def __init__(self, function: Callable[[Any], Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Any) -> Any:
        return self.function(x)


def stem() -> list[nn.Module]:
    """Input quantizer and first convolution: 3 -> 8 channels."""
    return [quantizer(8), conv(3, 8), norm(8), relu()]


def head(features: int) -> list[nn.Module]:
    """Flatten and classify."""
    return [nn.Flatten(1), linear(features)]


def chain(*block: nn.Module, features: int = 8 * 64) -> nn.Module:
    """The usual network around a block."""
    return nn.Sequential(*stem(), *block, *head(features))


def last(*block: nn.Module) -> nn.Module:
    """A block at the end, after the stem."""
    return nn.Sequential(*stem(), *block)


class Residual(nn.Module):
    """Two convolutions beside a shortcut, both quantized by `left` and `right` before the addition."""

    def __init__(self, left: nn.Module, right: nn.Module, channels: int = 8, stride: int = 1) -> None:
        super().__init__()
        self.body = nn.Sequential(
            conv(8, channels, stride=stride), norm(channels), relu(), conv(channels, channels), norm(channels)
        )
        plain = stride == 1 and channels == 8
        self.shortcut = nn.Identity() if plain else nn.Sequential(conv(8, channels, 1, stride=stride), norm(channels))
        self.left, self.right, self.after = left, right, relu()

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.left(self.body(x)) + self.right(self.shortcut(x)))


class PreActivation(nn.Module):
    """Batch norm and activation after the addition, with negative factors: no weights there to take the signs."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shared, self.norm, self.after = nn.Sequential(conv(8, 8), norm(8)), quantizer(), norm(8), relu()
        with torch.no_grad():
            self.norm.weight[::2] *= -1

    def forward(self, x: Tensor) -> Tensor:
        return self.after(self.norm(self.shared(self.body(x)) + self.shared(x)))


class Branches(nn.Module):
    """torch.split → a convolution for each part → torch.cat → batch norm → quantizer."""

    def __init__(
        self, weight_quant: Any = Int8WeightPerChannelFloat, split: Callable[[Tensor], Any] | None = None
    ) -> None:
        super().__init__()
        self.parts = nn.ModuleList(conv(2, 2, weight_quant=weight_quant) for _ in range(4))
        self.after = nn.Sequential(norm(8), relu())
        self.split = split or (lambda x: torch.split(x, [2, 2, 2, 2], 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.after(torch.cat([part(piece) for part, piece in zip(self.parts, self.split(x), strict=True)], 1))


class Parallel(nn.Module):
    """Two branches on one tensor, concatenated; `behind` quantizes each or all of it."""

    def __init__(self, branches: list[nn.Module], quantizers: list[nn.Module], behind: nn.Module | None = None) -> None:
        super().__init__()
        self.branches, self.quantizers = nn.ModuleList(branches), nn.ModuleList(quantizers)
        self.behind = behind or nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        pairs = zip(self.branches, self.quantizers, strict=True)
        return self.behind(torch.cat([quantize(branch(x)) for branch, quantize in pairs], 1))


class DenseBlock(nn.Module):
    """The input concatenated with what was computed from it; one quantizer for both."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.shared = nn.Sequential(conv(8, 8), norm(8)), relu()

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.shared(x), self.shared(self.body(x))], 1)


class Gate(nn.Module):
    """Squeeze and excitation: a product of two activations."""

    def __init__(self) -> None:
        super().__init__()
        self.squeeze = nn.Sequential(nn.AdaptiveAvgPool2d(1), quantizer(), conv(8, 8, 1), nn.Sigmoid(), unsigned())

    def forward(self, x: Tensor) -> Tensor:
        return x * self.squeeze(x)


class Read(nn.Module):
    """An output that another layer reads."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Sequential(*stem()), linear(8 * 64)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = self.stem(x)
        return x, self.head(x.flatten(1))


def negative(module: nn.Module) -> nn.Module:
    """The batch norm with every other factor negative."""
    with torch.no_grad():
        module.weight[::2] *= -1
    return module


def powers_of_two() -> nn.Module:
    """All scales are powers of two and there is no batch norm: values fall on ties between two levels."""
    po2 = {"scaling_impl_type": "const", "scaling_init": 1.0, "restrict_scaling_type": RestrictValueType.POWER_OF_TWO}

    class Weights(Int8WeightPerTensorFloat):
        restrict_scaling_type = RestrictValueType.POWER_OF_TWO
        scaling_impl_type = "const"
        scaling_init = 0.5

    def plain(inputs: int, outputs: int) -> nn.Module:
        return conv(inputs, outputs, weight_quant=Weights)

    return nn.Sequential(
        quantizer(8, **po2), plain(3, 8), relu(**po2), plain(8, 8), quantizer(**po2), plain(8, 8), relu(**po2),
        nn.Flatten(1), linear(512, weight_quant=Weights),
    )  # fmt: skip


TAKEN: dict[str, Build] = {
    "chain": lambda: chain(conv(8, 8), norm(8), relu()),
    "stride 2": lambda: chain(conv(8, 8, stride=2), norm(8), relu(), features=8 * 16),
    "stride (1, 2)": lambda: chain(conv(8, 8, stride=(1, 2)), norm(8), relu(), features=8 * 32),
    "1x1, stride 2": lambda: chain(conv(8, 8, 1, stride=2), norm(8), relu(), features=8 * 16),
    "kernel 1x3": lambda: chain(conv(8, 8, (1, 3)), norm(8), relu()),
    "kernel 5x5": lambda: chain(conv(8, 8, 5), norm(8), relu()),
    "on one pixel": lambda: chain(nn.MaxPool2d(8), conv(8, 8), norm(8), relu(), features=8),
    "on one row": lambda: chain(nn.MaxPool2d((8, 1)), conv(8, 8, stride=2), norm(8), relu(), features=8 * 4),
    "depthwise on one pixel": lambda: chain(nn.MaxPool2d(8), conv(8, 8, groups=8), norm(8), relu(), features=8),
    "padding (1, 0)": lambda: chain(conv(8, 8, padding=(1, 0)), norm(8), relu(), features=8 * 48),
    "dilation 2": lambda: chain(conv(8, 8, dilation=2, padding=2), norm(8), relu()),
    "padding as an operation": lambda: chain(
        Lambda(lambda x: F.pad(x, (1, 1, 1, 1))), conv(8, 8, padding=0), norm(8), relu()
    ),
    "uneven padding": lambda: chain(
        Lambda(lambda x: F.pad(x, (1, 0, 0, 1))), conv(8, 8, 2, padding=0), norm(8), relu()
    ),
    "depthwise separable": lambda: chain(conv(8, 8, groups=8), norm(8), relu(), conv(8, 8, 1), norm(8), relu()),
    "depthwise 1x5": lambda: chain(conv(8, 8, (1, 5), groups=8), norm(8), relu(), conv(8, 8, 1), norm(8), relu()),
    "depthwise, stride 2, dilation 2": lambda: chain(
        conv(8, 8, groups=8, stride=2, dilation=2, padding=2), quantizer(), conv(8, 8, 1), relu(), features=8 * 16
    ),
    "depthwise 8-bit signed pointwise": lambda: chain(
        conv(8, 8, groups=8), quantizer(8), conv(8, 8, 1), norm(8), relu()
    ),
    "no quantizer after a depthwise layer of one scale": lambda: chain(
        conv(8, 8, groups=8, weight_quant=Int8WeightPerTensorFloat), conv(8, 8, 1), norm(8), relu()
    ),
    "max pool 2x2": lambda: chain(nn.MaxPool2d(2), features=8 * 16),
    "max pool 3x3, stride 2, padding 1": lambda: chain(nn.MaxPool2d(3, 2, 1), conv(8, 8), relu(), features=8 * 16),
    "max pool with ceil_mode": lambda: chain(nn.MaxPool2d(3, 2, ceil_mode=True), conv(8, 8), relu(), features=8 * 16),
    "max pool before the quantizer": lambda: chain(conv(8, 8), norm(8), nn.MaxPool2d(3, 2, 1), relu(), features=8 * 16),
    "max pool between norm and ReLU, signs": lambda: chain(
        conv(8, 8), negative(norm(8)), nn.MaxPool2d(2), relu(), features=8 * 16
    ),
    "upsampling": lambda: chain(nn.Upsample(scale_factor=2), conv(8, 8), relu(), features=8 * 256),
    "upsampling, 3 by 1, before the quantizer": lambda: chain(
        conv(8, 8), nn.ReLU(), nn.Upsample(scale_factor=(3, 1)), unsigned(), features=8 * 192
    ),
    "transposed convolution": lambda: chain(transposed(8, 8, 2, 2), relu(), features=8 * 256),
    "transposed convolution, output padding": lambda: chain(
        transposed(8, 8, 3, 2, 1, 1), norm(8), relu(), features=8 * 256
    ),
    "transposed convolution, stride 1": lambda: chain(transposed(8, 8, 3, 1, 1), norm(8), relu()),
    "average pool 2x2": lambda: chain(nn.AvgPool2d(2), quantizer(), conv(8, 8), relu(), features=8 * 16),
    "average pool 3x3, padding counted": lambda: chain(
        nn.AvgPool2d(3, 2, 1), quantizer(), conv(8, 8), relu(), features=8 * 16
    ),
    "truncating average pool": lambda: chain(
        Lambda(lambda x: x),
        qnn.QuantIdentity(act_quant=Uint8ActPerTensorFloat, bit_width=4, return_quant_tensor=True),
        qnn.TruncAvgPool2d(2, bit_width=4, trunc_quant=TruncTo8bit, return_quant_tensor=False),
        features=8 * 16,
    ),
    "global average pool": lambda: chain(nn.AdaptiveAvgPool2d(1), features=8),
    "global average pool, quantized": lambda: chain(nn.AdaptiveAvgPool2d(1), nn.Flatten(1), quantizer(8), features=8),
    "mean over height and width": lambda: chain(Lambda(lambda x: x.mean((2, 3))), quantizer(8), features=8),
    "view as flatten": lambda: last(Lambda(lambda x: x.view(x.size(0), -1)), linear(8 * 64)),
    "ReLU6": lambda: chain(conv(8, 8), norm(8), nn.ReLU6(), unsigned()),
    "leaky ReLU": lambda: chain(conv(8, 8), norm(8), nn.LeakyReLU(0.1), quantizer()),
    "PReLU": lambda: chain(conv(8, 8), norm(8), nn.PReLU(8), quantizer()),
    "sigmoid": lambda: chain(conv(8, 8), norm(8), nn.Sigmoid(), unsigned()),
    "hard tanh": lambda: chain(conv(8, 8), norm(8), nn.Hardtanh(), quantizer()),
    "ELU, then batch norm": lambda: chain(conv(8, 8), nn.ELU(), norm(8), quantizer()),
    "batch norm with negative factors": lambda: chain(conv(8, 8), negative(norm(8)), relu()),
    "float bias": lambda: chain(conv(8, 8, bias=True), relu()),
    "quantized bias": lambda: nn.Sequential(
        qnn.QuantIdentity(act_quant=Int8ActPerTensorFloat, bit_width=8, return_quant_tensor=True),
        conv(3, 8, bias=True, bias_quant=Int16Bias),
        norm(8),
        relu(),
        *head(512),
    ),  # fmt: skip
    "residual": lambda: chain(Residual(*[quantizer()] * 2)),
    "residual, stride 2, more channels": lambda: chain(
        Residual(*[quantizer()] * 2, channels=16, stride=2), features=16 * 16
    ),
    "pre-activation residual, signs": lambda: chain(PreActivation()),
    "split, convolutions, concatenation": lambda: chain(Branches(), conv(8, 8, 1), norm(8), relu()),
    "slices for a split": lambda: chain(
        Branches(split=lambda x: [x[:, i : i + 2] for i in range(0, 8, 2)]), conv(8, 8, 1), relu()
    ),
    "branches with a scale each": lambda: chain(Branches(Int8WeightPerTensorFloat), conv(8, 8, 1), norm(8), relu()),
    "parallel depthwise": lambda: chain(
        Parallel([conv(8, 8, groups=8) for _ in range(2)], [nn.Identity()] * 2, nn.Sequential(norm(16), relu())),
        conv(16, 8, 1),
        norm(8),
        relu(),
    ),  # fmt: skip
    "concatenation, one quantizer": lambda: chain(Parallel([conv(8, 8), conv(8, 8)], [relu()] * 2), features=16 * 64),
    "dense block": lambda: chain(DenseBlock(), conv(16, 8), norm(8), relu()),
    "powers of two": powers_of_two,
    "rounding down": lambda: chain(conv(8, 8), relu(float_to_int_impl_type="floor")),
    "binary weights": lambda: chain(conv(8, 8, 3, 1, weight_quant=SignedBinaryWeightPerTensorConst), norm(8), relu()),
    "ternary weights": lambda: chain(conv(8, 8, 3, 2, weight_quant=SignedTernaryWeightPerTensorConst), norm(8), relu()),
    "2 bits": lambda: chain(conv(8, 8, bits=2), norm(8), relu(2), conv(8, 8, bits=2), norm(8), quantizer(2)),
    "8 bits": lambda: chain(conv(8, 8, bits=8), norm(8), relu(8), conv(8, 8, bits=8), norm(8), quantizer(8)),
    "narrow range": lambda: chain(conv(8, 8), norm(8), quantizer(narrow_range=True)),
    "signed 2 bits after a ReLU": lambda: chain(nn.ReLU(), quantizer(2), conv(8, 8), norm(8), relu()),
    "convolution at the end": lambda: last(nn.AdaptiveAvgPool2d(1), quantizer(8), conv(8, 10, 1), nn.Flatten(1)),
    "map at the end": lambda: last(conv(8, 4)),
    "grouped": lambda: chain(conv(8, 8, groups=4), norm(8), relu()),
    "channel multiplier": lambda: chain(conv(8, 16, groups=8), norm(16), relu(), features=16 * 64),
}
"""Name -> network that FINN takes: check finds nothing, the flow ends in estimates, equal to PyTorch."""

REFUSED: dict[str, tuple[Build, str]] = {
    "convolution on convolution": (lambda: chain(conv(8, 8), conv(8, 8), norm(8), relu()), rules.ONE_SCALE),
    "batch norm between convolutions": (lambda: chain(conv(8, 8), norm(8), conv(8, 8), relu()), rules.ONE_SCALE),
    "ReLU without a quantizer": (lambda: chain(conv(8, 8), nn.ReLU(), conv(8, 8), relu()), rules.QUANTIZED),
    "addition, two quantizers": (lambda: chain(Residual(quantizer(), quantizer())), rules.JOIN),
    "addition, no quantizers": (lambda: chain(Residual(nn.Identity(), nn.Identity())), rules.JOIN),
    "concatenation, two quantizers": (
        lambda: chain(Parallel([conv(8, 8), conv(8, 8)], [relu(), relu()]), conv(16, 8), relu()),
        rules.ONE_SCALE,
    ),  # fmt: skip
    "9 bits": (lambda: chain(conv(8, 8), norm(8), quantizer(9)), rules.BITS),
    "bipolar activations": (
        lambda: chain(conv(8, 8), norm(8), quantizer(1, act_quant=SignedBinaryActPerTensorConst), conv(8, 8), relu()),
        rules.BITS,
    ),  # fmt: skip
    "zero point of an activation": (
        lambda: chain(conv(8, 8), norm(8), quantizer(4, act_quant=ShiftedUint8ActPerTensorFloat)),
        rules.ZERO_POINT,
    ),  # fmt: skip
    "zero point of weights": (
        lambda: chain(conv(8, 8, weight_quant=ShiftedUint8WeightPerTensorFloat), norm(8), relu()),
        rules.ZERO_POINT,
    ),  # fmt: skip
    "float weights": (lambda: chain(nn.Conv2d(8, 8, 3, padding=1, bias=False), norm(8), relu()), rules.WEIGHTS),
    "reflected padding": (lambda: chain(nn.ReflectionPad2d(1), conv(8, 8, padding=0), relu()), rules.PADDING),
    "padded channels": (lambda: chain(Lambda(lambda x: F.pad(x, (0, 0, 0, 0, 4, 4))), features=16 * 64), rules.PADDING),
    "hard swish": (lambda: chain(conv(8, 8), norm(8), nn.Hardswish(), quantizer()), rules.OPERATION),
    "SiLU": (lambda: chain(conv(8, 8), norm(8), nn.SiLU(), quantizer()), rules.OPERATION),
    "gate": (lambda: chain(Gate(), quantizer(), conv(8, 8), relu()), rules.OPERATION),
    "bilinear upsampling": (
        lambda: chain(nn.Upsample(scale_factor=2, mode="bilinear"), conv(8, 8), relu(), features=8 * 256),
        rules.UPSAMPLING,
    ),
    "upsampling by a part": (
        lambda: chain(nn.Upsample(scale_factor=1.5), conv(8, 8), relu(), features=8 * 144),
        rules.UPSAMPLING,
    ),
    "transposed convolution of groups": (
        lambda: chain(transposed(8, 8, 2, 2, groups=2), relu(), features=8 * 256),
        rules.TRANSPOSED,
    ),
    "softmax at the end": (lambda: nn.Sequential(*chain(), nn.Softmax(1)), rules.OPERATION),
    "argmax at the end": (lambda: nn.Sequential(*chain(), Lambda(lambda x: x.argmax(1))), rules.OPERATION),
    "no input quantizer": (lambda: nn.Sequential(conv(3, 8), norm(8), relu(), *head(512)), rules.INPUT),
    "slices of a part": (lambda: chain(Lambda(lambda x: x[:, 2:]), conv(6, 8, 1), relu()), rules.OPERATION),
    "max pool with gaps": (lambda: chain(nn.MaxPool2d(2, 3), features=8 * 9), rules.POOLING),
    "padded max pool on signed values": (
        lambda: chain(conv(8, 8), norm(8), quantizer(), nn.MaxPool2d(3, 2, 1), features=8 * 16),
        rules.SIGNED_PADDING,
    ),  # fmt: skip
    "average pool, padding not counted": (
        lambda: chain(nn.AvgPool2d(3, 2, 1, count_include_pad=False), quantizer(), features=8 * 16),
        rules.AVERAGE,
    ),  # fmt: skip
    "an output that is read": (Read, rules.ONE_INPUT),
}
"""Name -> network that FINN refuses, and the rule that check has to name."""


def build(make: Build, seed: int = 0) -> nn.Module:
    """The network with calibrated scales and batch norm statistics, in eval mode."""
    torch.manual_seed(seed)
    model = make().train()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Brevitas names tensors, which torch calls experimental
        for _ in range(3):
            model(torch.randn(4, 3, 8, 8))
    return model.eval()
