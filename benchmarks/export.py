"""What cleaning up an exported file takes: fxfactor's beside qonnx's own, from the same raw file, and the whole export.

    python benchmarks/export.py --network densenet121 --level depthwise --size 128

Both must give the same nodes. CPU seconds in one process; ratios are medians over repeats (range). Networks are torchvision's,
untrained.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import torch
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.util.cleanup import cleanup_model
from torchvision import models

import fxfactor
from fxfactor.storage.clean_up import clean_up
from fxfactor.storage.qonnx import write_qonnx


def seconds(run: Callable[[], Any]) -> tuple[float, Any]:
    """CPU seconds, and what came out."""
    started = time.process_time()
    found = run()
    return time.process_time() - started, found


def ours(file: Path) -> onnx.ModelProto:
    """The file cleaned up by fxfactor."""
    model = onnx.load(str(file))
    clean_up(model)
    return model


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--network", nargs="+", default=["resnet18", "mobilenet_v2", "densenet121"])
    parser.add_argument("--level", default="depthwise", type=lambda text: int(text) if text.isdigit() else text)
    parser.add_argument("--size", type=int, default=128)
    parser.add_argument("--repeats", type=int, default=1)
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in options.network:
        torch.manual_seed(0)
        images = torch.randn(1, 3, options.size, options.size)
        network = fxfactor.transform(
            models.get_model(name, weights=None).eval(), level=options.level, bits=4, example_inputs=images
        ).eval()
        with tempfile.TemporaryDirectory() as folder:
            raw = Path(folder) / "raw.onnx"
            write_qonnx(network, (images,), raw, input_names=["x"])
            pairs = []
            for _ in range(options.repeats):
                mine, model = seconds(partial(ours, raw))
                theirs, other = seconds(lambda raw=raw: cleanup_model(ModelWrapper(str(raw))).model)
                same = [node.SerializeToString(deterministic=True) for node in model.graph.node] == [
                    node.SerializeToString(deterministic=True) for node in other.graph.node
                ]
                assert same, f"{name}: other nodes"
                pairs.append((mine, theirs))
            whole, _ = seconds(partial(fxfactor.export, network, Path(folder) / "model.onnx"))
        ratios = [theirs / mine for mine, theirs in pairs]
        print(
            f"{name}: {len(model.graph.node)} nodes; clean-up {pairs[0][0]:.2f} s, qonnx' {pairs[0][1]:.2f} s, ratio "
            f"{statistics.median(ratios):.0f} ({min(ratios):.0f} … {max(ratios):.0f}); the whole export {whole:.1f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
