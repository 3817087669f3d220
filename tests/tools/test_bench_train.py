"""The trainer's loop beside its step and its input, and what bounds a run: measured with a network of three small blocks."""

import json
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from fastirv2 import models
from fastirv2.config import Config
from fastirv2.data.samples import InputConfig
from fastirv2.errors import DataError, StoppedError, UsageError
from fastirv2.models import ModelConfig
from fastirv2.models.layers import Classifier, ConvNorm, GlobalPool
from fastirv2.training.plan import make_plan
from tests.tools.test_tools import TOOLS

sys.path.insert(0, str(TOOLS))

import bench_train
import diagnose
import train_rates
from diagnose import Rates, hours, next_option
from train_rates import Loop, measure, opened_run, slowest, summed_up
from train_trace import STEPS, write_trace

SMALL = ("--recipe", "demo", "--input.resize", "82", "--input.crop", "75", "--input.threads", "1", "--train.device", "cpu")


@pytest.fixture
def small_network(monkeypatch):
    def create(classes, dropout):
        return nn.Sequential(ConvNorm(3, 8, 3, stride=2), ConvNorm(8, 16, 3, stride=2), GlobalPool(), Classifier(16, classes))

    monkeypatch.setitem(models.ARCHITECTURES, "paper", create)
    for name, value in {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1, "LOCAL_WORLD_SIZE": 1}.items():
        monkeypatch.setenv(name, str(value))


def run(monkeypatch, tool, *options):
    monkeypatch.setattr(sys, "argv", [tool.PROGRAM, *map(str, options)])
    tool.main()


def test_the_loop_its_step_and_its_input_are_measured_in_turn(monkeypatch, small_network, lmdb_folder, tmp_path):
    out, trace = tmp_path / "out.json", tmp_path / "trace.json"
    options = ("--data", lmdb_folder, "--batch", 4, "--seconds", 0.05, "--rounds", 2, *SMALL)
    run(monkeypatch, bench_train, *options, "--json", out, "--trace", trace)
    row = json.loads(out.read_text())
    assert (row["ranks"], row["batch"], row["accumulation"], row["crop"], row["compile"]) == (1, 4, 1, 75, "off")
    for name in ("both", "synthetic", "input"):
        assert 0 < row[name]["step_seconds"]["median"] <= row[name]["step_seconds"]["p95"]
        assert row[name]["images_per_second"]["min"] > 0
    ratio = row["both_to_synthetic"]
    assert 0 < ratio["min"] <= ratio["median"] <= ratio["max"]
    names = [event.get("name") for event in json.loads(trace.read_text())["traceEvents"]]
    assert [names.count(part) for part in ("batch", "pass", "update")] == [10, 10, 10]
    assert "images/s" in bench_train.show(row, 1.0)


def test_a_screen_says_what_bounds_a_run(monkeypatch, capsys, small_network, lmdb_folder, tmp_path):
    out = tmp_path / "out.json"
    run(monkeypatch, diagnose, lmdb_folder, "--batch", 4, "--minutes", 0.01, *SMALL, "--json", out)
    said, found = capsys.readouterr().out, json.loads(out.read_text())
    assert len(said.splitlines()) <= 24
    for title in ("bound by", "lost to input", "roofline", "90 epochs of ImageNet", "try next"):
        assert title in said
    rates = found["images_per_second_a_rank"]
    assert found["hours_of_90_epochs"]["8"] == pytest.approx(90 * 1_281_167 / rates["both"] / 8 / 3600)
    assert {"machine", "command"} <= set(found)


@pytest.mark.parametrize(
    ("rates", "bound", "lost"),
    [
        (Rates(input=4000, step=1000, both=990), "step", 0.01),
        (Rates(input=500, step=1000, both=490), "input", 0.51),
        (Rates(input=1200, step=1000, both=700), "overlap", 0.3),
    ],
)
def test_what_bounds_is_the_slower_or_neither(rates, bound, lost):
    assert rates.bound == bound
    assert rates.lost == pytest.approx(lost)


def plan(batch, world=1):
    return make_plan(
        global_batch=batch * world, world=world, batch=batch, bn_batch=batch, sync_bn="auto", count=1000, epochs=1
    )


def test_the_next_option_is_one_that_is_not_yet_taken_and_would_be_accepted():
    def of_the_step(batch, world=1, device="cuda", **settings):
        return next_option("step", Config(train=replace(Config().train, **settings)), plan(batch, world), device)

    assert of_the_step(256, device="cpu") == "a GPU"
    assert of_the_step(256).startswith("--train.compile full")
    assert of_the_step(256, compile="off") == "--train.compile regional"
    assert "--train.cuda-graph on" in of_the_step(16)
    assert "--train.batch auto" in of_the_step(16, world=2)
    assert "--train.batch auto" in of_the_step(64)
    assert of_the_step(256, compile="full").startswith("--trace")
    drawn = Config(model=ModelConfig(merge="off"))
    assert next_option("step", drawn, plan(256), "cuda").startswith("--model.merge on")
    assert "--input.prefetch 4" in next_option("overlap", Config(), plan(64), "cuda")


@pytest.mark.parametrize(
    ("given", "advice"),
    [
        (InputConfig(resize=328), "--resize 328x328"),
        (InputConfig(resize=328, resize_mode="short"), "--resize short:328"),
        (InputConfig(resize=328, augment="area"), "--resize short:328"),
    ],
)
def test_smaller_records_are_those_that_the_input_can_be_made_of(given, advice):
    assert advice in next_option("input", Config(input=given), plan(64), "cpu")


@pytest.fixture
def of_two_passes(small_network, lmdb_folder):
    """A run whose steps are of 8 images in two passes, and its configuration."""
    sizes = ("--train.global-batch", "8", "--train.batch", "4", "--train.bn-batch", "4")
    with opened_run(["--train", str(lmdb_folder), "--val", str(lmdb_folder), *SMALL, *sizes], "bench_train") as opened:
        yield opened


def test_rates_are_of_whole_steps_over_their_seconds(monkeypatch, of_two_passes):
    run, config = of_two_passes
    seconds, waits = {"both": 0.4, "synthetic": 0.2, "input": 0.1}, iter([99.0, 0.3, 99.0, 99.0])
    monkeypatch.setattr(train_rates, "taken", lambda work, count, _: [seconds[work.__name__]] * count)
    monkeypatch.setattr(run.train, "wait_seconds", lambda: next(waits))
    row = measure(run, config, rounds=1, seconds=0.0)
    assert (row["batch"], row["accumulation"], row["steps_a_turn"]) == (4, 2, 3)
    assert [row[name]["images_per_second"]["median"] for name in seconds] == pytest.approx([20, 40, 80])
    assert row["both_to_synthetic"]["median"] == pytest.approx(0.5)
    assert row["data_wait_share"] == pytest.approx(0.25)


def test_the_input_of_a_step_is_the_batches_of_all_its_passes(monkeypatch, of_two_passes):
    run, config = of_two_passes
    loop, batches = Loop(run, config.input.prefetch), iter(range(9))
    with monkeypatch.context() as patch:
        patch.setattr(run, "train", batches)
        loop.input()
    assert next(batches) == 2


def test_the_batch_that_lies_ready_is_not_the_loaders(of_two_passes):
    run, config = of_two_passes
    loop = Loop(run, config.input.prefetch)
    before = loop.ready[0].clone()
    for _ in range(4):
        loop.input()
    assert torch.equal(loop.ready[0], before)


def test_a_signal_ends_the_measuring_with_a_sentence(monkeypatch, of_two_passes):
    run, config = of_two_passes
    monkeypatch.setattr(run, "agree", lambda: SimpleNamespace(signal=15))
    with pytest.raises(StoppedError, match="stopped by SIGTERM: nothing was written"):
        measure(run, config, rounds=1, seconds=0.0)


def test_a_step_takes_what_it_takes_on_the_slowest_rank(monkeypatch):
    monkeypatch.setattr(train_rates, "from_all", lambda _: [[1.0, 2.0], [3.0, 1.0]])
    assert slowest([1.0, 2.0]) == [3.0, 2.0]


def test_steps_are_summed_up_over_the_turns():
    found = summed_up([[1.0] * 19, [1.0] * 61 + [3.0] * 20], 8)
    assert found["step_seconds"] == {"median": 1.0, "p95": 3.0}
    assert found["images_per_second"]["max"] == 8
    assert found["images_per_second"]["min"] == pytest.approx(8 * 81 / 121)


def test_what_is_measured_is_the_largest_crop(small_network, lmdb_folder):
    sizes = ("--train.global-batch", "4", "--train.batch", "4", "--train.bn-batch", "4", "--input.sizes", "1:75", "2:79")
    with opened_run(["--train", str(lmdb_folder), "--val", str(lmdb_folder), *SMALL, *sizes], "bench_train") as (run, config):
        assert Loop(run, config.input.prefetch).ready[0].shape == (4, 3, 79, 79)
        assert run.crops == [(1, 79)]


def test_a_rank_that_writes_no_trace_takes_the_steps_of_the_one_that_does(tmp_path):
    rank = SimpleNamespace(process=SimpleNamespace(first=False), engine=SimpleNamespace(device=torch.device("cpu")))
    steps = []
    write_trace(rank, lambda: steps.append(1), tmp_path / "trace.json")
    assert len(steps) == STEPS
    assert not list(tmp_path.iterdir())


def test_what_cannot_be_written_or_shown_is_said_before_anything_is_measured(monkeypatch, small_network, lmdb_folder, tmp_path):
    def measure(*_, **__):
        raise AssertionError("measured")

    for tool, data in ((bench_train, ("--data", lmdb_folder)), (diagnose, (lmdb_folder,))):
        monkeypatch.setattr(tool, "measure", measure)
        with pytest.raises(DataError, match="choose another --trace"):
            run(monkeypatch, tool, *data, *SMALL, "--batch", 4, "--trace", tmp_path / "none/trace.json")
        with pytest.raises(UsageError, match="--nvtx is for Nsight"):
            run(monkeypatch, tool, *data, *SMALL, "--batch", 4, "--nvtx")


@pytest.mark.parametrize("wrong", [{"rounds": 0}, {"seconds": 0.0}, {"images": 0}, {"batch": -1}])
def test_what_cannot_be_measured_is_refused(wrong):
    with pytest.raises(UsageError, match="--rounds and --images must be at least 1"):
        bench_train.Options(**wrong)


def test_the_predecessors_rate_takes_the_21_days():
    assert hours(63.5, 1) == pytest.approx(21 * 24, rel=0.01)


def test_ranks_that_are_no_numbers_are_refused():
    with pytest.raises(UsageError, match="--ranks 1,x is no list of numbers"):
        bench_train.Options(ranks="1,x").numbers()
