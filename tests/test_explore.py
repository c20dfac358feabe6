"""Explore: the walk, its state file, what breaks it off, workers, and the result."""

from __future__ import annotations

import dataclasses
import math
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from networks import ResidualNet, randomized
from torch import nn

import fxfactor
from fxfactor import Exploration, FxfactorError, PreconditionError
from fxfactor.exploration.explore import pairs_of
from fxfactor.exploration.pareto import hypervolume, pareto_front
from fxfactor.exploration.result import plan_of
from fxfactor.exploration.rung import top1
from fxfactor.exploration.state_file import Candidate, Store

GENERATOR = torch.Generator().manual_seed(5)
TRAIN = list(torch.randn(16, 3, 16, 16, generator=GENERATOR).split(8))
VALIDATION = [(torch.randn(8, 3, 16, 16, generator=GENERATOR), torch.arange(8)) for _ in range(2)]


def _model() -> nn.Module:
    torch.manual_seed(7)
    return randomized(ResidualNet(16))


def output_norm(model: nn.Module, validation: Any) -> float:
    """A metric that tells any two networks apart."""
    with torch.no_grad():
        return float(sum(model(images).double().square().sum() for images, _ in validation))


def without_seconds(result: Exploration) -> list[Candidate]:
    return [dataclasses.replace(each, seconds=0.0) for each in result.candidates]


def _explore(state: Path, **settings: Any) -> Exploration:
    settings = {"levels": (0, 2, 4), "bits": (3, 8), "metric": output_norm, **settings}
    return fxfactor.explore(_model(), TRAIN, VALIDATION, state=state, **settings)


# ---- the walk ----


@pytest.mark.finn
def test_finns_estimates_are_those_of_what_transform_makes(tmp_path: Path) -> None:
    settings: dict[str, Any] = {"levels": (2, "depthwise"), "bits": (4, None), "metric": top1}
    result = _explore(tmp_path / "state", board="Pynq-Z2", target_fps=2000, **settings)
    qmodel = fxfactor.transform(_model(), level=2, bits=4, calibration=TRAIN)
    fxfactor.export(qmodel, tmp_path / "model.onnx", target="finn")
    wanted = fxfactor.finn.estimate(tmp_path / "model.onnx", "Pynq-Z2", 2000, cache=tmp_path / "cache")
    quantized, floating = (next(each for each in result.candidates if each.weight_bits == bits) for bits in (4, None))
    assert (quantized.bram18, quantized.dsp, quantized.fps) == (wanted.total.bram18, wanted.total.dsp, wanted.fps)
    assert quantized.lut == pytest.approx(wanted.total.lut, rel=0.02)  # ranges, and so widths, may differ a little
    assert floating.status == "done"
    assert floating.lut is None
    assert "no FINN estimates" in floating.message
    assert "LUT" in str(result)
    assert {each.key for each in result.front("lut")} <= {each.key for each in result.candidates if each.lut}
    assert result.best(max_lut=quantized.lut, min_fps=2000).lut <= quantized.lut
    with pytest.raises(PreconditionError, match=r"lut ≤ 1 and frames/s ≥ 2,000"):
        result.best(max_lut=1, min_fps=2000)
    with pytest.raises(PreconditionError, match="board"):
        _explore(tmp_path / "state", **settings)


def test_the_grid_is_evaluated_with_the_costs_of_the_networks(tmp_path: Path) -> None:
    result = _explore(tmp_path / "state", metric=top1)
    assert [each.key for each in result.candidates] == [(str(n), 1.0, b, b) for n in (0, 2, 4) for b in (8, 3)]
    assert {each.status for each in result.candidates} == {"done"}
    for each in result.candidates:
        made = fxfactor.transform(_model(), plan=plan_of(each), calibration=TRAIN)
        total = fxfactor.cost(made)
        assert (each.macs, each.bops, each.total_weight_bits) == (total.macs, total.bops, total.total_weight_bits)


def test_every_level_at_every_width_but_level_0_once(tmp_path: Path) -> None:
    result = _explore(tmp_path / "state", levels=(0, 3), widths=(1, 2), bits=(8,))
    assert [each.rung for each in result.candidates] == ["0", "3", "3 ×2"]
    assert "3 ×2" in str(result)
    for each, width in zip(result.candidates[1:], (1, 2), strict=True):
        made = fxfactor.transform(_model(), level=3, bits=8, width=width, calibration=TRAIN)
        assert (each.macs, each.total_weight_bits) == (fxfactor.cost(made).macs, fxfactor.cost(made).total_weight_bits)
        assert fxfactor.Plan.of(fxfactor.transform(_model(), plan=plan_of(each))) == fxfactor.Plan.of(made)
        assert each.metric == pytest.approx(output_norm(made.eval(), VALIDATION), rel=1e-5)


def test_more_widths_may_be_asked_for_later(tmp_path: Path) -> None:
    first = _explore(tmp_path / "state", levels=(2,), bits=(8,))
    later = _explore(tmp_path / "state", levels=(2,), bits=(8,), widths=(1, 1.5))
    assert later.candidates[0] == first.candidates[0]  # with its seconds: it was not made again
    fresh = _explore(tmp_path / "fresh", levels=(2,), bits=(8,), widths=(1, 1.5))
    assert without_seconds(later) == without_seconds(fresh)


def test_at_8_bits_a_candidate_is_what_transform_makes(tmp_path: Path) -> None:
    result = _explore(tmp_path / "state", levels=(3,), bits=(8, None))
    for each, bits in zip(result.candidates, (None, 8), strict=True):
        made = fxfactor.transform(_model(), level=3, bits=bits, calibration=TRAIN)
        assert each.metric == pytest.approx(output_norm(made.eval(), VALIDATION), rel=1e-5)


def test_a_level_takes_over_what_the_one_before_has_fitted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from fxfactor.exploration import rung as walk

    fitted: list[set[str]] = []

    def spy(original: Any, graph: Any, batches: Any, done: set[str]) -> Any:
        fitted.append(set(done))
        return real(original, graph, batches, done=done)

    real = walk.fit_to_outputs
    monkeypatch.setattr(walk, "fit_to_outputs", spy)
    together = _explore(tmp_path / "a", levels=(4, 5), bits=(8,))
    assert fitted == [set(), {"stem.0", "block.conv1", "block.conv2", "classifier"}]
    assert together.candidates[0].metric == together.candidates[1].metric


def test_bits_are_walked_from_many_to_few() -> None:
    assert pairs_of((2, None, (4, 8), 8)) == ((None, None), (8, 8), (4, 8), (2, 2))
    with pytest.raises(PreconditionError, match="bits must be an int from 2 to 8"):
        pairs_of((1,))


def halve(qmodel: nn.Module, original: nn.Module) -> None:
    """A stand-in for fine-tuning: it changes the weights, with random numbers."""
    with torch.no_grad():
        for parameter in qmodel.parameters():
            parameter.mul_(1 - 0.1 * torch.rand(()))


def test_fine_tuning_goes_on_from_the_bits_before(tmp_path: Path) -> None:
    seen = []

    def tune(qmodel: nn.Module, original: nn.Module) -> None:
        seen.append(float(qmodel.get_submodule("block.conv2").weight.detach().norm()))
        halve(qmodel, original)

    _explore(tmp_path / "state", levels=(0,), bits=(8, 4, 3), finetune=tune)
    assert seen == sorted(seen, reverse=True)
    assert seen[0] > seen[1] > seen[2]


# ---- what goes wrong ----


def test_a_candidate_that_raises_or_gives_nan_is_marked_and_the_walk_goes_on(tmp_path: Path) -> None:
    calls: list[int] = []

    def metric(model: nn.Module, validation: Any) -> float:
        calls.append(1)
        if len(calls) == 2:
            raise ValueError("no good")
        return math.nan if len(calls) == 3 else float(len(calls))

    result = _explore(tmp_path / "state", metric=metric)
    assert [each.status for each in result.candidates] == ["done", "failed", "nan", "done", "done", "done"]
    assert result.candidates[1].message == "ValueError: no good"
    assert result.candidates[2].message == "the metric is nan"
    assert {each.status for each in result.front()} == {"done"}
    assert "no good" in str(result)
    with pytest.raises(PreconditionError, match="has no plan: it failed: ValueError"):
        plan_of(result.candidates[1])


def test_an_interrupt_loses_one_candidate_and_the_result_is_that_of_an_unbroken_run(tmp_path: Path) -> None:
    for finetune in (None, halve):
        name = f"{finetune}"[:5]
        unbroken = _explore(tmp_path / f"{name}a", finetune=finetune)
        for stop_at in range(6):
            state, calls = tmp_path / f"{name}{stop_at}", []

            def metric(model: nn.Module, validation: Any, calls: list[int] = calls, stop_at: int = stop_at) -> float:
                calls.append(1)
                if len(calls) == stop_at + 1:
                    raise KeyboardInterrupt
                return output_norm(model, validation)

            metric.__qualname__ = "output_norm"
            with pytest.raises(KeyboardInterrupt):
                _explore(state, metric=metric, finetune=finetune)
            assert len(Exploration.read(state).candidates) == stop_at
            assert without_seconds(_explore(state, finetune=finetune)) == without_seconds(unbroken)


def test_kill_9_loses_one_candidate_at_most(tmp_path: Path) -> None:
    script = tmp_path / "run.py"
    script.write_text(
        textwrap.dedent(f"""
        import sys, time, torch
        torch.set_num_threads(1)
        sys.path.insert(0, {str(Path(__file__).parent)!r})
        import test_explore
        from pathlib import Path
        test_explore._explore(Path({str(tmp_path / "state")!r}),
                              progress=lambda each: (print(each.key, flush=True), time.sleep(0.2)))
        """)
    )
    process = subprocess.Popen(
        [sys.executable, str(script)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    assert process.stdout is not None
    with process.stdout as lines:
        reported = [lines.readline() for _ in range(3)]
        during = Exploration.read(tmp_path / "state")  # while the other one is writing
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert all(reported)
    assert len(during.candidates) >= 3
    assert len(Exploration.read(tmp_path / "state").candidates) >= 3
    assert without_seconds(_explore(tmp_path / "state")) == without_seconds(_explore(tmp_path / "other"))


def test_a_finished_run_evaluates_nothing_again_and_more_bits_are_added(tmp_path: Path) -> None:
    first = _explore(tmp_path / "state")
    seen: list[Candidate] = []
    assert _explore(tmp_path / "state", progress=seen.append) == first
    assert seen == []
    more = _explore(tmp_path / "state", bits=(3, 4, 8), progress=seen.append)
    assert [each.key for each in seen] == [(str(level), 1.0, 4, 4) for level in (0, 2, 4)]
    assert without_seconds(more) == without_seconds(_explore(tmp_path / "whole", bits=(3, 4, 8)))


def test_two_runs_on_one_file_and_a_file_of_another_run_are_refused(tmp_path: Path) -> None:
    def again(candidate: Candidate) -> None:
        with pytest.raises(PreconditionError, match="another run is writing"):
            _explore(tmp_path / "state")

    _explore(tmp_path / "state", levels=(0,), bits=(8,), progress=again)
    with pytest.raises(PreconditionError, match="belongs to another exploration: its metric is"):
        _explore(tmp_path / "state", metric=top1)
    (tmp_path / "text").write_text("this is no database, but a text that is long enough to be looked at" * 20)
    with pytest.raises(PreconditionError, match=r"is no file that fxfactor\.explore has written"):
        _explore(tmp_path / "text")
    with pytest.raises(PreconditionError, match="does not exist; create it first"):
        _explore(tmp_path / "nowhere" / "state")
    with pytest.raises(PreconditionError, match="is a folder"):
        _explore(tmp_path)
    with pytest.raises(PreconditionError, match="there is no file"):
        Exploration.read(tmp_path / "nothing")


def test_a_full_disk_is_said_and_what_was_kept_stays(tmp_path: Path) -> None:
    row = Candidate("0", 1.0, 8, 8, "done", 0.5, 1, 1, 1, 0.1, "", None)
    with Store(tmp_path / "state", {}) as store:
        store.add(row)
        pages = store.connection.execute("pragma page_count").fetchone()[0]
        store.connection.execute(f"pragma max_page_count = {pages}")
        with pytest.raises(FxfactorError, match="no room to write .* free some space and call explore again"):
            store.add_snapshot("1", bytes(1 << 20))
    assert Exploration.read(tmp_path / "state").candidates == (row,)


# ---- workers ----


def test_workers_find_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    alone = _explore(tmp_path / "alone")
    assert without_seconds(_explore(tmp_path / "together", workers=2)) == without_seconds(alone)


def die(model: nn.Module, validation: Any) -> float:
    """A metric that kills its process, unless that is the one that started the others."""
    if multiprocessing.parent_process() is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    return 1.0


def test_a_worker_that_dies_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    started = time.monotonic()
    with pytest.raises(FxfactorError, match="a worker process ended with exit code -9"):
        _explore(tmp_path / "state", metric=die, workers=2)
    assert time.monotonic() - started < 120
    assert len(_explore(tmp_path / "state", metric=die).candidates) == 6


def test_ray_finds_what_one_process_finds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    here = str(Path(__file__).parent)  # its workers import this file and the networks beside it
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, (here, os.environ.get("PYTHONPATH")))))
    alone = _explore(tmp_path / "alone")
    try:
        found = _explore(tmp_path / "together", workers=2, engine="ray")
    finally:
        ray.shutdown()
    assert without_seconds(found) == without_seconds(alone)


def test_ray_is_asked_for_where_it_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(PreconditionError, match="needs Ray, which is not installed; run pip install ray"):
        _explore(tmp_path / "state", engine="ray")


# ---- the result ----


def _candidate(level: int, bops: int, metric: float) -> Candidate:
    return Candidate(str(level), 1.0, 4, 4, "done", metric, bops, bops, bops, 0.0, "", None)


RESULT = Exploration(tuple(_candidate(*each) for each in ((0, 100, 0.9), (1, 60, 0.92), (2, 30, 0.5), (3, 20, 0.6))))


def test_the_front_and_the_best() -> None:
    assert [each.level for each in RESULT.front()] == ["3", "1"]
    assert RESULT.best(max_bops=50).level == "3"
    assert RESULT.best(min_accuracy=0.9).level == "1"
    assert RESULT.best().level == "1"
    with pytest.raises(PreconditionError, match=r"at least 0\.9 within bops ≤ 50: the best of those has 0\.6"):
        RESULT.best(min_accuracy=0.9, max_bops=50)
    with pytest.raises(PreconditionError, match="no candidate is within the costs"):
        RESULT.best(max_macs=1)
    with pytest.raises(PreconditionError, match="cost must be one of bops, macs, total_weight_bits"):
        RESULT.front("latency")


def test_hypervolume_counts_dominated_area() -> None:
    assert hypervolume([(20, 0.6), (60, 0.92), (30, 0.5)], (100, 0.0)) == pytest.approx(40 * 0.6 + 40 * 0.92)
    assert hypervolume([(120, 0.9)], (100, 0.0)) == 0
    assert RESULT.hypervolume() == pytest.approx(40 * 0.6 + 40 * 0.92)
    assert pareto_front([], lambda x: x, lambda x: x) == []


def test_the_picture_is_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    path = RESULT.plot(tmp_path / "front.svg")
    assert path.read_text().startswith("<?xml")


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"levels": ()}, r"explore needs levels and widths, found levels=\(\)"),
        ({"widths": ()}, r"explore needs levels and widths, found .*widths=\(\)"),
        ({"bits": ()}, "explore needs bits, found none"),
        ({"widths": (0,)}, "width must be a number above 0"),
        ({"levels": (-1,)}, "level must be an int of at least 0"),
        ({"workers": 0}, "workers must be at least 1"),
        ({"engine": "cluster"}, 'engine must be "local" or "ray"'),
    ],
)
def test_values_out_of_range_are_refused(tmp_path: Path, settings: dict[str, Any], words: str) -> None:
    with pytest.raises(PreconditionError, match=words):
        _explore(tmp_path / "state", **settings)
    assert not (tmp_path / "state").exists()


def test_the_file_is_sqlite_that_anyone_can_read(tmp_path: Path) -> None:
    _explore(tmp_path / "state", levels=(0,), bits=(8,))
    connection = sqlite3.connect(tmp_path / "state")
    assert connection.execute("select level, weight_bits, status from candidates").fetchall() == [("0", 8, "done")]
    connection.close()


def test_explore_and_search_on_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    import numpy as np

    from fxfactor.cli.app import main

    (tmp_path / "small_net.py").write_text(
        "from networks import ResidualNet, randomized\nnet = lambda: randomized(ResidualNet(16))\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    np.save("train.npy", torch.cat(TRAIN).numpy())
    np.savez("test.npz", x=VALIDATION[0][0].numpy(), y=VALIDATION[0][1].numpy())

    def run(*arguments: str) -> str:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        assert ended.value.code in (0, None)
        return str(capsys.readouterr().out)

    explored = run("explore", "small_net:net", "--images", "train.npy", "--validation", "test.npz", "--levels", "0,2-3",
                   "--bits", "8/4,4")  # fmt: skip
    assert "6 of 6 evaluated" in explored
    searched = run("search", "small_net:net", "--images", "train.npy", "--bops", "0.01", "--widths", "1,2", "-o",
                   "found.json")  # fmt: skip
    assert "block.conv1" in searched
    assert fxfactor.Plan.load("found.json").explain().budget.keys() == {"bops"}
    with pytest.raises(SystemExit) as ended:
        main(["explore", "small_net:net", "--images", "train.npy", "--validation", "train.npy"])
    assert ended.value.code == 1
    assert "cannot read the validation set" in capsys.readouterr().err


# ---- one network at many bits ----


@pytest.mark.parametrize("boundary_bits", [8, 4, None])
def test_networks_between_the_fewest_and_the_most_bits_are_those_that_quantizing_gives(
    boundary_bits: int | None,
) -> None:
    from fxfactor.exploration.bit_widths import BitWidths
    from fxfactor.passes import Quantize
    from fxfactor.quantization.calibrate import count_activations, set_ranges
    from fxfactor.quantization.plain_copy import freeze

    graph = fxfactor.transform(_model(), level=2, calibration=TRAIN).eval()

    def plan(*pair: int) -> fxfactor.Plan:
        return fxfactor.Plan.uniform(fxfactor.capture(_model(), TRAIN[0]), 2, *pair, boundary_bits)

    def quantized(*pair: int) -> Any:
        return fxfactor.Pipeline(Quantize(plan=plan(*pair)))(graph).graph.eval()

    precisions = BitWidths(quantized(2, 2), quantized(8, 8))
    assert precisions.alike
    histograms = count_activations(precisions.network, TRAIN)
    for pair in ((2, 2), (3, 6), (8, 4), (8, 8)):
        wanted = set_ranges(quantized(*pair), histograms)
        found = precisions.frozen(plan(*pair), pair[1], histograms)
        torch.testing.assert_close(found(TRAIN[0]), freeze(wanted)(TRAIN[0]), rtol=0, atol=0)
        assert precisions.cost(plan(*pair), pair[1]).layers == fxfactor.cost(wanted).layers
        assert precisions.cost(plan(*pair), pair[1]).total_weight_bits == fxfactor.cost(wanted).total_weight_bits
