"""What `transform` does with calibration images beyond fitting and calibrating, and that nothing gets worse by it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn
from trained import digits, digits_network

import fxfactor
from fxfactor import PreconditionError, transform
from fxfactor.pipeline import HISTORY, Judged
from fxfactor.recovery import guarded
from fxfactor.recovery.guarded import HELD_OUT, held_out


def images(count: int = 96) -> list[Tensor]:
    return list(digits("train")[0][:count].split(32))


def judged_of(graph: torch.fx.GraphModule) -> list[Judged]:
    return [each for each in graph.meta[HISTORY] if isinstance(each, Judged)]


def steps_of(graph: torch.fx.GraphModule) -> list[str]:
    return [each.step for each in judged_of(graph)]


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"bits": 4}, ["calibrated", "rounded"]),
        ({"bits": 7}, ["calibrated", "rounded"]),
        ({"bits": 8}, ["calibrated"]),
        ({"bits": (None, 4)}, ["calibrated"]),
        ({"level": 1}, ["fitted"]),
        ({"bits": 4, "recover": "none"}, ["calibrated"]),
        ({"bits": 8, "recover": "round"}, ["calibrated", "rounded"]),
        ({"bits": 4, "recover": "reconstruct", "steps": 12}, ["calibrated", "rounded", "reconstructed"]),
        ({"level": 1, "recover": "reconstruct", "steps": 12}, ["fitted", "reconstructed"]),
    ],
    ids=str,
)
def test_weights_of_few_bits_are_rounded_and_the_rest_is_as_asked(settings, steps):
    assert steps_of(transform(digits_network(), calibration=images(), **settings)) == steps


def test_a_network_of_which_nothing_was_changed_is_not_judged():
    assert not judged_of(transform(digits_network(), level=0, calibration=images()))


def test_what_is_told_is_what_the_outputs_are_on_the_images_held_out():
    model, batches = digits_network(), images()
    graph = transform(model, level=1, bits=3, calibration=batches).eval()
    others = torch.cat(batches)[-24:]
    with torch.no_grad():
        wanted, found = model(others), graph(others)
    last = judged_of(graph)[-1]
    assert last.kept
    assert last.images == len(others)
    assert last.output_error == pytest.approx(
        float((found - wanted).norm() / (wanted - wanted.mean()).norm()), rel=1e-4
    )
    assert last.agreement == pytest.approx(float((found.argmax(1) == wanted.argmax(1)).double().mean()))


def test_rounding_brings_the_outputs_nearer():
    before, after = judged_of(transform(digits_network(), level=1, bits=3, calibration=images()))
    assert after.kept
    assert after.output_error < 0.8 * before.output_error


@pytest.mark.parametrize("damage", ["noise", "nan"])
def test_a_step_that_makes_it_worse_is_taken_back(monkeypatch, damage):
    plain = transform(digits_network(), level=1, bits=3, calibration=images(), recover="none")

    def spoil(original: nn.Module, graph: torch.fx.GraphModule, batches: object) -> None:
        with torch.no_grad():
            for parameter in graph.parameters():
                parameter.add_(1.0) if damage == "noise" else parameter.fill_(torch.nan)

    monkeypatch.setattr(guarded, "round_weights", spoil)
    graph = transform(digits_network(), level=1, bits=3, calibration=images())
    assert [each.kept for each in judged_of(graph)] == [True, False]
    assert all(torch.equal(value, plain.state_dict()[name]) for name, value in graph.state_dict().items())
    assert "taken back" in str(fxfactor.summary(graph, show=False))


def test_the_steps_do_not_see_the_images_held_out(monkeypatch):
    seen = []
    monkeypatch.setattr(guarded, "round_weights", lambda original, graph, batches: seen.extend(batches))
    transform(digits_network(), bits=4, calibration=images())
    assert torch.equal(torch.cat(seen), torch.cat(images())[:72])


@pytest.mark.parametrize(
    ("sizes", "kept", "judged"), [([3], 3, 3), ([1, 1, 1, 1], 3, 1), ([5, 4], 7, 2), ([2000], 1744, 256)]
)
def test_a_quarter_is_held_out_and_all_is_for_both_where_there_are_few(sizes, kept, judged):
    batches = list(torch.arange(sum(sizes)).split(sizes))
    seen, others = held_out(batches)
    assert (sum(map(len, seen)), sum(map(len, others))) == (kept, judged)
    assert judged <= HELD_OUT
    together = torch.cat(seen) if kept == sum(sizes) else torch.cat([*seen, *others])
    assert torch.equal(together, torch.arange(sum(sizes)))


@pytest.mark.parametrize("recover", ["round", "reconstruct"])
def test_recovery_without_images_is_refused(recover):
    with pytest.raises(PreconditionError, match="needs images: give calibration="):
        transform(digits_network(), bits=4, recover=recover)


def test_rounding_where_nothing_is_quantized_is_refused():
    with pytest.raises(PreconditionError, match="no layer is quantized; give bits="):
        transform(digits_network(), level=1, recover="round", calibration=images())


@pytest.mark.parametrize("recover", ["rounded", 1])
def test_unknown_recovery_is_refused(recover):
    with pytest.raises(PreconditionError, match="recover"):
        transform(digits_network(), bits=4, recover=recover, calibration=images())


def test_the_summary_says_that_a_network_is_not_usable_and_what_to_do():
    graph = transform(digits_network(), level="depthwise", bits=2, calibration=images(), recover="none")
    summary = fxfactor.summary(graph, show=False)
    assert summary.usable is False
    assert 'not usable as it is; try recover="round" (seconds), then recover="reconstruct"' in str(summary)
    good = fxfactor.summary(transform(digits_network(), bits=8, calibration=images()), show=False)
    assert good.usable is True
    assert "not usable" not in str(good)
    assert fxfactor.summary(transform(digits_network(), bits=8), show=False).usable is None


def test_a_network_in_floating_point_is_not_told_to_round():
    graph = transform(digits_network(), level=1, calibration=images(), recover="none")
    (last,) = judged_of(graph)
    graph.meta[HISTORY] = (*graph.meta[HISTORY][:-1], dataclasses.replace(last, agreement=0.1))
    told = str(fxfactor.summary(graph, show=False))
    assert (
        'not usable as it is; try recover="reconstruct" (minutes), then fxfactor.finetune, then a lower level' in told
    )


def test_outputs_that_are_no_classes_are_judged_by_their_error():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    graph = transform(model, bits=4, calibration=images())
    assert judged_of(graph)[-1].agreement is None
    assert fxfactor.summary(graph, show=False).usable is True


class Answers(nn.Module):
    """Gives positions beside what `real` says, which has no gradient and no distance."""

    def __init__(self, real: bool) -> None:
        super().__init__()
        self.net, self.real = digits_network(), real

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.net(x)
        return (y.argmax(1), y) if self.real else (y.argmax(1),)


@pytest.mark.parametrize("real", [True, False])
def test_outputs_of_whole_numbers_are_not_judged(real):
    graph = transform(Answers(real).eval(), bits=4, calibration=images())
    assert steps_of(graph) == (["calibrated", "rounded"] if real else [])


def test_batches_of_several_image_sizes_are_judged_together():
    model = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 2, 3, padding=1)).eval()
    batches = [torch.randn(4, 1, size, size) for size in (8, 12, 16)]
    assert judged_of(transform(model, bits=4, calibration=batches))[0].images == 3
    batches = [torch.randn(1, 1, size, size) for size in (8, 12, 16, 8, 12, 16, 10, 14)]
    assert judged_of(transform(model, bits=4, calibration=batches))[0].images == 2


def test_it_is_saved_and_forgotten_when_the_network_is_trained(tmp_path):
    model = digits_network()
    graph = transform(model, level=1, bits=4, calibration=images())
    fxfactor.save(graph, tmp_path / "net")
    loaded = fxfactor.load(tmp_path / "net", model)
    assert judged_of(loaded) == judged_of(graph) != []
    fxfactor.finetune(loaded, images(), teacher=model, epochs=1)
    assert not judged_of(loaded)
    fxfactor.round_weights(model, graph, images())
    assert not judged_of(graph)
