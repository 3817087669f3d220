"""The tools run, say what they measured, and write it as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_python

TOOLS = Path(__file__).parents[2] / "tools"


def result(tmp_path, tool, *options):
    done = run_python(TOOLS / tool, *options, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "result.json").read_text())


def test_bench_model_measures_the_step_beside_a_matrix_product(tmp_path):
    options = ("--size", "75", "--batch", "2", "4", "--rounds", "2", "--device", "cpu", "--amp", "fp32")
    _, measured = result(tmp_path, "bench_model.py", *options)
    assert [row["batch"] for row in measured["batches"]] == [2, 4]
    for row in measured["batches"]:
        assert min(row["evaluate"]["min"], row["train"]["min"], row["share_of_product"]) > 0
    assert measured["forward_flop_per_image"] > 5e8


def test_gpu_check_says_when_there_is_no_gpu(tmp_path):
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    line, environment = [TOOLS / "gpu_check.sh", tmp_path / "out"], {"PATH": "/usr/bin:/bin", "PYTHON": sys.executable}
    done = subprocess.run(line, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "sees no NVIDIA GPU here" in done.stderr


def test_gpu_check_knows_its_parts(tmp_path):
    done = subprocess.run([TOOLS / "gpu_check.sh", tmp_path / "out", "model"], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert "there is no part 'model'; known are: tests demo data paper slim sizes timm" in done.stderr
    assert not (tmp_path / "out").exists()
