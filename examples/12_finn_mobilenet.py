"""MobileNetV1 and V2 for cameras: uint8 pixels go in as they are, no floating point in hardware. One minute.

python examples/12_finn_mobilenet.py      # needs pip install ".[finn,examples]"
"""

from pathlib import Path

import torch
from torch import nn
from torchvision.models import mobilenet_v2

import fxfactor
from fxfactor.passes import LegalizePixelInput

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # what the images were normalized with in training

out = Path("out")
out.mkdir(exist_ok=True)


def mobilenet_v1(width: float = 0.25, classes: int = 100) -> nn.Sequential:
    """Howard et al. 2017, arXiv 1704.04861: a 3×3 convolution, then depthwise 3×3 and pointwise 1×1 ones in turn."""

    def block(inputs: int, outputs: int, kernel: int, stride: int = 1, groups: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    channels = int(32 * width)
    layers = block(3, channels, 3, 2)
    for factor, stride in ((2, 1), (2, 2), (1, 1), (2, 2), (1, 1), (2, 2), *[(1, 1)] * 5, (2, 2), (1, 1)):
        layers += block(channels, channels, 3, stride, groups=channels) + block(channels, channels * factor, 1)
        channels *= factor
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, classes))


torch.manual_seed(0)
pixels = torch.randint(0, 256, (1, 3, 64, 64)).float()
for name, model in (("mobilenet_v1", mobilenet_v1()), ("mobilenet_v2", mobilenet_v2(num_classes=100, width_mult=0.35))):
    # level 0: these networks are factorized by design; the quantizers are what they need
    qmodel = fxfactor.transform(model.eval(), level=0, bits=4, example_inputs=pixels)
    camera = LegalizePixelInput(MEAN, STD)(qmodel).graph
    file = fxfactor.export(camera, out / f"{name}.onnx", target="finn", example_inputs=pixels).path
    outputs = fxfactor.finn.reference(camera, pixels)
    estimate = fxfactor.finn.estimate(file, board="ZCU104", target_fps=200, verify=(pixels, outputs))
    used = ", ".join(f"{key} {share:.0%}" for key, share in estimate.shares.items() if share)
    print(f"{name}: {estimate.fps:.0f} frames/s, bottleneck {estimate.bottleneck.site}; of the board: {used}")
    print("left in software:", *(estimate.software or ["nothing"]))
