"""The trainer's soak kills ranks and their launcher at any moment, and sees when a bit differs."""

import json
import random
import shutil
import sys

import pytest
import torch

from fastirv2.errors import DataError
from tests.tools.test_tools import TOOLS

sys.path.insert(0, str(TOOLS))

import soak_train


def test_killed_three_times_a_run_of_60_steps_on_two_ranks_ends_as_an_undisturbed_one(file_list, tmp_path, monkeypatch):
    """With a small network; that of the soak is the paper's."""
    lines = [f"{file_list.parent}/{line}\n" for line in file_list.read_text().splitlines()]
    for name, times in (("train", 5), ("val", 1)):  # two epochs
        (tmp_path / name).write_text("".join(lines * times))
    monkeypatch.setenv("PASS_SECONDS", "0.1")
    case = soak_train.Case(tmp_path, steps=60, ranks=2, module="tests.train.small_network")
    soaked = soak_train.soak(tmp_path, case, kills=3, seed=random.randrange(2**32))
    assert (soaked["steps"], soaked["ranks"], soaked["same"]) == (60, 2, True)
    assert len(soaked["stops"]) == 3
    assert {stop["killed"] for stop in soaked["stops"]} <= {"torchrun", "rank 0", "rank 1"}
    assert soaked["lines"] >= 20


@pytest.fixture
def runs(tmp_path):
    """Two small runs that are the same but for the clock."""
    for name, clock in (("calm", 1.0), ("other", 2.0)):
        (tmp_path / name / "checkpoints").mkdir(parents=True)
        state = {"model": {"weight": torch.arange(4.0)}, "optimizer": [torch.ones(2)], "interval_seconds": clock, "step": 2}
        torch.save(state, tmp_path / name / "checkpoints/latest.pt")
        lines = [{"kind": "begin", "step": int(clock)}, *({"kind": "train", "step": step, "time": clock} for step in (1, 2))]
        lines += [{"kind": "val", "step": 2, "weights": weights} for weights in ("raw", "ema")]
        (tmp_path / name / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return tmp_path / "calm", tmp_path / "other"


def test_the_clock_is_no_difference(runs):
    assert soak_train.compare(*runs) == {"lines": 4, "tensors": 2}


def test_a_bit_of_a_weight_and_a_step_that_is_logged_twice_are_differences(runs, tmp_path):
    copy = shutil.copytree(runs[1], tmp_path / "copy")
    state = torch.load(copy / "checkpoints/latest.pt", weights_only=True)
    state["model"]["weight"][3] = torch.nextafter(state["model"]["weight"][3], torch.tensor(9.0))
    torch.save(state, copy / "checkpoints/latest.pt")
    with pytest.raises(DataError, match=r"in state\.model\.weight$"):
        soak_train.compare(runs[0], copy)
    with (runs[1] / "metrics.jsonl").open("a") as file:
        file.write('{"kind": "train", "step": 2}\n')
    with pytest.raises(DataError, match=r"in metrics\.jsonl, train lines of step 2: 2$"):
        soak_train.compare(*runs)
