"""A recipe small enough to be trained within a test, and ways to start and read runs."""

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

from tests.processes import run_python, torchrun

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

    def arguments(self, out, *options, train=None, val=None):
        paths = ("--train", str(train or self.data), "--val", str(val or self.data), "--out", str(out))
        return ("-m", "fastirv2.train", "--recipe", str(self.recipe), *paths, *options)

    def __call__(self, out, *options, ranks=1, **paths):
        arguments = self.arguments(out, *options, **paths)
        return run_python(*arguments) if ranks == 1 else torchrun(ranks, *arguments)

    def start(self, out, *options):
        line = [sys.executable, *self.arguments(out, *options)]
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.fixture
def trainer(tmp_path, lmdb_folder):
    recipe = tmp_path / "small.toml"
    recipe.write_text(RECIPE)
    return Trainer(recipe, lmdb_folder)


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


def wait_for_line(run, text, process):
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        path = run / "metrics.jsonl"
        if path.exists() and text in path.read_text():
            return
        time.sleep(0.02)
    pytest.fail(f"no {text} within 120 s: {process.communicate()}")
