"""What is said between steps, and which validation is the best."""

import math
from types import SimpleNamespace

import pytest
import torch

from fastirv2.training import between
from fastirv2.training.distributed import Agreed


def between_steps(said, lines, shares, **changes):
    """A run of which `log_interval` can be asked; those who wait do so for ever unless told otherwise."""
    batches = SimpleNamespace(faults=SimpleNamespace(untold=list), wait_seconds=lambda: 1e9)
    run = SimpleNamespace(
        engine=SimpleNamespace(
            train_counts=SimpleNamespace(take=lambda: torch.tensor([8.0, 4, 6, 8])),
            gate=SimpleNamespace(take_skipped=lambda: 0),
            zero_share=lambda: next(shares),
            device=torch.device("cpu"),
            compiler=None,
        ),
        train=batches,
        val=batches,
        process=SimpleNamespace(world=1, rank=0),
        plan=SimpleNamespace(global_batch=8, epoch_of=lambda step: 1, epochs=1),
        console=SimpleNamespace(warn=said.append),
        reporter=SimpleNamespace(train=lines.append),
        utilisation=None,
        step=5,
        interval=0.0,
        paused=0.0,
        dying=False,
    )
    vars(run).update(changes)
    return run


def test_a_dying_network_is_warned_of_once_and_nobody_waits_longer_than_the_time_there_was():
    said, lines = [], []
    run = between_steps(said, lines, iter([0.9, 0.96, 0.97]))
    for _ in range(3):
        between.log_interval(run, 0.1)
    (warning,) = said
    assert "96.0 % of the activations before the pool are zero at step 5" in warning
    assert {line["data_wait_share"] for line in lines} == {1.0}


def test_what_paused_the_steps_is_no_time_of_theirs_and_the_rank_that_waits_longest_is_named(monkeypatch):
    clock, lines = iter([1000.0, 1000.0, 1060.0, 1060.0]), []
    monkeypatch.setattr(between, "time", SimpleNamespace(perf_counter=lambda: next(clock), time=lambda: 0.0))
    others = torch.tensor([[0, 0.75, 0], [0, 0, 0]])
    monkeypatch.setattr(between, "sum_over_ranks", lambda own: own + others)
    run = between_steps([], lines, iter([0.0, 0.0]), interval=100.0, paused=880.0)
    run.process.world, run.train.wait_seconds = 3, lambda: 10.0
    between.log_interval(run, 0.1)
    between.log_interval(run, 0.1)
    assert [line["images_per_second"] for line in lines] == [8 / 20, 8 / 60]
    assert [(line["data_wait_share"], line["data_wait_rank"]) for line in lines] == [(0.75, 1)] * 2
    assert (run.interval, run.paused) == (1060.0, 0.0)


@pytest.mark.parametrize("agreed", [Agreed(signal=15), Agreed(fault=True)])
def test_a_run_is_told_to_stop_while_statistics_are_taken_anew(agreed):
    """And says before each batch that it goes on, which the watchdog wants to hear."""
    answers, told = iter([Agreed(), Agreed(), agreed]), []

    def recalibration(stop):
        while not stop():
            told.append(None)

    run = SimpleNamespace(
        plan=SimpleNamespace(epochs=2),
        pending=2,
        recalibration=recalibration,
        agreement=SimpleNamespace(reach=lambda **_: next(answers)),
        fault=None,
        val=SimpleNamespace(wait_seconds=lambda: 0, faults=SimpleNamespace(untold=list)),
        paused=0.0,
    )
    assert between.validate(run) is agreed
    assert (len(told), run.pending) == (2, 2)
    assert run.paused > 0  # which is no time of the steps


def test_a_validation_without_a_finite_loss_is_never_the_best(monkeypatch):
    monkeypatch.setattr(between, "settle_statistics", lambda run: None)
    sums, told = torch.tensor([math.inf, 2, 3, 4]), []
    run = SimpleNamespace(
        plan=SimpleNamespace(epochs=3),
        engine=SimpleNamespace(validate=lambda *_: [sums]),
        val=SimpleNamespace(wait_seconds=lambda: 0, faults=SimpleNamespace(untold=list)),
        reporter=SimpleNamespace(epoch=lambda lines, *, best: told.append(best)),
        recalibration=None,
        pending=2,
        val_steps=1,
        paused=0.0,
        best_error=60.0,
        best_epoch=1,
        best_step=3,
        step=6,
        fault=None,
    )
    between.validate(run)
    sums[0] = 1.0
    between.validate(run)
    assert told == [False, True]
    assert (run.best_error, run.best_step, run.pending) == (50.0, 6, 0)
    assert run.paused > 0


def test_averages_decide_what_is_the_best_and_of_equals_the_first_is(monkeypatch):
    monkeypatch.setattr(between, "settle_statistics", lambda run: None)
    own, averaged = torch.tensor([8.0, 5, 8, 8]), torch.tensor([4.0, 6, 7, 8])
    logged, told, anew = [], [], []
    run = SimpleNamespace(
        plan=SimpleNamespace(epochs=3),
        engine=SimpleNamespace(validate=lambda *_: [own, averaged]),
        val=SimpleNamespace(wait_seconds=lambda: 0, faults=SimpleNamespace(untold=list)),
        reporter=SimpleNamespace(epoch=lambda lines, *, best: (logged.append(lines), told.append(best))),
        recalibration=lambda stop: anew.append(run.pending),
        pending=2,
        val_steps=1,
        paused=0.0,
        best_error=30.0,
        best_epoch=1,
        best_step=3,
        step=6,
        fault=None,
    )
    between.validate(run)
    counts = [(line["weights"], line["top1_correct"], line["top5_correct"], line["images"]) for line in logged[0]]
    assert counts == [("raw", 5, 8, 8), ("ema", 6, 7, 8)]
    run.pending, run.step = 3, 9
    between.validate(run)
    assert told == [True, False]
    assert (run.best_error, run.best_epoch, run.best_step) == (25.0, 2, 6)
    assert anew == [3]  # statistics, before the last
