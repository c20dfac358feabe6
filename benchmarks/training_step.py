"""A training step (forward, backward, Adam) of ResNet-20 at level 3, W4A4, 32 × 32 pixels: fused quantizers and others.

    python benchmarks/training_step.py                  # images per CPU second of one thread, in turn, with ratios
    python benchmarks/training_step.py --compile        # torch.compile too: minutes to compile first

All are the network that fxfactor.transform gives; only how it is run differs. Each stands in a process of its own, since
BREVITAS_JIT is read when brevitas is imported, and only one computes at a time. The network: see data.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import time
from contextlib import ExitStack

OURS = "fxfactor.finetune's way: fused quantizers, channels_last"
PLAIN = "Brevitas, eager"
FLOAT = "the same factors in floating point, channels_last"
VARIANTS = {  # name: fused, channels_last, quantized, torch.compile, environment
    OURS: (True, True, True, False, {}),
    "fused quantizers": (True, False, True, False, {}),
    PLAIN: (False, False, True, False, {}),
    "Brevitas, channels_last": (False, True, True, False, {}),
    "Brevitas, BREVITAS_JIT=1": (False, False, True, False, {"BREVITAS_JIT": "1"}),
    "Brevitas, BREVITAS_JIT=1, channels_last": (False, True, True, False, {"BREVITAS_JIT": "1"}),
    FLOAT: (False, True, False, False, {}),
}
COMPILED = {
    "Brevitas, torch.compile, channels_last": (False, True, True, True, {}),
    "fused quantizers, torch.compile, channels_last": (True, True, True, True, {}),
}


def work(name: str, batch_size: int, steps: int) -> None:
    """Answer every line on stdin with the images per CPU second of `steps` steps; the first answer is the warm-up's."""
    import torch
    from data import find
    from torch.nn import functional as F

    import fxfactor
    from fxfactor.quantization.fused import fused_quantizers
    from fxfactor.recovery.blocks import channels_last

    torch.set_num_threads(1)
    torch.manual_seed(0)
    fused, last, quantized, compiled, _ = (VARIANTS | COMPILED)[name]
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    model = fxfactor.transform(
        find().cifar_resnet(20), level=3, bits=4 if quantized else None, example_inputs=images[:1]
    ).train()
    optimizer = torch.optim.Adam(model.parameters(), 1e-4)
    with ExitStack() as stack:
        if last:
            stack.enter_context(channels_last(model))
            images = images.contiguous(memory_format=torch.channels_last)
        if fused:
            stack.enter_context(fused_quantizers(model))
        network = torch.compile(model) if compiled else model
        for _ in sys.stdin:
            start = time.process_time()
            for _ in range(steps):
                optimizer.zero_grad()
                F.cross_entropy(network(images), labels).backward()
                optimizer.step()
            print(f"{batch_size * steps / (time.process_time() - start)}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--compile", action="store_true", help="torch.compile too")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=2, help="steps of one measurement")
    parser.add_argument("--repeats", type=int, default=5, help="how often each has its turn")
    parser.add_argument("--work", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        work(options.work, options.batch_size, options.steps)
        return
    from rich.console import Console
    from rich.table import Table

    variants = VARIANTS | (COMPILED if options.compile else {})
    command = [sys.executable, __file__, "--batch-size", str(options.batch_size)]
    command += ["--steps", str(options.steps), "--work"]
    rates: dict[str, list[float]] = {name: [] for name in variants}
    with ExitStack() as stack:
        workers = {}
        for name, (*_, environment) in variants.items():
            process = subprocess.Popen(
                [*command, name], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
                env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            )  # fmt: skip
            workers[name] = stack.enter_context(process)
            rate(workers[name])  # the first step compiles and allocates
        for _ in range(options.repeats):
            for name, process in workers.items():
                rates[name].append(rate(process))
    table = Table("", "images per CPU second", "of plain Brevitas (range)")
    for name, found in rates.items():
        ratios = sorted(mine / plain for mine, plain in zip(found, rates[PLAIN], strict=True))
        middle = statistics.median(ratios)
        table.add_row(name, f"{statistics.median(found):.0f}", f"{middle:.2f} ({ratios[0]:.2f} … {ratios[-1]:.2f})")
    Console().print(table)


def rate(process: subprocess.Popen[str]) -> float:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    return float(process.stdout.readline())


if __name__ == "__main__":
    main()
