"""Gradients that are no finite numbers: one is passed over, many in a row end the run, with the rank and records named."""

import pytest

from fastirv2.data import sampler
from tests.processes import run_python, run_ranks
from tests.train.conftest import assert_done, latest, metrics

RECORDS = 9 * 23  # 26 steps of 8 images


@pytest.fixture
def planted(light, file_list, tmp_path):
    """Runs the trainer for an epoch of 26 steps with a NaN in the first image of some, on one rank or on all (-1)."""
    many = tmp_path / "many.txt"
    many.write_text("".join(f"{file_list.parent}/{line}\n" for line in file_list.read_text().splitlines()) * 9)

    def run(out, *options, steps, rank=-1, ranks=1):
        data = {"train": many, "val": file_list}
        options = ("--train.epochs", "1", "--log.every", "13", *options)
        arguments = ("-m", "tests.train.planted", *steps, rank, *light.arguments(out, *options, **data)[2:])
        return run_python(*arguments) if ranks == 1 else run_ranks(ranks, *arguments)

    return run


@pytest.mark.parametrize("amp", ["fp32", "bf16", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_one_at_step_20_is_passed_over_and_said(planted, tmp_path, amp):
    run = tmp_path / "run"
    done = planted(run, "--train.amp", amp, steps=(20, 20))
    assert_done(done)
    assert "a step before step 27 did not count" in done.stderr
    assert [(line["images"], line["skipped_steps"]) for line in metrics(run, "train")] == [(13 * 8, 0), (13 * 8, 1)]
    assert all(value.isfinite().all() for value in latest(run)["model"].values())


@pytest.mark.parametrize("amp", ["fp32", pytest.param("fp16", marks=pytest.mark.gpu)])
def test_many_from_step_20_end_the_run_with_what_was_saved_before(planted, tmp_path, amp):
    run = tmp_path / "run"
    ended = planted(run, "--train.amp", amp, "--train.patience", "4", "--checkpoint.steps", "10", steps=(20, 100))
    assert_done(ended, 70)
    assert "no finite number in 4 steps in a row, the loss itself on rank 0, by step 25: training diverged" in ended.stderr
    state = latest(run)
    assert state["step"] == 20
    assert all(value.isfinite().all() for value in state["model"].values())


def test_many_from_step_20_on_one_rank_end_all_with_its_records_named(planted, tmp_path):
    run = tmp_path / "run"
    options = ("--train.amp", "bf16", "--train.patience", "3", "--checkpoint.steps", "1", "--train.sync-bn", "local")
    ended = planted(run, *options, steps=(20, 100), rank=1, ranks=2)  # with shared statistics it would spread
    assert "the gradient was no finite number in 3 steps in a row, the loss itself on rank 1, by step 24" in ended.stderr
    assert ended.stderr.count("training diverged") == 1
    assert ended.returncode == 70
    (line,) = metrics(run, "diverged")
    assert (line["rank"], line["step"]) == (1, 24)
    assert line["records"] == sampler.batch(0, 23, RECORDS, 8, 2, 1).tolist()
    assert all(value.isfinite().all() for value in latest(run)["model"].values())


def test_fp16_is_refused_on_a_cpu(light, tmp_path):
    refused = light(tmp_path / "run", "--train.amp", "fp16", "--train.device", "cpu")
    assert_done(refused, 2)
    assert "--train.amp fp16 needs an NVIDIA GPU" in refused.stderr
    assert not (tmp_path / "run").exists()
