"""Train the network of `tests/trained.py` and write `digits.safetensors` beside this file. Ten seconds on one thread.

    python tests/data/train_digits.py

Training images only; images are moved by up to one pixel, which keeps 6,114 parameters from learning 1,347 images by heart.
Another version of torch may round otherwise: the tests read the file, they never train.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).parents[1]))
from trained import WEIGHTS, DigitsNet, accuracy, digits

EPOCHS, BATCH, RATE = 60, 64, 1e-2


def moved(images: Tensor) -> Tensor:
    """Each image (1, 8, 8) shifted by −1, 0 or 1 pixels in both directions; the paper around it is −1."""
    wide = F.pad(images, (1, 1, 1, 1), value=-1.0)
    down, right = torch.randint(3, (2, len(images))).tolist()
    return torch.stack([wide[i, :, a : a + 8, b : b + 8] for i, (a, b) in enumerate(zip(down, right, strict=True))])


def train() -> DigitsNet:
    torch.manual_seed(0)
    torch.set_num_threads(1)
    images, labels = digits("train")
    model = DigitsNet().train()
    optimizer = torch.optim.AdamW(model.parameters(), RATE, weight_decay=0.05)
    steps = EPOCHS * -(-len(images) // BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps)
    for _ in range(EPOCHS):
        for chosen in torch.randperm(len(images)).split(BATCH):
            optimizer.zero_grad()
            F.cross_entropy(model(moved(images[chosen])), labels[chosen]).backward()
            optimizer.step()
            schedule.step()
    return model.eval()


if __name__ == "__main__":
    model = train()
    save_file(model.state_dict(), WEIGHTS)
    for split in ("train", "test"):
        print(f"{split}: {accuracy(model, *digits(split)):.1f} %")
    print(f"{sum(p.numel() for p in model.parameters()):,} parameters, {WEIGHTS.stat().st_size:,} bytes")
