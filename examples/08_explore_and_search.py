"""Which level, which bits? Digits: explore the grid, then search per layer under a budget of BOPs. 40 seconds.

python examples/08_explore_and_search.py
"""

from pathlib import Path

import torch
from rich import print
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # 1797 images of 8×8 pixels, −1 … 1
labels = torch.from_numpy(digits.target)
train, test = slice(0, 1297), slice(1297, None)


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


model = nn.Sequential(
    *(convolution(1, 32), convolution(32, 32), convolution(32, 64, stride=2), convolution(64, 64)),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)
optimizer = torch.optim.AdamW(model.parameters(), 0.005)
for _ in range(4):
    for chosen in torch.randperm(1297).split(64):
        optimizer.zero_grad()
        F.cross_entropy(model(images[train][chosen]), labels[train][chosen]).backward()
        optimizer.step()
model.eval()

calibration = images[train][:256].split(64)
validation = list(zip(images[test].split(100), labels[test].split(100), strict=True))

# Every level at every bit width. Break it off and call it again: it goes on where it stood.
result = fxfactor.explore(
    model, calibration, validation, levels=(0, 1, 2, 3, "depthwise"), bits=(2, 4, 8), state=out / "digits.sqlite"
)
print(result)
print("cheapest with 90 %:", result.best(min_accuracy=0.9).key)

# Per layer: groups, weight bits and activation bits that lose least at 1 % of the BOPs of the network in floating point.
plan = fxfactor.search(model, calibration, fxfactor.Budget(bops=0.01))
print(plan.explain())
plan.save(out / "searched.json")

searched = fxfactor.transform(model, plan=plan, calibration=calibration)
with torch.no_grad():
    right = (searched(images[test]).argmax(1) == labels[test]).float().mean()
print(f"searched plan: {right:.1%} top-1 with {fxfactor.cost(searched).bops / 1e6:,.1f} MBOPs")
