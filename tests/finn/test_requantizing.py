"""Quantizers as one multiplication: the same integers as thresholds, in Python, in FINN and in RTL; chosen by cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finn_helpers import outputs_in_float64
from small_networks import TAKEN, build, chain, conv, head, norm, quantizer, relu, unsigned
from torch import nn

import fxfactor.finn
from fxfactor.finn.integer.execute import execute
from fxfactor.finn.integer.forms import Choices
from fxfactor.finn.integer.requantizing import WIDEST_INPUT, WIDEST_SCALE, Requantization, requantization
from fxfactor.finn.integer.streams import Function, Stream, make_quantizer, thresholds
from fxfactor.finn.process.load import load_integers
from fxfactor.finn.target import Target

Write = Callable[..., Path]
KIND = "IntegerRequant"


def _stream(
    random: np.random.Generator, channels: int, reach: int, levels: float, functions: tuple[Function, ...] = ()
) -> Stream:
    """Integers to both sides of 0, of which some channels reach few levels."""
    low, high = -random.integers(0, reach, channels), random.integers(1, reach, channels)
    scale = random.uniform(0.05, 3, channels) * levels / reach
    return Stream("x", (channels, 1, 1), "INT32", low, high, scale, random.normal(0, levels / 3, channels), functions)


def _rectified(real: Any) -> Any:
    return np.maximum(real, 0)


@pytest.mark.parametrize("seed", range(24))
def test_the_product_gives_every_level_that_thresholds_give(seed: int) -> None:
    random = np.random.default_rng(seed)
    bits, signed, narrow = 2 + seed % 7, bool(seed % 2), seed % 3 == 0
    functions: tuple[Function, ...] = (_rectified,) if seed % 4 < 2 else ()
    stream = _stream(random, 17, 2 ** int(random.integers(2, 15)), 2.0**bits, functions)
    quantizer = make_quantizer(np.ones(1), bits, signed, narrow, ("ROUND", "FLOOR", "CEIL")[seed % 3])
    line = requantization(stream, quantizer, thresholds(stream, quantizer))
    assert line is not None
    for channel in range(stream.channels):
        integers = np.arange(stream.low[channel], stream.high[channel] + 1)
        every = np.tile(integers, (stream.channels, 1))
        assert np.array_equal(line(every.T)[:, channel], quantizer.levels(stream.evaluate(every))[channel])
    assert line.scales.min() >= 0
    assert line.scale_bits <= WIDEST_SCALE
    low, high = (1 << (line.bias_bits - 1)) * np.array([-1, 1])
    assert low <= line.biases.min() <= line.biases.max() < high


def test_the_shift_is_the_smallest_that_is_exact() -> None:
    stream = Stream("x", (1, 1, 1), "INT32", np.array([0]), np.array([40]), np.array([3.3 / 40]), np.array([0.3]))
    quantizer = make_quantizer(np.ones(1), 2, signed=False, narrow=False, rounding="FLOOR")
    line = requantization(stream, quantizer, thresholds(stream, quantizer))
    assert line is not None
    integers = np.arange(41)
    wanted = quantizer.levels(stream.evaluate(integers[None]))[0]

    def is_exact(shift: int) -> bool:
        scales = np.arange(4 << shift)[:, None, None]
        biases = np.arange(-(4 << shift), 4 << shift)[None, :, None]
        levels = np.clip((scales * integers + biases) >> shift, 0, 3)
        return bool((levels == wanted).all(-1).any())

    assert line.shift > 2
    assert is_exact(line.shift)
    assert not any(is_exact(shift) for shift in range(line.shift))


def test_where_no_line_passes_there_is_none() -> None:
    def bent(real: Any) -> Any:
        return np.where(real < 4, real, 4 + (real - 4) / 7)

    stream = Stream("x", (1, 1, 1), "INT32", np.array([0]), np.array([90]), np.ones(1), np.zeros(1), (bent,))
    quantizer = make_quantizer(np.ones(1), 4, signed=False, narrow=False)
    assert requantization(stream, quantizer, thresholds(stream, quantizer)) is None


def test_integers_too_wide_for_the_multiplier_are_left_to_thresholds() -> None:
    for bits, is_there in ((WIDEST_INPUT - 1, True), (WIDEST_INPUT, False)):
        most = np.array([2**bits - 1])
        stream = Stream("x", (1, 1, 1), "INT32", -most, most, 8.0 / most, np.zeros(1))
        quantizer = make_quantizer(np.ones(1), 4, signed=True, narrow=False)
        assert (requantization(stream, quantizer, thresholds(stream, quantizer)) is not None) == is_there


def test_bits_are_those_of_the_widest_numbers() -> None:
    line = Requantization(np.array([0, 5]), np.array([-8, 3]), 2, 0, 3)
    assert (line.scale_bits, line.bias_bits) == (3, 4)
    assert Requantization(np.array([0]), np.array([8]), 2, 0, 3).bias_bits == 5


def _networks(file: Path) -> tuple[Any, Any]:
    """With thresholds, and with multiplications wherever they can be."""
    looked = load_integers(file, Choices(look=True))
    assert all(node.op_type != KIND for node in looked.model.graph.node)
    multiplied = load_integers(file, Choices(multiplied={each.tensor for each in looked.staircases}))
    assert [each.site for each in multiplied.staircases] == [each.site for each in looked.staircases]
    return looked, multiplied


@pytest.mark.parametrize("name", TAKEN)
def test_networks_compute_the_same_integers_either_way(name: str, write: Write) -> None:
    looked, multiplied = _networks(write(build(TAKEN[name])))
    shape = [5, *looked.notes["input"]["shape"][1:]]
    images = looked.to_integers(np.random.default_rng(0).normal(0, 2, shape).astype(np.float32))
    assert np.array_equal(execute(looked.model, images), execute(multiplied.model, images))
    kinds = [node.op_type for node in multiplied.model.graph.node]
    assert kinds.count(KIND) == len(looked.staircases)
    # where scales are powers of two values fall on ties, and half of these are rounded down: no line does that
    assert bool(looked.staircases) == (name != "powers of two")


def test_a_function_that_bends_stays_thresholds(write: Write) -> None:
    file = write(build(lambda: chain(conv(8, 8), norm(8), nn.Sigmoid(), unsigned(6))))
    looked, multiplied = _networks(file)
    assert [each.site for each in looked.staircases] == ["3"]
    assert "MultiThreshold" in [node.op_type for node in multiplied.model.graph.node]


def _sample(model: Any, shape: tuple[int, ...] = (3, 8, 8)) -> tuple[torch.Tensor, torch.Tensor]:
    images = torch.randn(2, *shape, generator=torch.Generator().manual_seed(1))
    return images, outputs_in_float64(model, images)


@pytest.mark.finn
@pytest.mark.parametrize("folding", ["fxfactor", "finn"])
def test_finn_computes_the_same_after_every_step(folding: str, write: Write, cache: Path) -> None:
    model = build(TAKEN["depthwise separable"])
    options: Any = {"verify": _sample(model), "cache": cache, "folding": folding, "target_fps": 100_000}
    found = fxfactor.finn.estimate(write(model), requant=True, **options)
    kinds = [layer.kind for layer in found.layers]
    assert f"{KIND}_rtl" in kinds
    assert "Thresholding_rtl" not in kinds
    assert not found.floating
    assert not found.software
    plain = fxfactor.finn.estimate(write(model), requant=False, **options)
    assert f"{KIND}_rtl" not in [layer.kind for layer in plain.layers]
    assert plain.fps == pytest.approx(found.fps, rel=0.2)


@pytest.mark.finn
def test_the_cheaper_of_both_is_taken(write: Write, cache: Path) -> None:
    """Many levels are dear as thresholds, and few levels as a product, where slices are short."""

    def kinds(bits: int, limits: dict[str, int] | None) -> list[str]:
        layers = [quantizer(8), conv(3, 16), norm(16), relu(bits), *head(16 * 64)]
        file = write(build(lambda: nn.Sequential(*layers)))
        found = fxfactor.finn.estimate(file, target_fps=1000, limits=limits, cache=cache)
        return [layer.kind for layer in found.layers]

    assert f"{KIND}_rtl" in kinds(8, None)
    assert "Thresholding_rtl" not in kinds(8, None)
    assert f"{KIND}_rtl" not in kinds(2, {"dsp": 24})


@pytest.mark.finn
def test_words_of_parameters_must_fit(write: Write, cache: Path, tmp_path: Path) -> None:
    """The layer refuses bits that are too few, rather than cut numbers."""
    prepared = fxfactor.finn.prepare(
        tmp_path / "build", write(build(TAKEN["chain"])), "Pynq-Z2", requant=True, cache=cache
    )
    layer = next(each.name for each in prepared.estimate.layers if each.kind == f"{KIND}_rtl")
    code = f"""
import os
os.environ.setdefault("XILINX_VIVADO", "/nonexistent/Vivado/2024.2")
import finn.xsi
finn.xsi.SimEngine = object
import integer_requant, onnx
from qonnx.core.modelwrapper import ModelWrapper
from qonnx.custom_op.registry import getCustomOp
model = ModelWrapper("model.onnx")
node = next(node for node in model.graph.node if node.op_type == "{KIND}")
node.op_type, node.domain = "{KIND}_rtl", node.domain + ".rtl"
layer = getCustomOp(node)
words = layer.parameter_words()
width = layer.get_nodeattr("ScaleBits") + layer.get_nodeattr("BiasBits")
scales = [word & (1 << layer.get_nodeattr("ScaleBits")) - 1 for word in words]
assert scales == list(layer.get_nodeattr("Scales"))
layer.set_nodeattr("BiasBits", layer.get_nodeattr("BiasBits") - 1)
try:
    layer.parameter_words()
except ValueError as error:
    print(error)
"""
    import subprocess
    import sys

    folder = tmp_path / "build"
    done = subprocess.run([sys.executable, "-c", code], cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "raise ScaleBits or BiasBits" in done.stdout
    assert (folder / "integer_requant.py").is_file()
    assert "step_register_integer_requant" in (folder / "build_finn_plus.yaml").read_text()
    assert "integer_requant.py" in (folder / "README.md").read_text()
    text = (folder / "generated" / layer / f"{layer}.v").read_text()
    assert f'$readmemh("generated/{layer}/parameters.dat"' in text


@pytest.mark.finn
@pytest.mark.parametrize("fps", [1000, pytest.param(1_000_000, marks=pytest.mark.slow)])
def test_in_rtl_every_word_is_right(fps: int, write: Write, cache: Path) -> None:
    """Sums with a sign and without one, results with a sign and without one, one channel at once and several."""

    def make() -> nn.Module:
        signed = [conv(8, 8), norm(8), quantizer()]
        return chain(*signed, conv(8, 8), norm(8), relu(), nn.AvgPool2d(2), unsigned(), features=8 * 16)

    model = build(make)
    images = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3)) * 2
    found = fxfactor.finn.simulate(write(model), images, target_fps=fps, requant=True, cache=cache)
    assert found.is_right
    assert sum(layer.kind == f"{KIND}_rtl" and not layer.is_model for layer in found.layers) == 4


def test_a_target_as_fast_as_can_be_is_compared_at_a_speed() -> None:
    from fxfactor.finn.grouped import at_speed

    assert at_speed(Target("ZCU104", target_fps="max")).target_fps == 20_000
    assert at_speed(Target("ZCU104", target_fps=7)).target_fps == 7
