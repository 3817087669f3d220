"""Runs whose network is compiled, end to end, over a schedule of sizes."""

import os
import re

import pytest
import torch

from tests.processes import run_python, torchrun
from tests.train.conftest import assert_done, latest, learned

SIZES = ("--input.sizes", "1:75", "2:83", "3:91", "--input.resize", "100", "--input.crop", "91")
OPTIONS = ("--train.compile", "regional", "--ema.decay", "0.9", "--train.recalibrate", "2", *SIZES)


def train(trainer, run, *options, ranks=1, backend="aot_eager"):
    arguments = ("-m", "tests.train.compiled_run", *trainer.arguments(run, *options)[2:])
    environment = {"env": {**os.environ, "BACKEND": backend}}
    done = run_python(*arguments, **environment) if ranks == 1 else torchrun(ranks, *arguments, **environment)
    assert_done(done)
    return done.stdout


@pytest.mark.parametrize("backend", ["aot_eager", pytest.param("inductor", marks=pytest.mark.soak)])
def test_sizes_that_grow_are_compiled_once_each_and_a_run_that_stopped_goes_on_with_the_same_bits(trainer, tmp_path, backend):
    """Two kinds of block, at three sizes in training and at one in validation: of weights, and of their averages."""
    said = train(trainer, tmp_path / "whole", *OPTIONS, backend=backend)
    assert "compiled block by block" in said
    assert sum(map(int, re.findall(r"compiled (\d+) graphs in \d+ s", said))) <= 2 * 4
    assert "for images of 75, 83, 91 pixels" in said
    train(trainer, tmp_path / "parts", *OPTIONS, "--train.stop-after", "5", backend=backend)
    assert "going on after step 5" in train(trainer, tmp_path / "parts", *OPTIONS, backend=backend)
    assert learned(tmp_path / "parts") == learned(tmp_path / "whole")
    whole, parts = latest(tmp_path / "whole")["model"], latest(tmp_path / "parts")["model"]
    assert all(torch.equal(parts[name], value) for name, value in whole.items())


@pytest.mark.soak
@pytest.mark.parametrize("shared", ["4", "8"])
def test_two_ranks_compile_with_gradients_averaged_and_stages_computed_again(trainer, tmp_path, shared):
    """With statistics over each rank's images, or over both ranks'. A run may go on compiled that was begun without."""
    options = ("--train.amp", "fp64", "--train.bn-batch", shared, "--train.recompute", "1")
    train(trainer, tmp_path / "1", *options, "--train.stop-after", "3")
    train(trainer, tmp_path / "2", *options, "--train.stop-after", "2", ranks=2)
    train(trainer, tmp_path / "2", *options, "--train.stop-after", "3", "--train.compile", "regional", ranks=2)
    for name, value in latest(tmp_path / "1")["model"].items():
        torch.testing.assert_close(latest(tmp_path / "2")["model"][name], value, rtol=1e-9, atol=1e-9, msg=name)
