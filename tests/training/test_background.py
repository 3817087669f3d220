"""Checkpoints written in the background hold the state of their step, survive kills and full disks, and lose no best."""

import random
import subprocess
import sys
import threading
import time

import pytest
import torch

from fastirv2.errors import DataError
from fastirv2.training import background
from fastirv2.training.background import BackgroundWriter, HostCopy
from fastirv2.training.checkpoint import Checkpoints, RefusedError, read
from tests.processes import full_disk


class Slow(Checkpoints):
    """A disk that takes nothing before it is told to."""

    def __init__(self, folder):
        super().__init__(folder)
        self.go = threading.Event()

    def save(self, state, step, best_step):
        assert self.go.wait(60)
        super().save(state, step, best_step)


class Heard(list):
    """What was said, and a way to wait for it."""

    def __init__(self):
        self.any = threading.Event()

    def __call__(self, text):
        self.append(text)
        self.any.set()


class Writer(BackgroundWriter):
    def __init__(self, checkpoints, keep=9):
        self.said, self.warned, self.checkpoints = Heard(), Heard(), checkpoints
        super().__init__(checkpoints, lambda best: checkpoints.prune(keep, best, lambda _: False), self.said, self.warned)


@pytest.fixture
def writer(tmp_path):
    writer = Writer(Checkpoints(tmp_path / "checkpoints"))
    yield writer
    writer.close()


def steps_done(model, optimizer, count):
    for _ in range(count):
        model(torch.randn(4, 3, 9, 9)).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()


def test_it_is_the_state_of_its_step_though_training_goes_on(tmp_path):
    slow = Slow(tmp_path / "checkpoints")
    writer = Writer(slow)
    model = torch.nn.Sequential(torch.nn.Conv2d(3, 8, 3), torch.nn.BatchNorm2d(8)).to(memory_format=torch.channels_last)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9, fused=True)
    averages = {"ema": [{"w": model[0].weight.detach().clone()}, (torch.ones(2, dtype=torch.bfloat16), 3)]}
    steps_done(model, optimizer, 3)
    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict(), "nested": averages, "step": 3}
    expected = tmp_path / "expected.pt"
    torch.save({"format": 1, **state}, expected)

    writer.put(state, 3, 3)
    averages["ema"][0]["w"].zero_()
    averages["ema"].append("more")
    steps_done(model, optimizer, 2)
    slow.go.set()
    writer.finish()

    ours, theirs = read(slow.path(3)), read(expected)
    assert not torch.equal(model[0].weight, ours["model"]["0.weight"])
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert ours["model"]["0.weight"].stride() == theirs["model"]["0.weight"].stride()


def test_the_memory_is_made_once_and_anew_where_a_shape_changes():
    memory = HostCopy()
    state = {"a": torch.ones(3), "b": [torch.ones(2, 2)]}
    first = memory.fill(state)
    state["a"] += 1
    second = memory.fill(state)
    assert second["a"].data_ptr() == first["a"].data_ptr() != state["a"].data_ptr()
    assert second["a"].tolist() == [2, 2, 2]
    third = memory.fill({"a": torch.zeros(5), "b": state["b"]})
    assert third["a"].shape == (5,)
    assert third["b"][0].data_ptr() == first["b"][0].data_ptr()
    assert memory.fill({"a": torch.full((5,), 7), "b": state["b"]})["a"].dtype == torch.int64


@pytest.mark.gpu
def test_of_a_gpu_it_is_the_state_between_two_steps():
    memory, state = HostCopy(), {"w": torch.zeros(1 << 24, device="cuda"), "step": torch.tensor(1.0)}
    for step in range(1, 6):
        state["w"].fill_(step)
        copy = memory.fill(state)
        state["w"].fill_(-1)
        memory.wait()
        assert copy["w"].is_pinned()
        assert bool((copy["w"] == step).all())


def test_one_is_written_at_a_time_and_none_is_left_out(writer):
    w = torch.zeros(1000)
    for step in range(1, 9):
        w.fill_(step)
        writer.put({"step": step, "w": w}, step, best_step=2)
    writer.finish()
    assert writer.checkpoints.steps() == list(range(1, 9))
    assert all(float(read(writer.checkpoints.path(step))["w"].mean()) == step for step in range(1, 9))
    assert (writer.checkpoints.folder / "best.pt").resolve() == writer.checkpoints.path(2)


def test_nothing_is_written_before_its_copy_is_there(writer, monkeypatch):
    done = []
    monkeypatch.setattr(HostCopy, "wait", lambda _: done.append("copied"))
    monkeypatch.setattr(writer.checkpoints, "save", lambda *_: done.append("written"))
    writer.put({"step": 1}, 1, 1)
    writer.finish()
    assert done == ["copied", "written"]


def test_older_ones_go_only_when_the_new_one_is_there(tmp_path):
    slow = Slow(tmp_path / "checkpoints")
    writer = Writer(slow, keep=1)
    slow.go.set()
    writer.put({"step": 1}, 1, 1)
    writer.finish()
    slow.go.clear()
    writer.put({"step": 2}, 2, 2)
    assert slow.steps() == [1]
    slow.go.set()
    writer.finish()
    assert slow.steps() == [2]


BIG = {"w": torch.zeros(100_000)}


def test_a_full_disk_is_said_once_and_tried_again_until_there_is_room(writer, monkeypatch):
    monkeypatch.setattr(background, "RETRY_SECONDS", 0.001)
    writer.put({"step": 1}, 1, 1)
    writer.finish()
    with full_disk(100_000):
        writer.put({"step": 2, **BIG}, 2, 1)
        assert writer.warned.any.wait(60)
        writer.put({"step": 3, **BIG}, 3, 1)
        assert writer.checkpoints.steps() == [1]
    assert writer.said.any.wait(60)
    writer.check()
    assert writer.checkpoints.steps() == [1, 3]
    (warning,) = writer.warned
    assert warning.startswith(f"checkpoint {writer.checkpoints.path(2)} cannot be written: File too large (it takes 0.4 MB, ")
    assert "training goes on" in warning
    assert warning.endswith("a kill would lose all that was done after step 1")
    writer.put({"step": 4}, 4, 1)
    writer.finish()
    assert writer.said == [f"checkpoint {writer.checkpoints.path(3)} is written: the disk takes it again"]


def test_the_best_waits_for_room_beside_the_latest(writer):
    with full_disk(100_000):
        writer.put({"step": 1, **BIG}, 1, 1)
        assert writer.warned.any.wait(60)
        for step in (2, 3):
            writer.put({"step": step, **BIG}, step, 1)
    writer.finish()
    assert writer.checkpoints.steps() == [1, 3]
    assert (writer.checkpoints.folder / "best.pt").resolve() == writer.checkpoints.path(1)


def test_a_best_that_is_no_longer_is_not_waited_for(writer):
    with full_disk(100_000):
        for step in (1, 2):
            writer.put({"step": step, **BIG}, step, step)
            assert writer.warned.any.wait(60)
    writer.finish()
    assert writer.checkpoints.steps() == [2]


def test_at_the_end_a_full_disk_is_an_error_and_leaves_the_one_before(writer):
    writer.put({"step": 1}, 1, 1)
    writer.put({"step": 2, **BIG}, 2, 2)
    writer.finish()
    with full_disk(100_000):
        writer.put({"step": 3, **BIG}, 3, 3)
        with pytest.raises(
            DataError, match=r"step-00000003\.pt cannot be written.*; make room and give the same command .*, it goes on from"
        ):
            writer.finish()
    assert writer.checkpoints.load_latest(pytest.fail)["step"] == 2
    assert sorted(path.name for path in writer.checkpoints.folder.glob("*.new")) == []


def test_at_the_end_a_full_disk_that_never_took_one_is_an_error_that_says_so(writer):
    with full_disk(100_000):
        writer.put({"step": 3, **BIG}, 3, 3)
        with pytest.raises(DataError, match=r"; make room and give the same command again, it begins anew"):
            writer.finish()


def test_what_goes_wrong_in_the_thread_surfaces(writer):
    for surface in (writer.finish, lambda: writer.put({"step": 2}, 2, 2), writer.close):
        writer.put({"step": 1, "unpicklable": lambda: 0}, 1, 1)
        with pytest.raises(Exception, match="pickle"):
            surface()
    writer.put({"step": 2}, 2, 2)
    writer.finish()
    assert writer.checkpoints.steps() == [2]


WRITER = """
import sys, torch, pathlib
from fastirv2.training.background import BackgroundWriter
from fastirv2.training.checkpoint import Checkpoints
checkpoints, step = Checkpoints(pathlib.Path(sys.argv[1])), 0
writer = BackgroundWriter(checkpoints, lambda best: checkpoints.prune(2, best, lambda _: False), print, print)
w = [torch.zeros(100_000) for _ in range(3)]
while True:
    step += 1
    torch._foreach_add_(w, 1)
    writer.put({"step": step, "w": w}, step, step - step % 5)
    print(step, flush=True)
"""


def test_a_kill_at_any_instant_leaves_a_whole_one(tmp_path):
    checkpoints, rng = Checkpoints(tmp_path), random.Random(0)
    for _ in range(3):
        process = subprocess.Popen([sys.executable, "-c", WRITER, tmp_path], stdout=subprocess.PIPE, text=True)
        said = [process.stdout.readline() for _ in range(6)]
        time.sleep(rng.uniform(0, 0.1))
        process.kill()
        written = int([*said, *process.communicate()[0].splitlines()][-1]) - 1  # the last one handed over may not be
        state = checkpoints.load_latest(pytest.fail)
        assert state["step"] >= written
        assert all(torch.equal(w, torch.full((100_000,), float(state["step"]))) for w in state["w"])
        assert read(tmp_path / "latest.pt")["step"] >= written
        assert read(tmp_path / "best.pt")["step"] in (written // 5 * 5, (written + 1) // 5 * 5)
        for path in tmp_path.iterdir():
            path.unlink()


def test_a_refused_best_keeps_its_own_numbers(tmp_path, monkeypatch):
    checkpoints = Checkpoints(tmp_path)
    save, full = checkpoints.save, [True]

    def refuse(*given):
        if full[0]:
            raise RefusedError("full", "make room")
        save(*given)

    monkeypatch.setattr(checkpoints, "save", refuse)
    writer = BackgroundWriter(checkpoints, lambda best: None, lambda text: None, lambda text: None)
    for step in (1, 2):
        writer.put({"w": torch.full((2,), float(step))}, step, 1)
    full[0] = False
    writer.finish()
    assert [read(checkpoints.path(step))["w"].tolist() for step in (1, 2)] == [[1, 1], [2, 2]]
