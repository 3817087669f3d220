"""The tools run, say what they measured, and write it as JSON."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.processes import run_python
from tests.report.test_metrics import LINES

TOOLS = Path(__file__).parents[2] / "tools"


def result(tmp_path, tool, *options):
    done = run_python(TOOLS / tool, *options, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "result.json").read_text())


def test_plot_log_draws_runs_and_gives_their_rows(tmp_path):
    runs = [tmp_path / name for name in ("a", "b")]
    for run in runs:
        run.mkdir()
        (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in LINES))
    said, rows = result(tmp_path, "plot_log.py", *runs, "--out", tmp_path / "both.png")
    assert f"{runs[0]}: 40.000 / 10.000 % after epoch 2" in said
    assert [row["val_top1_error"] for row in rows[str(runs[1])]] == [60, 40]
    assert (tmp_path / "both.png").stat().st_size > 1000


def test_plot_log_refuses_what_is_no_run(tmp_path):
    done = run_python(TOOLS / "plot_log.py", tmp_path)
    assert (done.returncode, done.stderr) == (65, f"plot_log: {tmp_path} is no run folder: it has no metrics.jsonl\n")


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
