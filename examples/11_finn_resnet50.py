"""ResNet-50 on an FPGA: where the cycles go, what depthwise factors save, and how another target costs only seconds.

python examples/11_finn_resnet50.py          # the first of its four stages; needs pip install ".[finn,examples]"
python examples/11_finn_resnet50.py --full   # all of it: three minutes
"""

import argparse
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision.models import resnet50

import fxfactor

parser = argparse.ArgumentParser(description="ResNet-50 on an FPGA")
parser.add_argument("--full", action="store_true", help="all four stages and 1,000 classes")
full = parser.parse_args().full

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
model = resnet50(weights=None)  # with internet at hand: weights="DEFAULT"
if not full:
    model.layer2 = model.layer3 = model.layer4 = nn.Identity()
    model.fc = nn.Linear(256, 10)
model.eval()
images = torch.randn(1, 3, 32, 32)  # small, so quick; the weights and their block RAMs are those of 224 × 224

table = Table(title=f"ResNet-50{'' if full else ', its first stage'}, 4 bits, U250, 200 MHz")
for column in ("level", "asked for", "frames/s", "LUT", "BRAM18", "DSP", "bottleneck"):
    table.add_column(column, justify="right")
for level, targets in ((0, [1000]), ("depthwise", [1000, 4000])):
    qmodel = fxfactor.transform(model, level=level, bits=4, example_inputs=images)
    file = fxfactor.export(qmodel, out / f"resnet50-{level}.onnx", target="finn", example_inputs=images).path
    for target in targets:  # the second time FINN only folds again: what comes before is kept
        estimate = fxfactor.finn.estimate(file, board="U250", target_fps=target)
        total = estimate.total
        cells = [f"{number:,.0f}" for number in (target, estimate.fps, total.lut, total.bram18, total.dsp)]
        table.add_row(str(level), *cells, estimate.bottleneck.site)
Console().print(table)
