"""Networks simulated as FINN's hardware: wrong words, cycles beside FINN's estimate, CPU time. Random weights and images.

`simulation.py NAME [NAME ...]` prints a row for each; without names all. The cache is empty at the start.
`simulation.py fifos` prints what FIFOs cost: as `estimate` counts them, for full speed, and for the speed asked for.
"""

from __future__ import annotations

import resource
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

import fxfactor
import fxfactor.finn

BOARD = "ZCU104"


class Block(nn.Module):
    """CIFAR ResNet's block, with a 1 × 1 convolution as shortcut where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs)
        self.conv2, self.norm2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False), nn.BatchNorm2d(outputs)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU()
        plain = stride == 1 and inputs == outputs
        self.shortcut = (
            nn.Identity()
            if plain
            else nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
        )

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm2(self.conv2(self.relu1(self.norm1(self.conv1(x)))))
        return self.relu2(y + self.shortcut(x))


def resnet20() -> nn.Module:
    """ResNet-20 for images of 32 × 32."""
    layers: list[nn.Module] = [nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    inputs = 16
    for outputs, stride in ((16, 1), (32, 2), (64, 2)):
        for at in range(3):
            layers.append(Block(inputs, outputs, stride if at == 0 else 1))
            inputs = outputs
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def three_convolutions() -> nn.Module:
    """Three convolutions and a classifier; at depthwise level 22 hardware layers or so."""
    sizes = ((3, 16, 1), (16, 32, 1), (32, 32, 2))
    layers: list[nn.Module] = []
    for inputs, outputs, stride in sizes:
        layers += [nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


@dataclass(frozen=True)
class Case:
    """A network, its images' size, how it is factorized, and the frames/s asked for."""

    resnet: bool
    size: int
    level: int | str
    bits: int
    width: float
    target_fps: int


CASES = {
    "three convolutions, depthwise, 4 bits": Case(False, 16, "depthwise", 4, 1, 5000),
    "ResNet-20, level 0, 4 bits": Case(True, 32, 0, 4, 1, 2000),
    "ResNet-20, level 3, 4 bits": Case(True, 32, 3, 4, 1, 2000),
    "ResNet-20, depthwise, width 2, 4 bits": Case(True, 32, "depthwise", 4, 2, 2000),
    "ResNet-20, level 3, 8 bits": Case(True, 32, 3, 8, 1, 2000),
}


def spread(model: nn.Module) -> nn.Module:
    """Batch norms of an untrained network with factors and shifts that differ, a few of them negative."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.3, 0.3)
            with torch.no_grad():
                module.weight[::7] *= -1
    return model.eval()


def write(case: Case, file: Path) -> Tensor:
    """The network as a QONNX file, and three images."""
    torch.manual_seed(0)
    model = spread(resnet20() if case.resnet else three_convolutions())
    calibration = torch.randn(16, 3, case.size, case.size)
    qmodel = fxfactor.transform(
        model, level=case.level, bits=case.bits, width=case.width, calibration=[calibration], recover="none"  # type: ignore[arg-type]
    )  # fmt: skip
    images = torch.randn(3, 3, case.size, case.size)
    fxfactor.export(qmodel, file, target="finn", example_inputs=calibration[:1])
    return images


def run(name: str, case: Case, folder: Path) -> str:
    """One row of the table."""
    file = folder / f"{len(name)}.onnx"
    images = write(case, file)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.monotonic()
    result = fxfactor.finn.simulate(file, images, BOARD, case.target_fps, cache=folder / "cache")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    wrong = sum(stream.wrong for stream in result.streams) if not result.stopped else result.stopped
    more = result.cycles / result.estimated_cycles - 1
    return (
        f"| {name} | {len(result.layers)}, {len(result.streams)} | {result.compiled} | {len(result.models)} | {result.words:,} | "
        f"{wrong} | {result.cycles:,} | {result.estimated_cycles:,} ({more:+.1%}) | {result.latency_ms:.2f} ms | {seconds:.0f} "
        f"({time.monotonic() - started:.0f} s) |"
    )


FIFO_CASES = {
    f"level {level}, {fps:,} frames/s": Case(True, 32, level, 4, 1, fps) for fps in (2000, 10_000) for level in (0, 3)
}


def fifos(name: str, case: Case, folder: Path) -> str:
    """Rows of the second table: ResNet-20 with FIFOs as each of three rules has them."""
    file, rows = folder / "model.onnx", []
    images = write(case, file)
    options = {"board": BOARD, "target_fps": case.target_fps, "cache": folder / "cache"}
    guessed = fxfactor.finn.estimate(file, **options)  # type: ignore[arg-type]
    rows.append(("estimate alone", "", guessed))
    for rule, depths in (("full speed (None)", None), ('speed asked for ("target")', "target")):
        result = fxfactor.finn.simulate(file, images, **options, fifo_depths=depths)  # type: ignore[arg-type]
        found = fxfactor.finn.estimate(file, **options, fifo_depths=result.depths)  # type: ignore[arg-type]
        rows.append((rule, f"{result.cycles:,} ({result.fps:,.0f})", found))
    return "\n".join(f"| {name} | {rule} | {cycles} | {_fifo_costs(each)} |" for rule, cycles, each in rows)


def _fifo_costs(found: fxfactor.finn.Estimate) -> str:
    of_fifos = [layer.resources for layer in found.layers if layer.kind == "StreamingFIFO"]
    return " | ".join(
        f"{sum(getattr(each, name) for each in of_fifos):,} of {getattr(found.total, name):,}"
        for name in ("lut", "bram18", "uram")
    )


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        if sys.argv[1:] == ["fifos"]:
            for name, case in FIFO_CASES.items():
                print(fifos(name, case, Path(folder)), flush=True)
            return
        for name in sys.argv[1:] or CASES:
            print(run(name, CASES[name], Path(folder)), flush=True)


if __name__ == "__main__":
    main()
