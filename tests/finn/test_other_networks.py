"""Networks that are no image classifiers: over one dimension, and of linear layers only, from transform to estimates."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from finn_helpers import relative, spread_batch_norms
from networks import ResidualNet, randomized
from torch import Tensor, nn

import fxfactor.finn
from fxfactor.errors import FinnError
from fxfactor.finn.integer.execute import execute_all
from fxfactor.finn.process.load import load_integers


def radio_vgg(channels: int, length: int, blocks: int) -> nn.Module:
    """VGG10 for modulation classification (O'Shea et al. 2018, arXiv 1712.04578): I and Q samples, 24 classes."""
    layers: list[nn.Module] = []
    for block in range(blocks):
        entering = channels if block else 2
        layers += [nn.Conv1d(entering, channels, 3, padding=1, bias=False), nn.BatchNorm1d(channels), nn.ReLU()]
        layers += [nn.MaxPool1d(2)]
    features = channels * (length >> blocks)
    return nn.Sequential(*layers, nn.Flatten(), *_dense(features, 128), *_dense(128, 128), nn.Linear(128, 24))


def keyword_mlp(features: int, width: int) -> nn.Module:
    """A keyword spotter as FINN's examples have one: MFCC features, three hidden layers, 12 words."""
    return nn.Sequential(*_dense(features, width), *_dense(width, width), *_dense(width, width), nn.Linear(width, 12))


def _dense(entering: int, leaving: int) -> list[nn.Module]:
    return [nn.Linear(entering, leaving, bias=False), nn.BatchNorm1d(leaving), nn.ReLU()]


def _quantized(model: nn.Module, shape: tuple[int, ...], bits: int = 4) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    spread_batch_norms(model)
    samples = torch.randn(64, *shape)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return fxfactor.transform(model.eval(), level=1, bits=bits, calibration=[samples]), samples


def _written(model: nn.Module, shape: tuple[int, ...], folder: Path) -> tuple[Any, Path, Tensor]:
    qmodel, samples = _quantized(model, shape)
    fxfactor.export(qmodel, folder / "model.onnx", target="finn", example_inputs=samples[:1])
    return qmodel, folder / "model.onnx", samples


ONE_DIMENSION = {
    "stride 2 and padding": lambda: [nn.Conv1d(3, 8, 5, 2, 2), nn.ReLU()],
    "dilation 2": lambda: [nn.Conv1d(3, 8, 3, dilation=2), nn.ReLU()],
    "no padding, even kernel": lambda: [nn.Conv1d(3, 8, 4), nn.BatchNorm1d(8), nn.ReLU()],
    "groups": lambda: [nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 8, 3, groups=4), nn.ReLU()],
    "max pooling": lambda: [nn.Conv1d(3, 8, 3), nn.ReLU(), nn.MaxPool1d(3, 2, 1)],
    "average pooling": lambda: [nn.Conv1d(3, 8, 3), nn.ReLU(), nn.AvgPool1d(2)],
}


@pytest.mark.parametrize("name", ONE_DIMENSION)
def test_one_dimension_gives_what_torch_gives(name: str, tmp_path: Path) -> None:
    layers = ONE_DIMENSION[name]()
    features = nn.Sequential(*layers)(torch.zeros(1, 3, 24)).numel()
    model = nn.Sequential(*layers, nn.Flatten(), nn.Linear(features, 5))
    qmodel, file, samples = _written(model, (3, 24), tmp_path)
    assert fxfactor.finn.check(file) == []
    network = load_integers(file)
    assert network.notes["input"]["shape"] == [1, 3, 24]
    assert network.to_integers(samples.numpy()).shape == (64, 24, 1, 3)
    outputs = fxfactor.finn.reference(qmodel, samples[:8])
    assert relative(network(samples[:8].numpy()), outputs) < 1e-6


def test_the_host_rounds_as_the_reference_does(tmp_path: Path) -> None:
    _, file, _ = _written(nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3)), (3, 24), tmp_path)
    network = load_integers(file)
    note = network.notes["input"]
    note["scale"] = scale = float(np.float32(0.03))
    ties = ((np.arange(-20, 20) + 0.5) * scale).astype(np.float32)  # next to a threshold, on one side or the other
    exact = np.round(ties.astype(np.float64) / scale)
    assert (exact != np.round(ties / np.float32(scale))).any()  # where float32 cannot tell which
    images = np.zeros((1, 3, 24), np.float32)
    images.flat[: len(ties)] = ties
    found = network.to_integers(images)[0, :, 0].T.ravel()[: len(ties)]
    assert (found == exact).all()


def test_a_map_over_one_dimension_keeps_its_shape(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv1d(3, 8, 3), nn.ReLU(), nn.Conv1d(8, 4, 3, padding=1))
    qmodel, file, samples = _written(model, (3, 24), tmp_path)
    network = load_integers(file)
    found, outputs = network(samples[:2].numpy()), fxfactor.finn.reference(qmodel, samples[:2])
    assert found.shape == outputs.shape == (2, 4, 22)
    assert relative(found, outputs) < 1e-6


def test_three_dimensions_are_refused_by_their_number(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv3d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 8, 5))
    _, file, _ = _written(model, (3, 4, 4, 4), tmp_path)
    with pytest.raises(FinnError, match=r"found: input shape \(1, 3, 4, 4, 4\)"):
        load_integers(file)


SMALL = {
    "radio VGG": (lambda: radio_vgg(8, 64, 3), (2, 64)),
    "keyword MLP": (lambda: keyword_mlp(40, 32), (40,)),
}
WHOLE = {
    "radio VGG10": (lambda: radio_vgg(64, 1024, 7), (2, 1024)),
    "keyword MLP": (lambda: keyword_mlp(490, 256), (490,)),
}


def _estimated(make: Any, shape: tuple[int, ...], tmp_path: Path, cache: Path) -> Any:
    qmodel, file, samples = _written(make(), shape, tmp_path)
    verify = (samples[:3], fxfactor.finn.reference(qmodel, samples[:3]))
    return fxfactor.finn.estimate(file, target_fps=2000, verify=verify, cache=cache)


@pytest.mark.finn
@pytest.mark.parametrize("name", SMALL)
def test_finn_computes_the_same_after_every_step(name: str, tmp_path: Path, cache: Path) -> None:
    found = _estimated(*SMALL[name], tmp_path, cache)
    assert found.software == found.floating == ()
    assert found.fps >= 2000
    assert sum(step.images > 0 for step in found.steps) > 5


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("name", WHOLE)
def test_whole_networks_go_to_estimates(name: str, tmp_path: Path, cache: Path) -> None:
    found = _estimated(*WHOLE[name], tmp_path, cache)
    assert found.software == found.floating == ()
    assert found.fps >= 2000


class UNet(nn.Module):
    """Down and up again, with a skip connection that is concatenated."""

    def __init__(self, channels: int, up: nn.Module) -> None:
        super().__init__()
        self.before, self.below = _convolution(3, channels), _convolution(channels, channels)
        self.pool, self.up, self.after = nn.MaxPool2d(2), up, _convolution(2 * channels, channels)
        self.classes = nn.Conv2d(channels, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        before = self.before(x)
        return self.classes(self.after(torch.cat([before, self.up(self.below(self.pool(before)))], 1)))


def _convolution(entering: int, leaving: int, stride: int = 1) -> nn.Module:
    return nn.Sequential(nn.Conv2d(entering, leaving, 3, stride, 1, bias=False), nn.BatchNorm2d(leaving), nn.ReLU())


@pytest.mark.finn
@pytest.mark.parametrize("up", ["nearest", "transposed"])
def test_both_ways_up_go_to_estimates(up: str, tmp_path: Path, cache: Path) -> None:
    way = nn.Upsample(scale_factor=2) if up == "nearest" else nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)
    found = _estimated(lambda: UNet(8, way), (3, 16, 16), tmp_path, cache)
    assert found.software == found.floating == ()
    kind = "UpsampleNearestNeighbour_hls" if up == "nearest" else "FMPadding_Pixel_hls"
    assert kind in [layer.kind for layer in found.layers]


class Yolo(nn.Module):
    """Two heads at two scales, as YOLOv3-tiny has them: the small map goes up and is joined to the larger one."""

    def __init__(self, channels: int, per_cell: int = 18) -> None:
        super().__init__()
        self.before, self.below = _convolution(3, channels, 2), _convolution(channels, 2 * channels, 2)
        self.middle, self.up = _convolution(2 * channels, channels), nn.Upsample(scale_factor=2)
        self.joined = _convolution(2 * channels, channels)
        self.coarse, self.fine = nn.Conv2d(2 * channels, per_cell, 1), nn.Conv2d(channels, per_cell, 1)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        before = self.before(x)
        below = self.below(before)
        return self.coarse(below), self.fine(self.joined(torch.cat([self.up(self.middle(below)), before], 1)))


def test_two_heads_give_what_torch_gives(tmp_path: Path) -> None:
    qmodel, file, samples = _written(Yolo(8), (3, 32, 32), tmp_path)
    assert fxfactor.finn.check(file) == []
    network = load_integers(file)
    integers = execute_all(network.model, network.to_integers(samples[:4].numpy()))
    wanted = fxfactor.finn.reference(qmodel, samples[:4])
    assert [each.shape for each in wanted] == [(4, 18, 8, 8), (4, 18, 16, 16)]
    for index, each in enumerate(wanted):
        found = network.from_integers(integers[index], index)
        assert found.shape == each.shape
        assert relative(found, each) < 1e-6


@pytest.mark.finn
def test_two_heads_are_compared_each(tmp_path: Path, cache: Path) -> None:
    qmodel, file, samples = _written(Yolo(8), (3, 32, 32), tmp_path)
    images = samples[:3]
    coarse, fine = fxfactor.finn.reference(qmodel, images)
    found = fxfactor.finn.estimate(file, target_fps=2000, verify=(images, (coarse, fine)), cache=cache)
    assert found.software == found.floating == ()
    np.savez(tmp_path / "verify.npz", x=images, y=coarse, y1=fine)
    again = fxfactor.finn.estimate(file, target_fps=2000, verify=tmp_path / "verify.npz", cache=cache)
    assert again.layers == found.layers
    with pytest.raises(FinnError, match="differs from the outputs given by"):
        fxfactor.finn.estimate(file, verify=(images, (coarse, 1.1 * fine)), cache=cache)
    with pytest.raises(FinnError, match=r"required: as many 2 outputs, each of them as inputs.*found: \[3, 3\]"):
        fxfactor.finn.estimate(file, verify=(images, coarse), cache=cache)
    prepared = fxfactor.finn.prepare(tmp_path / "build", file, verify=(images, (coarse, fine)), cache=cache)
    assert np.load(prepared.folder / "expected_output.npy").shape == (1, 8, 8, 18)
    assert np.load(prepared.folder / "expected_output1.npy").shape == (1, 16, 16, 18)


HALVES: dict[str, Any] = {
    "chunk": lambda x: x.chunk(2, 1),
    "split": lambda x: x.split([x.shape[1] // 2] * 2, 1),
    "indexing": lambda x: (x[:, : x.shape[1] // 2], x[:, x.shape[1] // 2 :]),
}


class Shuffled(nn.Module):
    """Units of ShuffleNetV2 (Ma et al. 2018, arXiv 1807.11164): half of the channels pass by, then all are shuffled."""

    def __init__(self, channels: int, units: int, halves: str) -> None:
        super().__init__()
        self.stem, self.halves = _convolution(3, channels), halves
        half = channels // 2
        self.units = nn.ModuleList(
            nn.Sequential(
                *(nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU()),
                *(nn.Conv2d(half, half, 3, padding=1, groups=half), nn.BatchNorm2d(half)),
                *(nn.Conv2d(half, half, 1), nn.BatchNorm2d(half), nn.ReLU()),
            )
            for _ in range(units)
        )
        self.classes = nn.Linear(channels, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for unit in self.units:
            kept, changed = HALVES[self.halves](x)
            x = torch.cat([kept, unit(changed)], 1)
            n, channels, height, width = x.shape
            x = x.view(n, 2, channels // 2, height, width).transpose(1, 2).reshape(n, channels, height, width)
        return self.classes(x.mean((2, 3)))


@pytest.mark.parametrize("halves", HALVES)
def test_shuffled_channels_give_what_torch_gives(halves: str, tmp_path: Path) -> None:
    qmodel, file, samples = _written(Shuffled(24, 4, halves), (3, 8, 8), tmp_path)
    assert fxfactor.finn.check(file) == []
    network = load_integers(file)
    assert relative(network(samples[:8].numpy()), fxfactor.finn.reference(qmodel, samples[:8])) < 1e-6
    kinds = Counter(node.op_type for node in network.model.graph.node)
    assert kinds["Split"] == 4  # once a unit, and no node for the shuffles
    assert "Reshape" not in kinds


@pytest.mark.parametrize(("level", "bits"), [(0, (1, 3)), (1, 2), ("depthwise", 4)])
def test_copies_of_fewer_bits_give_what_torch_gives(level: Any, bits: Any, tmp_path: Path) -> None:
    images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    model = randomized(ResidualNet())
    qmodel = fxfactor.transform(model, level=level, bits=bits, join_bits=8, calibration=[images], recover="none")
    file = fxfactor.export(qmodel, tmp_path / "net.onnx", example_inputs=images[:1]).path
    assert fxfactor.finn.check(file) == []
    assert relative(load_integers(file)(images.numpy()), fxfactor.finn.reference(qmodel, images)) < 1e-6
    without = fxfactor.transform(model, level=level, bits=bits, join_bits=4, calibration=[images], recover="none")
    with torch.no_grad():
        assert relative(without(images).numpy(), qmodel(images).numpy()) > 1e-2


class Reordered(nn.Module):
    """Maps whose channels leave as `order` says of (2, 3, channels / 6)."""

    def __init__(self, order: tuple[int, ...], back: bool = True) -> None:
        super().__init__()
        self.order, self.back = order, back
        self.stem, self.head = _convolution(3, 12), nn.Conv2d(12, 12, 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x) if self.back else self.head(self.stem(x))
        shape = x.shape
        x = x.reshape(shape[0], 2, 3, 2, *shape[2:]).permute(0, *self.order, 4, 5).reshape(shape)
        return self.head(x) if self.back else x


@pytest.mark.parametrize("order", [(2, 1, 3), (3, 2, 1), (3, 1, 2)])
@pytest.mark.parametrize("back", [True, False])
def test_channels_leave_in_any_order(order: tuple[int, ...], back: bool, tmp_path: Path) -> None:
    qmodel, file, samples = _written(Reordered(order, back), (3, 6, 6), tmp_path)
    network = load_integers(file)
    assert relative(network(samples[:4].numpy()), fxfactor.finn.reference(qmodel, samples[:4])) < 1e-6


class Sliced(nn.Module):
    def __init__(self, cut: Any) -> None:
        super().__init__()
        self.stem, self.cut, self.head = _convolution(3, 12), cut, nn.Conv2d(6, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.cut(self.stem(x)))


CUTS = {
    "a part of the channels": lambda x: x[:, :6],
    "every second channel": lambda x: x[:, ::2] + x[:, 1::2],
    "channels twice": lambda x: x[:, :6] + x[:, 3:9] + x[:, 6:],
    "rows": lambda x: x[:, :6, :4] + x[:, 6:, :4],
    "pixels among the channels": lambda x: x.reshape(-1, 3, 4, 6, 6).transpose(2, 3).reshape(-1, 12, 6, 6)[:, :6],
}


@pytest.mark.parametrize("name", CUTS)
def test_slices_that_share_nothing_out_are_refused(name: str, tmp_path: Path) -> None:
    _, file, _ = _written(Sliced(CUTS[name]), (3, 6, 6), tmp_path)
    findings = fxfactor.finn.check(file)
    assert findings
    assert all("torch." in finding.remedy for finding in findings), findings


@pytest.mark.finn
def test_shuffled_channels_go_to_estimates(tmp_path: Path, cache: Path) -> None:
    found = _estimated(lambda: Shuffled(24, 4, "chunk"), (3, 8, 8), tmp_path, cache)
    assert found.software == found.floating == ()
    assert sum(layer.kind == "StreamingSplit_hls" for layer in found.layers) == 4


@pytest.mark.slow
@pytest.mark.finn
def test_shufflenet_v2_goes_to_estimates(tmp_path: Path, cache: Path) -> None:
    models = pytest.importorskip("torchvision").models
    qmodel, samples = _quantized(models.shufflenet_v2_x1_0(), (3, 224, 224))
    fxfactor.export(qmodel, tmp_path / "model.onnx", target="finn", example_inputs=samples[:1])
    verify = (samples[:1], fxfactor.finn.reference(qmodel, samples[:1]))
    found = fxfactor.finn.estimate(tmp_path / "model.onnx", target_fps=100, verify=verify, cache=cache)
    assert found.software == found.floating == ()
    assert found.fps >= 100


@pytest.mark.slow
@pytest.mark.finn
def test_one_dimension_is_simulated_word_by_word(tmp_path: Path, cache: Path) -> None:
    _, file, samples = _written(radio_vgg(8, 32, 2), (2, 32), tmp_path)
    found = fxfactor.finn.simulate(file, samples[:3].numpy().astype(np.float32), cache=cache)
    assert found.is_right


@pytest.mark.slow
@pytest.mark.finn
@pytest.mark.parametrize("name", ["nearest", "transposed", "two heads", "shuffled"])
def test_networks_of_all_kinds_are_simulated_word_by_word(name: str, tmp_path: Path, cache: Path) -> None:
    model = {
        "nearest": lambda: UNet(8, nn.Upsample(scale_factor=2)),
        "transposed": lambda: UNet(8, nn.ConvTranspose2d(8, 8, 3, 2, 1, output_padding=1)),
        "two heads": lambda: Yolo(8),
        "shuffled": lambda: Shuffled(24, 3, "chunk"),
    }[name]()
    _, file, samples = _written(model, (3, 16, 16), tmp_path)
    found = fxfactor.finn.simulate(file, samples[:3], cache=cache)
    assert found.is_right, found.differences
