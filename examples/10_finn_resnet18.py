"""ResNet-18 to FINN: grouped convolutions, the early check, estimates, proof, and what a bitstream needs. Half a minute.

python examples/10_finn_resnet18.py          # the first two of its four stages; needs pip install ".[finn,examples]"
python examples/10_finn_resnet18.py --full   # all of it: three minutes
"""

import argparse
import shutil
from pathlib import Path

import torch
from rich.console import Console
from torch import nn
from torchvision.models import resnet18

import fxfactor

parser = argparse.ArgumentParser(description="ResNet-18 to FINN")
parser.add_argument("--full", action="store_true", help="all four stages and 1,000 classes")
full = parser.parse_args().full

out = Path("out")
out.mkdir(exist_ok=True)
console = Console()


def network() -> nn.Module:
    model = resnet18(weights=None)  # with internet at hand: weights="DEFAULT"
    if not full:
        model.layer3, model.layer4, model.fc = nn.Identity(), nn.Identity(), nn.Linear(128, 10)
    return model.eval()


torch.manual_seed(0)
model = network()
images = torch.randn(1, 3, 32, 32)

# with SiLU in the place of ReLU FINN would stop after minutes; the check takes seconds, and knows the place and the remedy
swish = network()
swish.relu = nn.SiLU()
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
