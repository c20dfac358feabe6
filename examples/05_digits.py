"""From training to QONNX on scikit-learn's handwritten digits: accuracy at every step. 30 seconds. Run by `make demo`.

python examples/05_digits.py
"""

from pathlib import Path

import torch
from rich import print
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fxfactor

out = Path("out")
out.mkdir(exist_ok=True)

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # 1797 images of 8×8 pixels, −1 … 1
parts = train_test_split(images, torch.from_numpy(digits.target), test_size=0.25, random_state=0)
train_images, test_images, train_labels, test_labels = parts
loader = DataLoader(TensorDataset(train_images, train_labels), batch_size=64, shuffle=True)
calibration = train_images[:256].split(64)


def train(network: nn.Module, epochs: int, rate: float) -> None:
    """A plain PyTorch loop; it knows nothing of factors or bits."""
    network.train()
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, epochs * len(loader))
    for _ in range(epochs):
        for batch, labels in loader:
            optimizer.zero_grad()
            F.cross_entropy(network(batch), labels).backward()
            optimizer.step()
            schedule.step()


@torch.no_grad()
def accuracy(network: nn.Module) -> float:
    answers: Tensor = network.eval()(test_images).argmax(1)
    return float((answers == test_labels).float().mean())


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


model = nn.Sequential(
    *(convolution(1, 32), convolution(32, 32), convolution(32, 64, stride=2), convolution(64, 64)),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)
train(model, epochs=6, rate=0.01)
rows = [("trained, in floating point", accuracy(model))]

qmodel = fxfactor.transform(model, level=2, bits=4, example_inputs=images[:1])
rows.append(("level 2, 4 bits, without data", accuracy(qmodel)))

qmodel = fxfactor.transform(model, level=2, bits=4, example_inputs=images[:1], calibration=calibration)
rows.append(("the same with 256 calibration images", accuracy(qmodel)))

train(qmodel, epochs=4, rate=0.003)
rows.append(("and 4 epochs of training", accuracy(qmodel)))

fxfactor.summary(qmodel)
print("\n[bold]accuracy on 450 test images")
for what, share in rows:
    print(f"{what:38s} {share:6.1%}")

folder = fxfactor.save(qmodel, out / "digits")
exported = fxfactor.export(qmodel, out / "digits.onnx", example_inputs=test_images[:1])
print("\n[bold]files written")
for path in sorted([*folder.iterdir(), exported.path]):
    print(f"{path!s:38s} {path.stat().st_size:9,d} bytes")
print(f"{exported.path.name}, executed in qonnx, agrees with torch to {exported.relative_difference:.0e} relative")
