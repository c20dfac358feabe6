"""Fine-tuning: it learns, resumes to the same result, distils, runs in two processes, and refuses what cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.fx import GraphModule
from torch.utils.data import DataLoader, TensorDataset

import fxfactor
from fxfactor.errors import FxfactorError, PreconditionError
from fxfactor.recovery import finetune as finetuning
from fxfactor.recovery.finetune import continue_from, finetune


def images() -> Tensor:
    return torch.randn(48, 3, 8, 8, generator=torch.Generator().manual_seed(0)).cumsum(-1)


def labels() -> Tensor:
    return (images()[:, :, :, -1].mean((1, 2)) > 0).long()


def loader(count: int = 48) -> DataLoader:
    return DataLoader(TensorDataset(images()[:count], labels()[:count]), batch_size=16, shuffle=True)


def model() -> nn.Module:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    layers += [nn.Conv2d(8, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 2)).eval()


def compressed(bits: int | tuple[int, int] | None = 4) -> GraphModule:
    return fxfactor.transform(model(), level=2, bits=bits, example_inputs=images()[:1])


def test_labels_alone_are_learnt():
    qmodel = compressed()
    report = finetune(qmodel, loader(), epochs=20, learning_rate=2e-2)
    assert [epoch.number for epoch in report] == list(range(20))
    assert report[-1].loss < 0.6 * report[0].loss
    assert report[0].images == 48
    assert not any(module.training for module in qmodel.modules())


@pytest.mark.parametrize("batch_norm", ["fixed", "updated"])
def test_statistics_of_batch_norms_are_kept_unless_asked_for(batch_norm):
    """To them rounded weights were fitted: with those of each batch the network is another one before a weight has moved."""
    qmodel = compressed()
    before, statistics = qmodel(images()), {name: value.clone() for name, value in qmodel.named_buffers()}
    options = {} if batch_norm == "fixed" else {"batch_norm": batch_norm}
    report = finetune(qmodel, [(images(), labels())], epochs=2, learning_rate=1e-9, weight_limits="largest", **options)
    same = all(torch.equal(value, statistics[name]) for name, value in qmodel.named_buffers() if "running" in name)
    assert same == (batch_norm == "fixed")
    assert torch.allclose(qmodel(images()), before, atol=1e-5) == (batch_norm == "fixed")
    loss = float(torch.nn.functional.cross_entropy(before, labels()).detach())
    assert (report[0].loss == pytest.approx(loss, abs=1e-4)) == (batch_norm == "fixed")


def test_teacher_needs_no_labels():
    qmodel = compressed()
    report = finetune(qmodel, list(images().split(16)), teacher=model(), epochs=6, learning_rate=1e-2)
    assert report[-1].loss < report[0].loss


def test_labels_can_be_added_to_the_teacher():
    with_labels, without = compressed(), compressed()
    first = finetune(with_labels, loader(), teacher=model(), epochs=1, label_weight=1.0)
    second = finetune(without, loader(), teacher=model(), epochs=1)
    assert first[0].loss > second[0].loss


@pytest.mark.parametrize("bits", [None, 8])
def test_lower_bits_continue_from_what_was_trained(bits):
    trained, lower = compressed(bits), compressed(4)
    finetune(trained, loader(), epochs=2, learning_rate=1e-2)
    ranges = {name: value.clone() for name, value in lower.state_dict().items() if "scaling_impl" in name}
    assert continue_from(lower, trained) is lower
    found, wanted = lower.state_dict(), trained.state_dict()
    assert ranges and all(torch.equal(found[name], value) for name, value in ranges.items())
    shared = found.keys() - ranges.keys()
    assert {name.rsplit(".", 1)[-1] for name in shared} >= {"weight", "bias", "running_mean"}
    assert all(torch.equal(found[name], wanted[name]) for name in shared)
    assert not torch.equal(found["3.pointwise.weight"], compressed(4).state_dict()["3.pointwise.weight"])


def test_networks_with_other_factors_do_not_continue():
    other = fxfactor.transform(model(), level=1, bits=4, example_inputs=images()[:1])
    with pytest.raises(PreconditionError, match=r"'3\.spatial\.weight' has shape \(8, 2, 3, 3\).* and \(8, 4, 3, 3\)"):
        continue_from(compressed(), other)


class Broken(Exception):
    pass


def test_interrupted_run_resumes_to_the_same_result(tmp_path):
    whole, broken, resumed = compressed(), compressed(), compressed()
    expected = finetune(whole, loader(), teacher=model(), epochs=3, seed=7)

    def fails_in_the_third_epoch(batch: Tensor, generator: torch.Generator) -> Tensor:
        if generator.initial_seed() // 1_000_003 == 9:
            raise Broken
        return batch

    with pytest.raises(Broken):
        finetune(
            broken, loader(), teacher=model(), epochs=3, seed=7, checkpoint=tmp_path, augment=fails_in_the_third_epoch
        )
    report = finetune(resumed, loader(), teacher=model(), epochs=3, seed=7, checkpoint=tmp_path)
    assert [epoch.number for epoch in report] == [2]
    assert report[-1].loss == expected[-1].loss
    for found, wanted in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)  # layouts in memory may differ, and so rounding
    assert finetune(compressed(), loader(), teacher=model(), epochs=3, seed=7, checkpoint=tmp_path) == []


def test_weights_that_jump_are_frozen_and_stay_so_after_an_interruption(tmp_path):
    options = {"teacher": model(), "epochs": 4, "learning_rate": 5e-2, "oscillations": "frozen"}
    whole, resumed = compressed(2), compressed(2)
    told = finetune(whole, loader(), **options)
    counts = [each.frozen_weights for each in told]
    assert counts[-1] > 0
    assert counts == sorted(counts)
    free = finetune(compressed(2), loader(), **{**options, "oscillations": "free"})
    assert {each.frozen_weights for each in free} == {0}
    assert free[-1].loss != told[-1].loss

    def fails_in_the_last_epoch(batch: Tensor, generator: torch.Generator) -> Tensor:
        if generator.initial_seed() // 1_000_003 == 3:
            raise Broken
        return batch

    with pytest.raises(Broken):
        finetune(compressed(2), loader(), **options, checkpoint=tmp_path, augment=fails_in_the_last_epoch)
    (last,) = finetune(resumed, loader(), **options, checkpoint=tmp_path)
    assert (last.loss, last.frozen_weights) == (told[-1].loss, counts[-1])
    for found, wanted in zip(resumed.state_dict().values(), whole.state_dict().values(), strict=True):
        torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-6)


def test_the_learning_rate_is_chosen_by_trials_that_leave_no_trace(tmp_path, monkeypatch):
    options = {"teacher": model(), "epochs": 2, "checkpoint": tmp_path / "tried"}
    monkeypatch.setattr(finetuning, "RATES", (1e30, 1e-7, 2e-2))
    tried, given = compressed(), compressed()
    told = finetune(tried, loader(), learning_rate=None, **options)
    assert [each.learning_rate for each in told] == [2e-2, 2e-2]
    wanted = finetune(given, loader(), teacher=model(), epochs=2, learning_rate=2e-2)
    assert [each.loss for each in told] == [each.loss for each in wanted]
    assert all(torch.equal(a, b) for a, b in zip(tried.state_dict().values(), given.state_dict().values(), strict=True))


def test_a_run_that_goes_on_does_not_try_again(tmp_path, monkeypatch):
    def fails_in_the_second_epoch(batch: Tensor, generator: torch.Generator) -> Tensor:
        if generator.initial_seed() // 1_000_003 == 1:
            raise Broken
        return batch

    options = {"teacher": model(), "epochs": 2, "learning_rate": None, "checkpoint": tmp_path}
    with pytest.raises(Broken):
        finetune(compressed(), loader(), **options, augment=fails_in_the_second_epoch)
    monkeypatch.setattr(finetuning, "RATES", ())
    (last,) = finetune(compressed(), loader(), **options)
    assert last.learning_rate > 0


def test_what_learning_rates_are_judged_by_is_not_trained_on(monkeypatch):
    """With as many batches as are kept and one more, every trial sees that one alone."""
    monkeypatch.setattr(finetuning, "KEPT_BATCHES", 2)
    monkeypatch.setattr(finetuning, "RATES", (1e-3,))
    seen: list[Tensor] = []

    def watch(batch: Tensor, generator: torch.Generator) -> Tensor:
        seen.append(batch.clone())
        return batch

    data = [(images()[i : i + 8], labels()[i : i + 8]) for i in (0, 8, 16)]
    finetune(compressed(), data, epochs=1, learning_rate=None, augment=watch)
    trials = seen[:-3]
    assert len(trials) == finetuning.TRIAL_STEPS
    assert all(torch.equal(batch, data[2][0]) for batch in trials)


def test_rates_cannot_be_tried_on_a_loader_that_ends():
    with pytest.raises(PreconditionError, match="found an empty loader"):
        finetune(compressed(), iter([(images(), labels())] * 30), epochs=1, learning_rate=None)


def test_labels_may_count_in_the_last_epochs_alone():
    losses = {
        count: [
            each.loss
            for each in finetune(
                compressed(), loader(), teacher=model(), epochs=3, label_weight=0.0 if count == 0 else 1.0,
                label_epochs=count or None,
            )
        ]
        for count in (0, 1, 3)
    }  # fmt: skip
    assert losses[1][:2] == losses[0][:2]
    assert losses[1][2] > losses[0][2] + 0.1  # the cross-entropy comes on top
    assert losses[3][0] > losses[0][0] + 0.1


def test_weights_of_one_bit_are_trained():
    qmodel = compressed((1, 4))
    before = qmodel.get_submodule("3.spatial").weight.detach().clone()
    told = finetune(qmodel, loader(), teacher=model(), epochs=10, learning_rate=1e-2)
    assert told[-1].loss < 0.8 * told[0].loss
    assert ((before < 0) != (qmodel.get_submodule("3.spatial").weight < 0)).any()


def test_checkpoint_of_another_run_is_refused(tmp_path):
    finetune(compressed(), loader(), epochs=1, checkpoint=tmp_path)
    with pytest.raises(PreconditionError, match=r"of another run: it has .*'epochs': 1.* this run .*'epochs': 2"):
        finetune(compressed(), loader(), epochs=2, checkpoint=tmp_path)


def test_mixed_precision_trains_alike_and_keeps_float32(tmp_path):
    plain, mixed = compressed(), compressed()
    options = {"teacher": model(), "epochs": 10, "learning_rate": 2e-2}
    first = finetune(plain, loader(), **options)[0].loss
    told = finetune(mixed, loader(), **options, precision="bfloat16", checkpoint=tmp_path)
    assert told[0].loss == pytest.approx(first, rel=0.05)
    assert told[-1].loss < 0.9 * told[0].loss
    states = zip(plain.state_dict().values(), mixed.state_dict().values(), strict=True)
    assert not all(torch.equal(a, b) for a, b in states)
    assert {each.dtype for each in mixed.state_dict().values()} <= {torch.float32, torch.int64}
    assert mixed(images()).dtype == torch.float32
    with pytest.raises(PreconditionError, match=r"another run: it has .*bfloat16"):
        finetune(compressed(), loader(), **options, checkpoint=tmp_path)


def test_global_random_state_is_left_alone():
    qmodel = compressed()
    state = torch.get_rng_state()
    finetune(qmodel, loader(16), epochs=1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "epochs ≥ 1"),
        ({"learning_rate": 0.0}, "learning_rate > 0"),
        ({"label_weight": -1.0}, "label_weight ≥ 0"),
        ({"batch_norm": "frozen"}, 'batch_norm must be "fixed" or "updated", found .frozen'),
        ({"precision": "float16"}, 'precision must be "float32" or "bfloat16", found .float16'),
        ({"teacher": "resnet18"}, "teacher must be the network .* found str"),
        ({"oscillations": "damped"}, 'oscillations must be "free" or "frozen", found .damped'),
        ({"oscillations": "frozen", "weight_limits": "largest"}, 'needs weight_limits="learned", found .largest'),
        ({"label_epochs": 1}, "found 1 without a teacher with label_weight=0"),
        ({"label_epochs": 3, "teacher": model(), "label_weight": 1.0}, "a number from 1 to epochs=2, found 3"),
        ({"label_epochs": 0, "teacher": model(), "label_weight": 1.0}, "a number from 1 to epochs=2, found 0"),
    ],
)
def test_impossible_settings_are_refused(settings, message):
    with pytest.raises(PreconditionError, match=message):
        finetune(compressed(), loader(), **settings)


def test_missing_labels_and_empty_loaders_are_refused():
    with pytest.raises(PreconditionError, match=r"needs batches \(images, labels\)"):
        finetune(compressed(), [images()])
    with pytest.raises(PreconditionError, match="empty loader"):
        finetune(compressed(), [])


def test_loss_that_is_not_finite_stops_the_run():
    with pytest.raises(FxfactorError, match="loss is nan at step 0 of epoch 0"):
        finetune(compressed(bits=None), [(images() * float("nan"), labels())])


@pytest.mark.parametrize("broken", [[], [(images() * float("nan"), labels())]])
def test_a_run_that_fails_leaves_every_module_in_its_mode(broken):
    qmodel = compressed()
    qmodel.eval()
    next(qmodel.children()).train()
    before = [module.training for module in qmodel.modules()]
    with pytest.raises(FxfactorError):
        finetune(qmodel, broken)
    assert [module.training for module in qmodel.modules()] == before


WORKER = """
import sys; sys.path.insert(0, {tests!r})
import torch
from torch import distributed
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset
from test_finetune import compressed, finetune, images, labels, model
torch.set_num_threads(1)
distributed.init_process_group("gloo")
data = TensorDataset(images(), labels())
loader = DataLoader(data, batch_size=8, sampler=DistributedSampler(data))
qmodel = compressed()
report = finetune(qmodel, loader, teacher=model(), epochs=2, checkpoint={folder!r})
mine = torch.cat([p.detach().flatten() for p in qmodel.parameters()])
all_of_them = [torch.empty_like(mine) for _ in range(2)]
distributed.all_gather(all_of_them, mine)
assert torch.equal(*all_of_them), "the processes drifted apart"
assert report[0].images == 24
distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_train_one_network(tmp_path):
    script = tmp_path / "worker.py"
    script.write_text(WORKER.format(tests=str(Path(__file__).parent), folder=str(tmp_path / "run")))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=2", str(script)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert (tmp_path / "run" / "checkpoint.safetensors").exists()


def test_a_checkpoint_that_cannot_be_written_leaves_the_one_before(tmp_path, monkeypatch):
    written = []

    def breaks_off_the_second_time(tensors, path, metadata=None):
        written.append(path)
        if len(written) == 2:
            Path(path).write_bytes(b"half")
            raise OSError("no space left on device")
        save_file(tensors, path, metadata)

    monkeypatch.setattr("fxfactor.recovery.finetune.save_file", breaks_off_the_second_time)
    with pytest.raises(OSError, match="no space"):
        finetune(compressed(), loader(), epochs=2, checkpoint=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["checkpoint.safetensors"]
    assert [epoch.number for epoch in finetune(compressed(), loader(), epochs=2, checkpoint=tmp_path)] == [1]


def test_every_epoch_draws_other_random_numbers_and_every_run_the_same():
    def orders() -> list[list[float]]:
        data = loader()
        drawn: list[list[float]] = []

        class Watched:
            def __iter__(self):
                drawn.append([])
                for x, y in data:
                    drawn[-1].extend(x[:, 0, 0, 0].tolist())
                    yield x, y

        finetune(compressed(bits=None), Watched(), epochs=3)
        return drawn

    first, second = orders(), orders()
    assert first == second
    assert first[0] != first[1] != first[2] != first[0]
