"""What a user brings: folders of pictures, a network in a Python file, a trained .pth. For docs/tutorial.md. 10 seconds.

python examples/13_files_of_your_own.py
"""

import sys
from pathlib import Path

import torch
from PIL import Image
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import nn
from torch.nn import functional as F

NETWORK = '''"""A network like yours, in a file like yours."""

from torch import Tensor, nn


class Block(nn.Module):
    """Two convolutions and a shortcut."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        self.relu = nn.ReLU()
        self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu(self.norm1(self.conv1(x)))))
        return self.relu(y + self.shortcut(x))


def build(classes: int = 10) -> nn.Module:
    stem = [nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    return nn.Sequential(
        *stem, Block(16, 32, 1), Block(32, 64, 2), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, classes)
    )
'''

out = Path("out")
out.mkdir(exist_ok=True)
torch.manual_seed(0)

digits = load_digits()  # 1,797 pictures of 8 × 8 pixels, values from 0 to 16
parts = train_test_split(digits.images, digits.target, test_size=0.25, random_state=0)
for name, images, labels in (("train", parts[0], parts[2]), ("test", parts[1], parts[3])):
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        file = out / name / str(label) / f"{number:04}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray((image * 15.9375).astype("uint8")).save(file)

(out / "digit_net.py").write_text(NETWORK)
sys.path.insert(0, str(out))
import digit_net  # noqa: E402

model = nn.DataParallel(digit_net.build())  # as training scripts have it: every name in the file begins with "module."
images = torch.from_numpy(parts[0]).float().unsqueeze(1) / 8 - 1
labels = torch.from_numpy(parts[2])
optimizer = torch.optim.AdamW(model.parameters(), 0.01)
epochs, batch = 8, 64
schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.01, epochs * (len(images) // batch))
for _ in range(epochs):
    for chosen in torch.randperm(len(images)).split(batch)[: len(images) // batch]:
        optimizer.zero_grad()
        F.cross_entropy(model(images[chosen]), labels[chosen]).backward()
        optimizer.step()
        schedule.step()
torch.save({"epoch": epochs, "state_dict": model.state_dict()}, out / "digits.pth")
print(f"{out}/: train/ and test/, a folder for each digit; digit_net.py; digits.pth, trained for {epochs} epochs")
