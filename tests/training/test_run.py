"""When a run saves, what it keeps, and what it remembers of its best."""

import time
from types import SimpleNamespace

import pytest

from fastirv2.training.checkpoint import CheckpointConfig, Checkpoints
from fastirv2.training.distributed import Agreed
from fastirv2.training.plan import Plan
from fastirv2.training.run import Run, _kept, restore


def test_checkpoints_come_by_the_clock_once_each_time_and_by_steps():
    run = SimpleNamespace(
        writer=SimpleNamespace(check=lambda: None),
        checkpoint=CheckpointConfig(minutes=1, steps=5),
        process=SimpleNamespace(first=True),
        agreement=SimpleNamespace(reach=lambda *, checkpoint, fault: Agreed(0, checkpoint, fault)),
        saved=time.perf_counter() - 61,
        asked=False,
        fault=None,
        step=3,
    )
    assert [Run.agree(run).checkpoint for _ in range(2)] == [True, False]  # asked for once, until it is saved
    run.step = 5
    assert Run.agree(run).checkpoint
    run.step, run.asked, run.saved = 6, False, time.perf_counter() - 30
    assert not Run.agree(run).checkpoint


def test_epochs_are_kept_for_good_by_their_number():
    plan = Plan(10, 1, 10, 1, 1, 1, 25, 6)  # epochs end at steps 3, 5, 8, 10, 13 and 15
    assert [step for step in range(1, 16) if _kept(plan, step, 2)] == [5, 10, 15]
    assert not any(_kept(plan, step, 0) for step in range(16))


@pytest.mark.parametrize(("there", "best"), [(True, (1.0, 3)), (False, (float("inf"), 0))])
def test_a_best_whose_file_is_gone_is_forgotten(tmp_path, there, best):
    for step in (3, 6) if there else (6,):
        (tmp_path / f"step-{step:08}.pt").touch()
    nothing = SimpleNamespace(load_state_dict=lambda state: None, add_sums=lambda sums: None)
    run = SimpleNamespace(
        engine=SimpleNamespace(model=nothing, gate=nothing, ema=None, train_counts=nothing),
        optimizer=nothing,
        checkpoints=Checkpoints(tmp_path),
        process=SimpleNamespace(first=True, world=1, rank=0),
        best_error=float("inf"),
        best_epoch=0,
        best_step=0,
    )
    state = {"model": {}, "optimizer": {}, "step": 6, "pending": 0, "train_counts": 0, "interval_seconds": 7.0}
    restore(run, state | {"best_step": 3, "best_error": 1.0, "best_epoch": 1})
    assert (run.best_error, run.best_step) == best
    assert run.interval == -7
