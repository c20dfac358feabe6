"""fxfactor.compress on ResNet-20 and CIFAR-10: trained accuracy and estimated hardware of every candidate in one row.

    python benchmarks/compress.py out --board ZCU104 --fps 2000            # 20,000 training images, 8 epochs at most
    python benchmarks/compress.py out --board ZCU104 --fps 10000 --epochs 4 --plans 4 --train 10000
    python benchmarks/compress.py out --fps max --epochs 6 --plans 4 --train 10000
    python benchmarks/compress.py out --clock-ns 4 --board KV260_SOM --limit lut=65000 dsp=636

Ends with what factorization is worth: of the candidates with factors and of those without, from the same search with the same
recovery, the cheapest (with "max" the fastest) whose accuracy is within half a point of the best of both, and the best that is no
more expensive than that.
Candidates are chosen by 500 of the test images; what is taken is measured on the other 500, which chose nothing. Costs are
estimates before synthesis. A run that was stopped goes on from the folder. Data: see data.py.
"""

from __future__ import annotations

import argparse
import resource
import warnings
from collections.abc import Iterable, Sequence

import torch
from data import find
from rich.console import Console
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor.cli.options import parse_frames, parse_limits
from fxfactor.compression.result import Compressed, Row
from fxfactor.exploration.rung import top1
from fxfactor.quantization.plain_copy import freeze

CHOOSING = 500
"""Test images by which candidates are chosen: the training images are known to the network given."""
WITHIN = 0.005
console = Console(width=160)


def by_kind(result: Compressed) -> dict[str, list[Row]]:
    """Candidates that fit, with and without factors."""
    rows = [row for row in result.candidates() if row.fits and row.metric is not None]
    return {"factorized": [row for row in rows if not row.whole], "whole": [row for row in rows if row.whole]}


def told(row: Row) -> str:
    return (f"{row.name}: {row.metric:.2%}, {row.lut:,} LUT, {row.bram18:,} BRAM18, {row.dsp:,} DSP, {row.uram:,} URAM, "
            f"{row.fps:,.0f} frames/s, {row.share:.1%} of the board added up")  # fmt: skip


def compare(result: Compressed) -> Iterable[str]:
    """Cheapest at equal accuracy, best at equal cost."""
    kinds = by_kind(result)
    if not all(kinds.values()):
        yield f"only {', '.join(kind for kind, rows in kinds.items() if rows)} candidates were trained"
        return
    wanted = min(max(row.metric or 0.0 for row in rows) for rows in kinds.values()) - WITHIN
    cheapest = {kind: min((row for row in rows if (row.metric or 0) >= wanted), key=lambda row: row.cost or 0.0)
                for kind, rows in kinds.items()}  # fmt: skip
    yield f"cheapest with at least {wanted:.2%}:"
    yield from (f"  {told(row)}" for row in cheapest.values())
    for name in ("lut", "bram18", "dsp", "share", "fps"):
        mine, others = (getattr(cheapest[kind], name) for kind in ("factorized", "whole"))
        yield f"  {name}: factorized to whole {mine / others:.2f}" if others else f"  {name}: {mine} to 0"
    most = cheapest["whole"].cost or 0.0
    best = max(
        (row for row in kinds["factorized"] if (row.cost or 0.0) <= most),
        key=lambda row: row.metric or 0.0,
        default=None,
    )
    limit = "as fast as" if cheapest["whole"].by_speed else "at no more of the board than"
    yield f"best factorized {limit} {cheapest['whole'].name}: {told(best) if best else 'none'}"


def test_accuracy(result: Compressed, model: torch.nn.Module, test: tuple[Tensor, Tensor]) -> str:
    network = freeze(fxfactor.load(result.folder / "best", model)).eval()
    share = top1(network, [test])
    error = (share * (1 - share) / len(test[1])) ** 0.5
    return f"taken: {told(result.best)}; on {len(test[1]):,} test images {share:.2%} ± {error:.2%}"


def batches(images: Sequence[Tensor], size: int, shuffle: bool) -> DataLoader[tuple[Tensor, ...]]:
    return DataLoader(TensorDataset(*images), batch_size=size, shuffle=shuffle, drop_last=shuffle)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("folder")
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--board", default="ZCU104")
    parser.add_argument("--fps", type=parse_frames, default=2000, help='a number, or "max"')
    parser.add_argument("--clock-ns", type=float, default=5.0)
    parser.add_argument("--limit", nargs="+", metavar="NAME=N")
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--plans", type=int, default=5)
    parser.add_argument("--bits", nargs="+", type=int, default=[2, 3, 4, 6, 8])
    parser.add_argument("--join-bits", type=int, nargs="+", default=[8])
    parser.add_argument("--train", type=int, default=20000, help="training images")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    model = find().cifar_resnet(options.depth).eval()
    images, labels = find().cifar10("train")
    used = slice(0, options.train)
    test = find().cifar10("test")
    chosen_by, judged_by = (tuple(part[side] for part in test) for side in (slice(CHOOSING), slice(CHOOSING, None)))
    result = fxfactor.compress(
        model,
        batches((images[used], labels[used]), 64, shuffle=True),
        batches(chosen_by, 250, shuffle=False),
        options.folder,
        board=options.board,
        target_fps=options.fps,
        clock_ns=options.clock_ns,
        limits=parse_limits(options.limit),
        epochs=options.epochs,
        plans=options.plans,
        bits=options.bits,
        join_bits=options.join_bits,
        augment=fxfactor.flip_and_shift,
    )
    console.print(result)
    for line in compare(result):
        print(line)
    print(test_accuracy(result, model, judged_by))
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(f"{sum(each.ru_utime + each.ru_stime for each in spent) / 60:.0f} CPU minutes in this call")


if __name__ == "__main__":
    main()
