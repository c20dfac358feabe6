"""What FINN asks of a network, as data: the rules, and the finding that says where one is broken.

Each rule was seen in runs of FINN+ 1.6.1 (PyPI `finn-plus`). A rule is a sentence; the finding adds the place, what was
found there and what to do. `fxfactor.finn.check` lists findings, `fxfactor.finn.estimate` stops at the first that blocks.
"""

from __future__ import annotations

from dataclasses import dataclass

INPUT = "the network starts with a quantizer of one scale, which says what integers come in"
QUANTIZED = "every tensor that enters a convolution, linear layer or pooling is quantized"
WEIGHTS = "the weights of every convolution and linear layer are quantized with zero point 0"
GROUPED_ORDER = "the channels of a group lie side by side"
JOIN = "tensors that meet in an addition carry the same scale"
ZERO_POINT = "activations and weights have zero point 0"
BITS = "activations have 1 to 8 bits"
ROUNDING = "activations are rounded to nearest, up or down"
ONE_SCALE = "what enters a convolution or linear layer has one scale for all channels"
MONOTONE = "between a layer and its quantizer stand only functions that never fall"
PADDING = "padding is with zeros, and zero stands for the number 0"
POOLING = "max pooling works on quantized values, with a stride not above the kernel and without ceil_mode"
SIGNED_PADDING = "padded max pooling works on unsigned values"
AVERAGE = "average pooling counts its padding (count_include_pad) and does not use ceil_mode"
OPERATION = "every operation is one that FINN has hardware for"
SHAPES = "shapes are static and the batch size is 1"
LINEAR_INPUT = "a linear layer works on a flat tensor (N, features)"
ONE_INPUT = "the network has one input, and outputs that layers compute from it"
UPSAMPLING = "upsampling is by nearest neighbours and whole factors"
TRANSPOSED = "a transposed convolution has one group, and no padding beyond its kernel"
SPLIT = "channels are split with torch.split and explicit sizes"
EXPORT = "the network exports to QONNX"

REMEDIES = {
    "AdaptiveAveragePool": "pool to a size that divides the input's, or to 1",
    "Add": "quantize both tensors with one shared quantizer before the addition",
    "ArgMax": "end the network in its linear logits and take the argmax on the host",
    "Clip": "use a Brevitas QuantReLU in its place, or put a quantizer right after it",
    "ConvTranspose": "use groups=1 and padding below dilation · (kernel - 1), or nearest-neighbour upsampling and a convolution",
    "DepthToSpace": "use nearest-neighbour upsampling or a transposed convolution in its place",
    "Dropout": "export in evaluation mode",
    "Gelu": "use a ReLU in its place and fine-tune",
    "HardSwish": "use a ReLU in its place and fine-tune",
    "InstanceNormalization": "use batch normalisation in its place",
    "LayerNormalization": "use batch normalisation in its place",
    "MatMul": "keep products of two activations, as in attention, on the host: export the network up to there",
    "Mul": "gating (squeeze and excitation) needs the product of two activations: use a block without it",
    "Pad": "pad inside the convolution (padding=) with zeros; a channel-padding shortcut becomes a fixed 1x1 convolution "
    "in fxfactor.capture",
    "Reshape": "FINN takes torch.flatten(x, 1) before a linear layer, and channel shuffles; GroupNorm comes as a Reshape too: "
    "use batch normalisation in its place",
    "Slice": "use torch.split(x, [n, ...], 1), or slices that together are all channels, each once",
    "Softmax": "end the network in its linear logits and take the softmax on the host",
    "TopK": "end the network in its linear logits and take the top k on the host",
    "Transpose": "keep tensors as (N, C, H, W); what attention does with them stays on the host",
    "Trunc": "use torch.nn.AvgPool2d, or AdaptiveAvgPool2d(1), and a quantizer after it",
}
"""ONNX operation -> what to do about it, for operations that the integer graph has no form for."""


@dataclass(frozen=True)
class Finding:
    """`rule` is broken at `site` (a module path of the model where one is known) by what was `found`; see `remedy`.

    A finding that does not `block` costs hardware but compiles.
    """

    rule: str
    site: str
    found: str
    remedy: str
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.site}: required: {self.rule}; found: {self.found}; {self.remedy}"
