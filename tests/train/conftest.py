"""A recipe small enough to be trained within a test, and ways to start and read runs."""

import json
import os
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests import nursery
from tests.processes import run_python, run_ranks, torchrun

OF_THE_RUN = ("config", "interval_seconds", "unlogged")  # what a checkpoint holds of a run besides what it has learned
RECIPE = """
[input]
resize = 82
crop = 75
threads = 1
[schedule]
kind = "cosine"
rate = 0.01
batch = 8
[train]
epochs = 3
global_batch = 8
bn_batch = 8
amp = "fp32"
[log]
every = 1
"""


@dataclass(frozen=True)
class Trainer:
    """Starts the command on the small data set."""

    recipe: Path
    data: Path
    module: str = "fastirv2.train"

    def arguments(self, out, *options, train=None, val=None):
        paths = ("--train", str(train or self.data), "--val", str(val or self.data), "--out", str(out))
        return ("-m", self.module, "--recipe", str(self.recipe), *paths, *options)

    def __call__(self, out, *options, ranks=1, launched=False, **paths):
        """Run it on so many ranks, `launched` by torchrun or each started by itself."""
        arguments = self.arguments(out, *options, **paths)
        if launched:
            return torchrun(ranks, *arguments)
        return run_python(*arguments) if ranks == 1 else run_ranks(ranks, *arguments)

    def start(self, out, *options, **paths):
        """Start a run to which something is to happen, and whose passes take their time for it."""
        return nursery.start(*self.arguments(out, *options, **paths), env={**os.environ, "PASS_SECONDS": "0.1"})


@pytest.fixture
def trainer(tmp_path, lmdb_folder):
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    return Trainer(recipe, lmdb_folder)


def light_trainer(folder, data):
    """A trainer with a small network, for what has to do with runs and not with their network; its recipe is in `folder`."""
    recipe = folder / "small.toml"
    recipe.write_text(RECIPE)
    return Trainer(recipe, data, module="tests.train.small_network")


@pytest.fixture
def light(tmp_path, lmdb_folder):
    return light_trainer(tmp_path, lmdb_folder)


def metrics(run, kind):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if line["kind"] == kind]


def learned(run):
    """The lines of a run without what depends on the clock and the machine."""
    clock = ("time", "seconds", "images_per_second", "data_wait_share", "data_wait_rank", "flop_utilisation", "memory_bytes")
    return [{k: v for k, v in line.items() if k not in clock} for kind in ("train", "val") for line in metrics(run, kind)]


def latest(run):
    return torch.load(run / "checkpoints/latest.pt", weights_only=True)


def assert_done(process, code=0):
    assert process.returncode == code, process.stdout + process.stderr
    assert "Traceback" not in process.stderr


def leaves(value, name=""):
    """The tensors and plain values in nested ones, each with where it lies."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, (list, tuple)) else ()
    for key, item in items:
        yield from leaves(item, f"{name}.{key}")
    if not items:
        yield name, value


def assert_the_same(run, other):
    """Two runs have learned the same to the bit: every tensor of their checkpoints and every line of their logs."""
    assert learned(run) == learned(other)
    states = [{name: value for name, value in latest(each).items() if name not in OF_THE_RUN} for each in (run, other)]
    assert dict(leaves(states[0])).keys() == dict(leaves(states[1])).keys()
    theirs = dict(leaves(states[1]))
    for name, value in leaves(states[0]):
        assert torch.equal(value, theirs[name]) if isinstance(value, torch.Tensor) else value == theirs[name], name


def goes_on_from_an_earlier_checkpoint(trainer, folder, *options):
    """Train, and then once more from a checkpoint after step 2, as after a kill: both runs end the same."""
    options = ("--checkpoint.steps", "2", "--checkpoint.keep", "99", *options)
    assert_done(trainer(folder / "whole", *options))
    copy = shutil.copytree(folder / "whole", folder / "again", symlinks=True)
    for path in sorted(copy.glob("checkpoints/step-*.pt"))[1:]:
        path.unlink()
    again = trainer(copy, *options)
    assert_done(again)
    assert "going on after step 2\n" in again.stdout
    assert_the_same(folder / "whole", copy)


def wait_for_line(run, text, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"no {text} within 120 s: {process.communicate()}")
