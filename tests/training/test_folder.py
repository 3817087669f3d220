"""The run folder: held by one process, made with one set of settings, and taken up where its checkpoint stands."""

import os
from types import SimpleNamespace

import pytest

from fastirv2.errors import DataError, UsageError
from fastirv2.report.metrics import Metrics, read_metrics
from fastirv2.training.checkpoint import Checkpoints
from fastirv2.training.folder import begun_by_this_job, differences, enter, take_up

TABLE = {"recipe": "mine", "train": {"epochs": 3, "batch": 8}, "log": {"every": 1}}


def train(**changes):
    return TABLE | {"train": TABLE["train"] | changes}


def test_what_may_not_differ_is_told_and_what_an_older_run_does_not_say_was_as_the_defaults_have_it():
    assert differences(TABLE, train(batch=4) | {"recipe": "yours", "log": {"every": 9}}, {}) == []
    assert differences(TABLE, train(epochs=4, new=1), {}) == ["train.epochs: 3 → 4", "train.new: unset → 1"]
    assert differences(train(gone=1), TABLE, {}) == ["train.gone: 1 → unset"]
    defaults = train(epochs=90, new=1)
    assert differences(TABLE, train(new=1), defaults) == []
    assert differences(TABLE, train(new=2), defaults) == ["train.new: 1 → 2"]


def test_a_folder_that_a_process_trains_in_is_neither_entered_nor_moved_aside(tmp_path):
    run = tmp_path / "run"
    lock = enter(run, TABLE, {}, fresh=False)
    for fresh in (False, True):
        with pytest.raises(DataError, match=f"process {os.getpid()} trains in {run} already"):
            enter(run, TABLE, {}, fresh=fresh)
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    os.close(lock)
    os.close(enter(run, train(epochs=4), {}, fresh=True))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["run", "run.1"]
    with pytest.raises(UsageError, match=r"made with other settings \(train\.epochs: 4 → 3\)"):
        enter(run, TABLE, {}, fresh=False)


def test_a_job_that_is_started_again_knows_what_it_has_begun_itself(tmp_path, monkeypatch):
    for name in ("SLURM_JOB_ID", "SLURM_RESTART_COUNT", "TORCHELASTIC_RUN_ID", "TORCHELASTIC_RESTART_COUNT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun says so at the first start
    os.close(enter(tmp_path / "run", TABLE, {}, fresh=False))
    assert not begun_by_this_job(tmp_path / "run")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert begun_by_this_job(tmp_path / "run")
    assert not begun_by_this_job(tmp_path / "none")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    assert not begun_by_this_job(tmp_path / "run")
    os.close(enter(tmp_path / "run", TABLE, {}, fresh=False))  # which goes on with what another job began
    assert not begun_by_this_job(tmp_path / "run")


def line(step, kind="train"):
    return {"kind": kind, "step": step}


@pytest.mark.parametrize("pending", [0, 1])
def test_its_log_goes_as_far_as_its_checkpoint_with_lines_that_a_full_disk_kept_out(tmp_path, pending):
    metrics, checkpoints = Metrics(tmp_path), Checkpoints(tmp_path / "checkpoints")
    for each in (line(1), line(2), line(2, "val"), line(3)):
        metrics.add(each)
    checkpoints.save({"step": 2, "pending": pending, "unlogged": ['{"kind": "bad", "step": 2}\n']}, 2, 0)
    (tmp_path / "checkpoints/step-00000003.pt.new").write_bytes(b"half")
    state = take_up(tmp_path, SimpleNamespace(first=True), SimpleNamespace(warn=pytest.fail))
    assert state["step"] == 2
    validation = [] if pending else [line(2, "val")]  # which comes again
    assert read_metrics(tmp_path / "metrics.jsonl") == [line(1), line(2), *validation, line(2, "bad")]
    assert not list(tmp_path.rglob("*.new"))


def test_a_run_without_a_checkpoint_begins_with_an_empty_log(tmp_path):
    Metrics(tmp_path).add(line(1))
    assert take_up(tmp_path, SimpleNamespace(first=True), SimpleNamespace(warn=pytest.fail)) is None
    assert read_metrics(tmp_path / "metrics.jsonl") == []
