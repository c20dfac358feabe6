"""save and load: the same bits back, whole or not at all, no pickle."""

from __future__ import annotations

import json
import os

import pytest
import torch
from networks import Lambda, ResidualNet, randomized
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from torch.fx import GraphModule

import fxfactor
from fxfactor import LayerPlan, Plan, PreconditionError, capture, load, save, summary, transform
from fxfactor.graph import is_quantizer
from fxfactor.passes import FoldBatchNorm, Quantize
from fxfactor.pipeline import HISTORY, Pipeline
from fxfactor.quantization.brevitas_layers import bits_of

IMAGES = (2, 3, 16, 16)


def transformed(level=1, bits=4, **settings) -> GraphModule:
    return transform(randomized(ResidualNet()), level=level, bits=bits, example_inputs=torch.zeros(IMAGES), **settings)


@pytest.mark.parametrize(
    ("level", "bits"), [(0, None), (1, None), (0, 4), (2, 3), ("depthwise", (2, 8)), (1, (4, None)), (1, (1, 4))]
)
def test_what_was_saved_comes_back_bit_by_bit(tmp_path, level, bits):
    graph = transformed(level, bits, calibration=[torch.randn(IMAGES)])
    save(graph, tmp_path / "net")
    again = load(tmp_path / "net", ResidualNet())
    images = torch.randn(IMAGES)
    assert torch.equal(again.eval()(images), graph.eval()(images))
    assert again.code == graph.code
    assert all(torch.equal(value, again.state_dict()[key]) for key, value in graph.state_dict().items())
    assert Plan.of(again) == Plan.of(graph)
    assert again.meta[HISTORY] == graph.meta[HISTORY]
    assert str(summary(again, show=False)) == str(summary(graph, show=False))


class SkipBehindReLU(nn.Module):
    """The first factorized layer reads a tensor that the last layer reads too, which asks for more bits."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.last = (
            nn.Conv2d(3, 8, 3, padding=1),
            nn.Conv2d(8, 8, 3, padding=1),
            nn.Conv2d(16, 4, 3, padding=1),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.first(x).relu()
        return self.last(torch.cat([x, self.inner(x).relu()], 1))


def test_between_factors_are_the_bits_that_the_layer_asked_for(tmp_path):
    model, images = randomized(SkipBehindReLU()), torch.randn(IMAGES)
    graph = transform(model, level=1, bits=4, example_inputs=images)
    bits = {path: bits_of(module) for path, module in graph.named_modules() if is_quantizer(module)}
    assert bits["inner.spatial_quant"] == 4 and bits["x_quant"] == 8
    assert Plan.of(graph).layers["inner"].activation_bits == 4
    again = load(save(graph, tmp_path / "net"), model)
    assert torch.equal(again.eval()(images), graph.eval()(images))


class HalvesMeet(nn.Module):
    """As iRevNet: one half of the images enters the first layer, the other an addition behind it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Conv2d(2, 2, 3, padding=1), nn.Conv2d(2, 2, 3, padding=1)
        self.last = nn.Conv2d(2, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        left, right = torch.chunk(x, 2, dim=1)
        y = self.first(right) + left
        return self.last((self.inner(y) + y).relu())


def test_bits_of_joins_are_those_that_were_asked_for(tmp_path):
    model, images = randomized(HalvesMeet()), torch.randn(2, 4, 8, 8)
    graph = transform(model, level=0, bits=4, join_bits=5, example_inputs=images)
    assert Plan.of(graph).join_bits == 5
    again = load(save(graph, tmp_path / "net"), model)
    assert torch.equal(again.eval()(images), graph.eval()(images))
    assert Plan.of(again) == Plan.of(graph)


def test_weights_that_are_quantized_afterwards_leave_the_bits_of_joins_alone():
    captured = transform(randomized(HalvesMeet()), level=0, example_inputs=torch.randn(2, 4, 8, 8))
    activations = Pipeline(Quantize(activation_bits=4))(captured).graph
    both = Pipeline(Quantize(weight_bits=4))(activations).graph
    assert Plan.of(both).join_bits == Plan.of(activations).join_bits == 8


def test_residual_tensors_with_more_bits_come_back(tmp_path):
    model, images = randomized(ResidualNet()), torch.randn(IMAGES)
    graph = transform(model, level=1, bits=3, join_bits=7, calibration=[images])
    plan = Plan.of(graph)
    assert plan.residual_bits == 7
    assert Plan.from_json(plan.to_json()) == plan
    again = load(save(graph, tmp_path / "net"), model)
    assert torch.equal(again.eval()(images), graph.eval()(images))
    assert Plan.of(again) == plan


def change_notes(folder, change):
    """Write the notes beside the weights anew, changed in place by `change`."""
    with safe_open(folder / "model.safetensors", "pt") as file:
        about = json.loads(file.metadata()["fxfactor"])
        state = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118 (it has no items)
    change(about)
    save_file(state, folder / "model.safetensors", metadata={"fxfactor": json.dumps(about)})


def test_bits_that_the_plan_does_not_give_are_refused(tmp_path):
    graph = transformed()
    save(graph, tmp_path / "net")
    path, bits = next((path, bits_of(module)) for path, module in graph.named_modules() if is_quantizer(module))
    change_notes(tmp_path / "net", lambda about: about["bits"].update({path: 7}))
    with pytest.raises(PreconditionError, match=rf"'{path}' has 7 bits in '.*' and {bits} as its plan gives them"):
        load(tmp_path / "net", ResidualNet())


def test_a_folder_of_an_earlier_version_that_tells_no_bits_is_read(tmp_path):
    graph = transformed()
    save(graph, tmp_path / "net")
    change_notes(tmp_path / "net", lambda about: about.pop("bits"))
    images = torch.randn(IMAGES)
    assert torch.equal(load(tmp_path / "net", ResidualNet()).eval()(images), graph.eval()(images))


def test_whether_the_shape_was_assumed_is_kept(tmp_path):
    """`summary` says so: a network whose images nobody showed may be costed for images of the wrong size."""
    for inputs in (None, torch.zeros(IMAGES)):
        graph = transform(randomized(ResidualNet()), level=1, bits=4, example_inputs=inputs)
        again = load(save(graph, tmp_path / f"net{inputs is None}"), ResidualNet())
        assert ("assumed" in str(summary(graph, show=False))) == (inputs is None)
        assert str(summary(again, show=False)) == str(summary(graph, show=False))


def test_a_plan_with_wider_factors_comes_back(tmp_path):
    plan = Plan(
        {"stem.0": LayerPlan(groups=3, mid=6, weight_bits=5), "block.conv2": LayerPlan(groups=4, mid=40)}, join_bits=5
    )
    graph = transform(randomized(ResidualNet()), plan=plan, example_inputs=torch.zeros(IMAGES))
    again = load(save(graph, tmp_path / "net"), ResidualNet())
    images = torch.randn(IMAGES)
    assert torch.equal(again.eval()(images), graph.eval()(images))


def test_what_was_trained_comes_back(tmp_path):
    graph = transformed().train()
    optimizer = torch.optim.SGD(graph.parameters(), lr=0.1)
    graph(torch.randn(IMAGES)).square().mean().backward()
    optimizer.step()
    again = load(save(graph, tmp_path / "net"), ResidualNet())
    images = torch.randn(IMAGES)
    assert torch.equal(again.eval()(images), graph.eval()(images))


def test_the_folder_holds_two_files_and_no_pickle(tmp_path):
    save(transformed(), tmp_path / "net", source="package.module:factory")
    assert sorted(path.name for path in (tmp_path / "net").iterdir()) == ["model.safetensors", "plan.json"]
    assert [path.name for path in tmp_path.iterdir()] == ["net"]
    assert json.loads((tmp_path / "net" / "plan.json").read_text())["layers"]["block.conv1"]["groups"] == 2
    assert fxfactor.storage.checkpoint.read_about(tmp_path / "net")["source"] == "package.module:factory"


def test_a_folder_of_ours_is_replaced(tmp_path):
    save(transformed(level=0), tmp_path / "net")
    graph = transformed(level=2)
    save(graph, tmp_path / "net")
    assert Plan.of(load(tmp_path / "net", ResidualNet())) == Plan.of(graph)


def test_a_pipeline_of_ones_own_is_loaded_into(tmp_path):
    graph = Pipeline(FoldBatchNorm(), Quantize(4, 4))(capture(randomized(ResidualNet()))).graph
    save(graph, tmp_path / "net")
    fresh = Pipeline(FoldBatchNorm(), Quantize(4, 4))(capture(randomized(ResidualNet(), seed=5))).graph
    images = torch.randn(IMAGES)
    assert not torch.equal(fresh(images), graph(images))
    assert torch.equal(load(tmp_path / "net", fresh)(images), graph(images))


def test_a_network_in_float64_comes_back(tmp_path):
    graph = transform(randomized(ResidualNet()).double(), level=1, example_inputs=torch.zeros(IMAGES).double())
    again = load(save(graph, tmp_path / "net"), ResidualNet().double())
    images = torch.randn(IMAGES).double()
    assert torch.equal(again.eval()(images), graph.eval()(images))


def test_tied_buffers_and_views_are_saved(tmp_path):
    model = Lambda(lambda m, x: m.b(m.a(x)), a=nn.Conv2d(3, 8, 3), b=nn.Conv2d(8, 8, 3))
    model.b.weight = nn.Parameter(torch.randn(16, 8, 3, 3)[::2])
    model.a.weight = nn.Parameter(torch.randn(8, 3, 3, 3).to(memory_format=torch.channels_last))
    graph = transform(model, level=0, example_inputs=torch.zeros(IMAGES))
    again = load(save(graph, tmp_path / "net"), model)
    assert torch.equal(again(torch.ones(IMAGES)), graph(torch.ones(IMAGES)))


@pytest.mark.parametrize("broken", ["save_file", "Plan"])
def test_a_failure_while_writing_leaves_nothing(tmp_path, monkeypatch, broken):
    def fail(*_, **__):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(
        "fxfactor.storage.checkpoint.save_file" if broken == "save_file" else "fxfactor.plan.plan.Plan.save", fail
    )
    with pytest.raises(OSError, match="No space left on device"):
        save(transformed(), tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_failure_while_writing_leaves_the_earlier_network(tmp_path, monkeypatch):
    graph = transformed()
    save(graph, tmp_path / "net")
    before = (tmp_path / "net" / "model.safetensors").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr("fxfactor.plan.plan.Plan.save", lambda *_: (_ for _ in ()).throw(OSError(28, "No space")))
        with pytest.raises(OSError, match="No space"):
            save(transformed(level=2), tmp_path / "net")
    assert (tmp_path / "net" / "model.safetensors").read_bytes() == before
    assert Plan.of(load(tmp_path / "net", ResidualNet())) == Plan.of(graph)


def test_a_folder_with_other_files_is_refused(tmp_path):
    (tmp_path / "model.safetensors").write_text("half of a network")
    with pytest.raises(PreconditionError, match=r"holds other files and no plan\.json"):
        save(transformed(), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]


def test_a_read_only_folder_is_refused(tmp_path, monkeypatch):
    graph = transformed()
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    with pytest.raises(PreconditionError, match=r"saving the network: the folder .* is read-only; choose another one"):
        save(graph, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []


def test_a_file_as_parent_is_refused(tmp_path):
    (tmp_path / "file").write_text("mine")
    with pytest.raises(PreconditionError, match="does not exist; create it first"):
        save(transformed(), tmp_path / "file" / "net")


@pytest.mark.parametrize("missing", ["model.safetensors", "plan.json"])
def test_half_a_folder_is_refused(tmp_path, missing):
    save(transformed(), tmp_path / "net")
    (tmp_path / "net" / missing).unlink()
    with pytest.raises(
        PreconditionError, match=r"is not a saved network: it must hold model\.safetensors and plan\.json"
    ):
        load(tmp_path / "net", ResidualNet())


@pytest.mark.parametrize("damage", [b"", b"\0" * 100, "half"])
def test_damaged_weights_are_refused(tmp_path, damage):
    save(transformed(), tmp_path / "net")
    weights = tmp_path / "net" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[: weights.stat().st_size // 2] if damage == "half" else damage)
    with pytest.raises(PreconditionError, match=r"cannot read .*model\.safetensors.*the file is damaged"):
        load(tmp_path / "net", ResidualNet())


def test_a_damaged_plan_is_refused(tmp_path):
    save(transformed(), tmp_path / "net")
    (tmp_path / "net" / "plan.json").write_text("{")
    with pytest.raises(PreconditionError, match="a plan must be JSON"):
        load(tmp_path / "net", ResidualNet())


def test_weights_of_another_origin_are_refused(tmp_path):
    from safetensors.torch import save_file

    save(transformed(), tmp_path / "net")
    save_file({"a": torch.zeros(1)}, tmp_path / "net" / "model.safetensors")
    with pytest.raises(PreconditionError, match=r"was not written by fxfactor\.save"):
        load(tmp_path / "net", ResidualNet())


def test_another_model_is_refused(tmp_path):
    save(transformed(), tmp_path / "net")
    with pytest.raises(PreconditionError, match=r"the weights in .* do not fit this ResidualNet: .*size mismatch"):
        load(tmp_path / "net", ResidualNet(32))
    with pytest.raises(PreconditionError, match="no convolution or linear layer"):
        load(tmp_path / "net", nn.Sequential(nn.Conv2d(3, 8, 3)))


@pytest.mark.parametrize("wrong", [nn.Conv2d(3, 4, 3), None, {"a": torch.zeros(1)}])
def test_what_is_no_graph_is_refused(tmp_path, wrong):
    with pytest.raises(PreconditionError, match=r"save needs what fxfactor\.transform gives, found"):
        save(wrong, tmp_path / "net")
    assert list(tmp_path.iterdir()) == []
