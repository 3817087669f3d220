"""The ways to run a step that are held against one another: which there are, and what is said of one that cannot be taken."""

import sys
from types import SimpleNamespace

import pytest
import torch

from fastirv2.errors import DataError, UsageError
from tests.tools.test_tools import TOOLS

sys.path.insert(0, str(TOOLS))

import step_ways
from step_ways import Runner, Way, all_ways, network
from timm_network import _features

from tests.training.reduced import reduced


def runner(device="cpu"):
    """One that has no network yet."""
    made = Runner.__new__(Runner)
    made.device = torch.device(device)
    return made


def test_all_ways_are_taken_and_torchs_normalisation_runs_eagerly_as_drawn():
    assert all_ways("slim", ("off", "full"), ("on",), ("local", "torch"), "timm") == [
        Way("slim", "off", "on", "local"), Way("slim", "full", "on", "local"), Way("slim", "off", "off", "torch"),
        Way("timm", "off", "off", "local"), Way("timm", "full", "off", "local"),
    ]  # fmt: skip


@pytest.mark.parametrize(("device", "seconds"), [("cuda", 4 * 0.5), ("cpu", 0.5)])
def test_steps_that_a_gpu_is_given_at_once_are_counted_one_by_one(monkeypatch, device, seconds):
    monkeypatch.setattr(step_ways, "seconds_of", lambda work, on: seconds)
    assert runner(device).step_seconds() == 0.5


def test_a_trace_that_cannot_be_written_is_a_sentence(tmp_path):
    with pytest.raises(DataError, match="cannot be written: No such file or directory; choose another --trace"):
        runner().write_trace(tmp_path / "none/trace.json")


def test_torchs_normalisation_over_ranks_on_a_cpu_is_refused(monkeypatch):
    monkeypatch.setattr(step_ways, "create", lambda *_, **__: torch.nn.Identity())
    monkeypatch.setattr(step_ways.dist, "is_initialized", lambda: True)
    with pytest.raises(UsageError, match="--norm torch needs GPUs"):
        network(Way("slim", "off", "off", "torch"), SimpleNamespace(device=torch.device("cpu")))


def test_features_of_timms_network_are_taken_in_its_layers_order():
    """By slim's layers, which have the same names: what they come to before the pool."""
    model, features = reduced("slim").eval(), []
    model.pool.register_forward_hook(lambda _, inputs, __: features.append(inputs[0]))
    images = torch.randn(1, 3, 75, 75)
    with torch.no_grad():
        model(images)
        assert torch.equal(_features(model, images), features[0])
