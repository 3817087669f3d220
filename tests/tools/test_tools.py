"""The tools run, say what they measured, and write it as JSON."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.processes import run_python

TOOLS = Path(__file__).parents[2] / "tools"


def result(tmp_path, tool, *options):
    done = run_python(TOOLS / tool, *options, "--json", tmp_path / "result.json")
    assert done.returncode == 0, done.stderr
    return done.stdout, json.loads((tmp_path / "result.json").read_text())


STEP = ("bench_model.py", "--size", "75", "--rounds", "2", "--device", "cpu", "--amp", "fp32")


def test_bench_model_measures_the_step_beside_a_matrix_product(tmp_path):
    _, measured = result(tmp_path, *STEP, "--batch", "2", "4", "--trace", tmp_path / "trace.json")
    assert [row["batch"] for row in measured["batches"]] == [2, 4]
    for row in measured["batches"]:
        assert min(row["evaluate"]["min"], row["train"]["min"], row["share_of_product"]) > 0
        assert 0 < row["step_seconds"]["median"] <= row["step_seconds"]["p95"]
    assert measured["forward_flop_per_image"] > 5e8
    assert "--batch 2 4" in measured["command"]
    events = json.loads((tmp_path / "trace.json").read_text())["traceEvents"]
    assert any(event["name"] == "aten::convolution_backward" for event in events)


def test_bench_model_that_is_killed_leaves_what_it_has_measured(tmp_path):
    file = tmp_path / "result.json"
    line = [sys.executable, TOOLS / STEP[0], *STEP[1:], "--batch", "2", "256", "--json", file]
    with subprocess.Popen(list(map(str, line)), stdout=subprocess.DEVNULL) as process:
        while not (file.exists() and file.read_text().endswith("}\n")):
            assert process.poll() is None
            time.sleep(0.01)
        process.kill()
    measured = json.loads(file.read_text())
    assert [row["batch"] for row in measured["batches"]] == [2]
    assert measured["batches"][0]["share_of_product"] > 0


def test_bench_model_holds_each_way_against_timms_network(tmp_path, monkeypatch):
    """timm is no dependency: a module in its place makes a network of its own, from a name of torchvision's as timm does."""
    (tmp_path / "timm.py").write_text(
        "from torch import nn\n"
        "from torchvision.ops.misc import FrozenBatchNorm2d\n"
        "def create_model(name, *, pretrained, num_classes, drop_rate):\n"
        "    assert name == 'inception_resnet_v2'\n"
        "    return nn.Sequential(nn.Conv2d(3, num_classes, 75), nn.Flatten())\n"
    )
    monkeypatch.setenv("PYTHONPATH", str(tmp_path), prepend=os.pathsep)
    shown, measured = result(tmp_path, *STEP, "--arch", "slim", "--batch", "2", "--merge", "on", "off", "--vs", "timm")
    ways = [(row["network"], row["merge"]) for row in measured["batches"]]
    assert ways == [("slim", "on"), ("slim", "off"), ("timm", "off")]
    assert [(row["merge"], row["ratio"]["min"] > 0) for row in measured["times_timm"]] == [("on", True), ("off", True)]
    assert "× timm's" in shown


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--vs", "timm"), "--arch slim"),
        (("--norm", "shared"), "torchrun"),
        (("--size", "40"), "at least 75"),
        (("--batch", "1"), "--batch 1 at --size 75 leaves one value of a channel to normalise"),
        (("--compile",), "each need a value at least"),
        (("--json", "/none/result.json"), "/none/result.json cannot be written; choose another --json"),
    ],
)
def test_bench_model_refuses_what_it_cannot_measure_in_a_sentence(options, said):
    done = run_python(TOOLS / "bench_model.py", "--device", "cpu", "--batch", "2", "--size", "75", *options)
    assert done.returncode == (65 if "--json" in options else 2)
    assert not done.stdout
    assert said in done.stderr
    assert "Traceback" not in done.stderr


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
    assert "there is no part 'model'; known are: tests demo data_cuda data_mixed data_engines paper slim" in done.stderr
    assert not (tmp_path / "out").exists()
