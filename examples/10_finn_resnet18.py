"""ResNet-18 to FINN: grouped convolutions, the early check, estimates, proof, and what a bitstream needs. Two minutes.

python examples/10_finn_resnet18.py       # needs pip install ".[finn,examples]"
"""

import shutil
from pathlib import Path

import torch
from rich.console import Console
from torchvision.models import resnet18

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)
console = Console()

torch.manual_seed(0)
model = resnet18(weights=None).eval()  # with internet at hand: weights="DEFAULT"
images = torch.randn(1, 3, 32, 32)

# with SiLU in the place of ReLU FINN would stop after minutes; the check takes seconds, and knows the place and the remedy
swish = resnet18(weights=None).eval()
swish.relu = torch.nn.SiLU()
print(fxfactor.finn.check(fxfactor.transform(swish, level=0, bits=4, example_inputs=images))[0])

# level 1: grouped convolutions of 2 groups; FINN gets each as one block, or in the form that is cheapest on the board
qmodel = fxfactor.transform(model, level=1, bits=4, example_inputs=images)
file = fxfactor.export(qmodel, out / "resnet18-finn.onnx", target="finn", example_inputs=images).path

# FINN's steps run in another process. verify= compares PyTorch with the integers, and these with FINN's graph
outputs = fxfactor.finn.reference(qmodel, images)
estimate = fxfactor.finn.estimate(file, board="U250", target_fps=500, verify=(images, outputs))
console.print(estimate)

# for the machine that has Vivado: model, folding, build configurations, sample, generated HLS and RTL, and how to go on
folder = out / "resnet18-build"
shutil.rmtree(folder, ignore_errors=True)
fxfactor.finn.prepare(folder, file, board="U250", target_fps=500)
print(*sorted(path.name for path in folder.iterdir()), sep="\n")
