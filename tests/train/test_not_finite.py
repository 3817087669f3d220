"""Gradients that are no finite numbers: one is passed over, many in a row end the run, with the rank and records named."""


import pytest

from fastirv2.data import sampler
from tests.processes import run_python, torchrun
from tests.train.conftest import assert_done, latest, metrics

PLANTED = """
import sys
import torch.distributed as dist
from fastirv2 import train
from fastirv2.training import engine

first, last, rank = map(int, sys.argv[1:4])
sys.argv[1:] = sys.argv[4:]
taken, own = 0, engine.NORMALISE["unit"]

def spoilt(images, dtype):
    global taken
    taken += 1
    images = own(images, dtype)
    if first <= taken <= last and rank in (-1, dist.get_rank() if dist.is_initialized() else 0):
        images[0, 0, 0, 0] = float("nan")
    return images

engine.NORMALISE["unit"] = spoilt
train.run_command(train.command, train.PROGRAM)
"""


@pytest.fixture
def planted(trainer, tmp_path):
    """Runs the trainer with a NaN in the first image of some steps, on one rank or on all (-1)."""
    script = tmp_path / "planted.py"
    script.write_text(PLANTED)

    def run(out, *options, steps, rank=-1, ranks=1):
        arguments = (script, *steps, rank, *trainer.arguments(out, *options)[2:])
        return run_python(*arguments) if ranks == 1 else torchrun(ranks, *arguments)

    return run


def test_one_is_passed_over_and_said(planted, tmp_path):
    run = tmp_path / "run"
    done = planted(run, "--train.amp", "bf16", "--train.epochs", "1", "--log.every", "3", steps=(2, 2))
    assert_done(done)
    assert "a step before step 4 did not count" in done.stderr
    (line,) = metrics(run, "train")
    assert (line["images"], line["skipped_steps"]) == (24, 1)
    assert all(value.isfinite().all() for value in latest(run)["model"].values())


def test_many_in_a_row_on_one_rank_end_all_with_its_records_named(planted, tmp_path):
    run = tmp_path / "run"
    options = ("--train.patience", "3", "--checkpoint.steps", "1", "--train.sync-bn", "local")  # shared, it would spread
    ended = planted(run, *options, steps=(3, 100), rank=1, ranks=2)
    assert "the gradient was no finite number in 3 steps in a row, the loss itself on rank 1, by step 7" in ended.stderr
    assert ended.stderr.count("training diverged") == 1
    (line,) = metrics(run, "diverged")
    assert (line["rank"], line["step"]) == (1, 7)
    assert line["records"] == sampler.batch(0, 6, 23, 8, 2, 1).tolist()
    assert all(value.isfinite().all() for value in latest(run)["model"].values())


def test_fp16_is_refused_on_a_cpu(trainer, tmp_path):
    refused = trainer(tmp_path / "run", "--train.amp", "fp16", "--train.device", "cpu")
    assert_done(refused, 2)
    assert "--train.amp fp16 needs an NVIDIA GPU" in refused.stderr
    assert not (tmp_path / "run").exists()
