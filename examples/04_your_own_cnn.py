"""A CNN of your own, with Python that torch.fx cannot trace by itself. 15 seconds.

python examples/04_your_own_cnn.py
"""

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)


class Block(nn.Module):
    """Residual, with functional forms: F.relu and + become nodes that can be quantized."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)
        self.conv2, self.norm2 = nn.Conv2d(channels, channels, 3, padding=1, bias=False), nn.BatchNorm2d(channels)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(y)) + x)


class YourNet(nn.Module):
    """Control flow on shapes: `torch.fx.symbolic_trace` refuses the loop below."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 3, stride=2, padding=1)
        self.blocks = nn.ModuleList(Block(32) for _ in range(3))
        self.head = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for block in self.blocks:
            x = block(x)
        while x.shape[-1] > 4:  # halve until 4×4, whatever the image's size
            x = F.max_pool2d(x, 2)
        return self.head(x.mean(dim=(2, 3)))


torch.manual_seed(0)
model = YourNet().eval()
try:
    torch.fx.symbolic_trace(model)
except torch.fx.proxy.TraceError as error:
    print("torch.fx alone:", str(error).splitlines()[0])

image = torch.randn(1, 3, 32, 32)
captured = fxfactor.capture(model, image)
print("fxfactor.capture: largest difference", float((captured(image) - model(image)).detach().abs().max()))

qmodel = fxfactor.transform(model, level=2, bits=4, keep=("blocks.0",), example_inputs=image)
fxfactor.summary(qmodel)
exported = fxfactor.export(qmodel, out / "your_own_cnn.onnx")
print(f"exported {exported.path}, relative difference {exported.relative_difference:.1g}")

# a mistake gets one clear message
try:
    fxfactor.transform(model, level=2, keep=("block.0",), example_inputs=image)
except fxfactor.PreconditionError as error:
    print("refused:", error)
