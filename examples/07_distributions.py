"""Where does a factorized network suffer? Digits, three levels side by side: a table, and a page in out/. 40 seconds.

python examples/07_distributions.py
"""

from pathlib import Path

import torch
from rich import print
from sklearn.datasets import load_digits
from torch import nn
from torch.nn import functional as F

import fxfactor
from fxfactor import distributions
from fxfactor.report import report

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


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    return float((network(images[test]).argmax(1) == labels[test]).float().mean())


calibration = images[train][:256].split(64)
variants = {
    f"level {level}": fxfactor.transform(model, level, 4, calibration=calibration) for level in (0, 2, "depthwise")
}

table = distributions(model, variants, images[test].split(100))
for row in table.where(tensor="output"):
    if row.layer_error is not None:
        print(
            f"{row.variant:16s} {row.site:8s} alone {row.layer_error:6.1%}   accumulated {row.accumulated_error:6.1%}"
        )

table.to_csv(out / "distributions.csv")
table.to_json(out / "distributions.json")
shares = {"original": accuracy(model), **{name: accuracy(each) for name, each in variants.items()}}
page = report(
    variants, out / "distributions.html", original=model, distributions=table, accuracy=shares, title="Digits, 4 bits"
)
print(f"\nopen {page} in a browser")
