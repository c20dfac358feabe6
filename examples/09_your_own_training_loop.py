"""A compressed network is a plain nn.Module: train it in your own loop, or in Lightning where that is installed. 20 seconds.

python examples/09_your_own_training_loop.py
"""

import copy
import importlib.util
import logging

import torch
from rich import print
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor import fused_quantizers

torch.manual_seed(0)
digits = load_digits()
images = torch.from_numpy(digits.images).float().unsqueeze(1) / 8 - 1  # 1797 images of 8×8 pixels, −1 … 1
labels = torch.from_numpy(digits.target)
loader = DataLoader(TensorDataset(images[:1297], labels[:1297]), batch_size=64, shuffle=True)


def train(network: nn.Module, epochs: int, rate: float, teacher: nn.Module | None = None) -> None:
    """Labels, and the answers of a teacher where there is one. Nothing here knows of factors or bits."""
    optimizer = torch.optim.AdamW(network.parameters(), rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs * len(loader))
    network.train()
    for _ in range(epochs):
        for batch, wanted in loader:
            answers = network(batch)
            loss = F.cross_entropy(answers, wanted)
            if teacher is not None:
                with torch.no_grad():
                    wanted_answers = teacher(batch)
                loss = loss + F.mse_loss(answers, wanted_answers) / wanted_answers.var()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
    network.eval()


@torch.no_grad()
def accuracy(network: nn.Module) -> str:
    return f"{float((network.eval()(images[1297:]).argmax(1) == labels[1297:]).float().mean()):6.1%}"


def convolution(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs), nn.ReLU())


model = nn.Sequential(
    *(convolution(1, 32), convolution(32, 32), convolution(32, 64, stride=2), convolution(64, 64)),
    *(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10)),
)
train(model, epochs=6, rate=0.01)
print("floating point       ", accuracy(model))

compressed = fxfactor.transform(model, level="depthwise", bits=3, calibration=images[:256].split(64))
print("depthwise, 3 bits    ", accuracy(compressed))

qmodel = copy.deepcopy(compressed)
with fused_quantizers(qmodel):  # not needed: the same values and gradients in less time
    train(qmodel, epochs=4, rate=0.003, teacher=model)
print("own loop             ", accuracy(qmodel))

if importlib.util.find_spec("lightning") is None:
    print("Lightning is not installed: pip install lightning")
else:
    import lightning

    class Student(lightning.LightningModule):
        def __init__(self, network: nn.Module, teacher: nn.Module, rate: float) -> None:
            super().__init__()
            self.network, self.rate = network, rate
            self.teacher = teacher.eval().requires_grad_(False)

        def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
            self.teacher.eval()
            answers, wanted = self.network(batch[0]), self.teacher(batch[0])
            return F.cross_entropy(answers, batch[1]) + F.mse_loss(answers, wanted) / wanted.var()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.network.parameters(), self.rate)

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = lightning.Trainer(max_epochs=4, accelerator="cpu", **quiet)
    qmodel = copy.deepcopy(compressed).train()
    trainer.fit(Student(qmodel, copy.deepcopy(model), rate=0.003), loader)
    print("Lightning            ", accuracy(qmodel))
