"""Takes many networks in integers through FINN's steps in one process, and its blocks through a model of the hardware.

    python run_many.py WORKER FOLDER

FOLDER holds one folder for each network, with request-0.json, request-1.json and request-2.json (the others start from what the first kept)
as `fxfactor.finn.estimation` writes them. Each gets events-N.jsonl, folding-N.json and blocks-N.json.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import sys
from pathlib import Path
from typing import Any

import numpy as np


def module_at(path: Path) -> Any:
    """The module in a file."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def run(worker: Any, folder: Path, number: int) -> None:
    """One request, with all that it says and makes."""
    request = json.loads((folder / f"request-{number}.json").read_text())
    shutil.rmtree(folder / "out", ignore_errors=True)
    os.environ["FINN_BUILD_DIR"] = str(folder / f"build-{number}")
    Path(os.environ["FINN_BUILD_DIR"]).mkdir()
    channel = worker.Channel(os.open(folder / f"events-{number}.jsonl", os.O_WRONLY | os.O_CREAT))
    try:
        worker.Run(request, channel).run()
    except worker.Stop as stop:
        channel.send(stop.event)
        return
    finally:
        channel.file.close()
    shutil.copy(folder / "out" / "report" / "auto_folding_config.json", folder / f"folding-{number}.json")
    blocks = list(compare_blocks(folder / "generated.onnx"))
    (folder / f"blocks-{number}.json").write_text(json.dumps(blocks))


def compare_blocks(file: Path) -> Any:
    """For every block of a network with generated code: how many integers come out wrong, by three ways to compute them."""
    from qonnx.core.modelwrapper import ModelWrapper
    from qonnx.custom_op.registry import getCustomOp

    model = ModelWrapper(str(file))
    random = np.random.default_rng(0)
    for node in model.graph.node:
        if node.op_type != "MVAUGrouped_rtl":
            continue
        block: Any = getCustomOp(node)
        windows = model.find_producer(node.input[0])
        while windows is not None and windows.op_type.startswith("Streaming"):
            windows = model.find_producer(windows.input[0])
        if windows is None or not windows.op_type.startswith("ConvolutionInputGenerator"):
            windows = None
        generator: Any = None if windows is None else getCustomOp(windows)
        shape = (block if generator is None else generator).get_normal_input_shape()
        datatype = block.get_input_datatype()
        image = random.integers(int(datatype.min()), int(datatype.max()) + 1, shape).astype(np.float32)
        weights = model.get_initializer(node.input[1])
        wanted = convolution(image, weights, block, generator)
        yield {
            "name": node.name,
            "parallel_window": block.get_nodeattr("parallel_window"),
            "integers": int(wanted.size),
            "wrong in Python": int((wanted != in_python(image, weights, block, generator)).sum()),
            "wrong in hardware's order": int((wanted != in_hardware(image, block, generator)).sum()),
        }


def convolution(image: Any, weights: Any, block: Any, generator: Any) -> Any:
    """What a grouped convolution gives, from its definition: (H, W, C_out)."""
    kernel = block.get_nodeattr("Kernel")
    groups = block.get_nodeattr("Groups")
    windows = windows_of(image, generator)
    height, width = windows.shape[:2]
    outputs = weights.shape[1]
    tensor = weights.reshape(*kernel, -1, outputs)
    found = np.zeros((height, width, outputs))
    for group in range(groups):
        inputs = np.split(windows, groups, axis=-1)[group]
        columns = np.split(np.arange(outputs), groups)[group]
        found[..., columns] = np.einsum("hwijc,ijco->hwo", inputs, tensor[..., columns])
    return found


def windows_of(image: Any, generator: Any) -> Any:
    """(H', W', kernel height, kernel width, C); a pixel is a window of one where there is no generator."""
    if generator is None:
        return image[0][:, :, None, None]
    (kh, kw), (sh, sw), (dh, dw) = (generator.get_nodeattr(name) for name in ("ConvKernelDim", "Stride", "Dilation"))
    view = np.lib.stride_tricks.sliding_window_view(image[0], (dh * (kh - 1) + 1, dw * (kw - 1) + 1), axis=(0, 1))
    return np.moveaxis(view[::sh, ::sw, :, ::dh, ::dw], 2, -1)


def in_python(image: Any, weights: Any, block: Any, generator: Any) -> Any:
    """FINN's window generator and the block, both as they execute after specialisation: in the order of their streams."""
    node, windows = block.onnx_node, image
    block.set_nodeattr("exec_mode", "cppsim")
    if generator is not None:
        generator.set_nodeattr("exec_mode", "cppsim")
        window = generator.onnx_node
        context = {window.input[0]: image, window.output[0]: np.zeros(generator.get_normal_output_shape(), np.float32)}
        generator.execute_node(context, None)
        windows = context[window.output[0]]
    context = {node.input[0]: windows, node.input[1]: weights}
    block.execute_node(context, None)
    return context[node.output[0]][0]


def in_hardware(image: Any, block: Any, generator: Any) -> Any:
    """A model of the RTL: words of the window generator, words of memblock.dat, and the matrix unit that meets both."""
    pe, simd, mw, mh = (block.get_nodeattr(name) for name in ("PE", "SIMD", "MW", "MH"))
    bits = block.get_input_datatype(1).bitwidth()
    lines = (Path(block.get_nodeattr("code_gen_dir_ipgen")) / "memblock.dat").read_text().split()
    memory = [signed_fields(int(line, 16), pe * simd, bits).reshape(pe, simd) for line in lines]
    assert len(memory) == block.calc_wmem()
    windows, run = (
        windows_of(image, generator),
        image.shape[-1] if generator is None else generator.get_nodeattr("SIMD"),
    )
    height, width, kh, kw, channels = windows.shape
    # the generator, depthwise: run of channels by run of channels, of each all positions of the kernel
    stream = windows.reshape(height, width, kh * kw, channels // run, run).transpose(0, 1, 3, 2, 4).reshape(-1, mw)
    address, outputs = 0, []
    for vector in stream:
        words = vector.reshape(-1, simd)
        for _ in range(mh // pe):
            sums = np.zeros(pe)
            for word in words:
                sums += memory[address] @ word
                address = (address + 1) % len(memory)
            outputs.append(sums)
    assert address == 0
    return np.stack(outputs).reshape(height, width, -1)


def signed_fields(word: int, count: int, bits: int) -> Any:
    """Numbers of so many bits in a word, the first in the lowest bits."""
    values = np.array([word >> (bits * index) & (2**bits - 1) for index in range(count)])
    return np.where(values >= 2 ** (bits - 1), values - 2**bits, values)


if __name__ == "__main__":
    sys.path.pop(0)
    worker = module_at(Path(sys.argv[1]))
    worker.require_finn()
    worker.load("fast_lookups").use_fast_lookups()
    for folder in sorted(Path(sys.argv[2]).iterdir()):
        for number in (0, 1, 2):
            run(worker, folder, number)
