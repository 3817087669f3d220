"""Checkpoints survive kills and full disks, and run no code when they are read; test_background.py has the kills."""

import errno
import os
import pickle
from pathlib import Path

import pytest
import torch

from fastirv2.errors import DataError, StoppedError
from fastirv2.models.weight_files import find_file, read_contents
from fastirv2.training.checkpoint import CheckpointConfig, Checkpoints, RefusedError, read
from tests.processes import full_disk


@pytest.fixture
def checkpoints(tmp_path):
    return Checkpoints(tmp_path / "checkpoints")


def names(checkpoints):
    return sorted(path.name for path in checkpoints.folder.iterdir())


def test_what_was_saved_is_read(checkpoints):
    checkpoints.save({"step": 12, "model": {"w": torch.arange(3)}}, 12, best_step=12)
    state = checkpoints.load_latest(pytest.fail)
    assert torch.equal(state["model"]["w"], torch.arange(3))
    assert names(checkpoints) == ["best.pt", "latest.pt", "step-00000012.pt"]


def test_links_are_relative_and_follow(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    checkpoints.save({"step": 2}, 2, best_step=1)
    assert os.readlink(checkpoints.folder / "latest.pt") == "step-00000002.pt"
    assert os.readlink(checkpoints.folder / "best.pt") == "step-00000001.pt"


def test_the_last_the_best_and_those_kept_for_good_stay(checkpoints):
    for step in range(1, 9):
        checkpoints.save({"step": step}, step, best_step=3)
        checkpoints.prune(2, 3, lambda step: step % 5 == 0)
    kept = [f"step-{step:08}.pt" for step in (3, 5, 7, 8)]
    assert names(checkpoints) == ["best.pt", "latest.pt", *kept]


def test_a_kill_between_the_file_and_its_links_is_made_good(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    checkpoints.save({"step": 2}, 2, best_step=2)
    (checkpoints.folder / "best.pt").unlink()
    checkpoints.link(2, 2)
    assert os.readlink(checkpoints.folder / "best.pt") == "step-00000002.pt"
    checkpoints.link(2, 7)
    assert not (checkpoints.folder / "best.pt").is_symlink()


def test_a_file_system_without_links_has_the_checkpoints_alone(checkpoints, monkeypatch):
    def refused(*_):
        raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))

    monkeypatch.setattr(Path, "symlink_to", refused)
    checkpoints.folder.mkdir()
    (checkpoints.folder / "best.pt").write_text("a copy of what was a link elsewhere")
    for step in (1, 2):
        checkpoints.save({"step": step, "best_step": 1}, step, best_step=1)
    assert names(checkpoints) == ["step-00000001.pt", "step-00000002.pt"]
    assert checkpoints.load_latest(pytest.fail)["step"] == 2
    assert find_file(checkpoints.folder.parent) == checkpoints.path(1)
    checkpoints.path(1).unlink()
    assert find_file(checkpoints.folder.parent) == checkpoints.path(2)


def test_a_run_folder_means_its_best_and_its_latest_while_none_is_the_best(checkpoints):
    for step, best_step in ((1, 0), (2, 1)):
        checkpoints.save({"step": step, "best_step": best_step}, step, best_step=best_step)
        assert find_file(checkpoints.folder.parent).resolve() == checkpoints.path(1)


def test_what_to_do_is_said_by_what_the_disk_says(checkpoints):
    checkpoints.folder.write_text("no folder")
    with pytest.raises(RefusedError, match="File exists") as refused:
        checkpoints.save({"step": 1}, 1, best_step=1)
    assert refused.value.remedy == "mend that"


def test_nothing_there_is_no_checkpoint(checkpoints):
    assert checkpoints.load_latest(pytest.fail) is None


@pytest.mark.parametrize("left", [0, 100, -1])
def test_a_cut_checkpoint_is_passed_over_and_said(checkpoints, left):
    for step in (1, 2):
        checkpoints.save({"step": step, "w": torch.ones(1000)}, step, best_step=1)
    cut = checkpoints.path(2)
    cut.write_bytes(cut.read_bytes()[:left])
    said = []
    assert checkpoints.load_latest(said.append)["step"] == 1
    assert len(said) == 1
    assert str(cut) in said[0]
    assert said[0].endswith("it is set aside as step-00000002.broken, and the one before it is used")
    assert checkpoints.steps() == [1]
    checkpoints.save({"step": 2}, 2, best_step=1)
    checkpoints.prune(1, 2, lambda step: False)
    assert checkpoints.load_latest(pytest.fail)["step"] == 2


def test_a_checkpoint_whose_bytes_have_changed_is_passed_over_and_said(checkpoints):
    for step in (1, 2):
        checkpoints.save({"step": step, "w": torch.ones(1000)}, step, best_step=1)
    changed = bytearray(checkpoints.path(2).read_bytes())
    changed[len(changed) // 2] ^= 1
    checkpoints.path(2).write_bytes(changed)
    said = []
    assert checkpoints.load_latest(said.append)["step"] == 1
    assert "step-00000002.pt is damaged: " in said[0]


def test_a_signal_while_a_checkpoint_is_read_is_no_damage(checkpoints, monkeypatch):
    def stopped(*_, **__):
        raise StoppedError("stopped by SIGTERM at its start")

    for step in (1, 2):
        checkpoints.save({"step": step}, step, best_step=0)
    monkeypatch.setattr(torch, "load", stopped)
    for reading in (lambda: checkpoints.load_latest(pytest.fail), lambda: read_contents(checkpoints.path(2))):
        with pytest.raises(StoppedError):
            reading()
    assert checkpoints.steps() == [1, 2]


def test_checkpoints_that_are_gone_are_not_taken_for_a_new_run(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    checkpoints.path(1).unlink()
    with pytest.raises(DataError, match=r"step-00000001.pt, the last in .*, is gone; bring it back, or --fresh begins"):
        checkpoints.load_latest(pytest.fail)


def test_when_none_can_be_read_it_is_an_error(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    checkpoints.path(1).write_bytes(b"")
    for _ in range(2):
        with pytest.raises(DataError, match="none of the 1 checkpoints"):
            checkpoints.load_latest(pytest.fail)


def test_one_that_cannot_be_read_at_present_is_not_set_aside(checkpoints):
    for step in (1, 2):
        checkpoints.save({"step": step}, step, best_step=1)
    checkpoints.path(2).unlink()
    checkpoints.path(2).mkdir()
    with pytest.raises(DataError, match="Is a directory"):
        checkpoints.load_latest(pytest.fail)
    assert checkpoints.steps() == [1, 2]


def test_what_a_kill_left_half_written_is_swept_away(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    for name in ("step-00000002.pt.new", ".best.pt.new"):
        (checkpoints.folder / name).write_bytes(b"half")
    checkpoints.sweep()
    assert names(checkpoints) == ["best.pt", "latest.pt", "step-00000001.pt"]


class Trap:
    def __reduce__(self):
        return os.mkdir, ("trap",)


def test_no_code_in_a_file_is_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"format": 1, "step": 1, "trap": Trap()}, "trap.pt")
    (tmp_path / "plain.pt").write_bytes(pickle.dumps(Trap()))
    for name in ("trap.pt", "plain.pt"):
        with pytest.raises(DataError, match="cannot be read"):
            read(tmp_path / name)
    assert not (tmp_path / "trap").exists()


def test_another_file_is_no_checkpoint(tmp_path):
    torch.save({"w": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(DataError, match="is not a checkpoint of this program's format"):
        read(tmp_path / "other.pt")


def test_a_full_disk_is_one_sentence_and_leaves_the_one_before(checkpoints):
    checkpoints.save({"step": 1}, 1, best_step=1)
    sentence = r"cannot be written: File too large \(it takes 4\.0 MB, .* MB are free\)"
    with full_disk(100_000), pytest.raises(DataError, match=sentence):
        checkpoints.save({"step": 2, "w": torch.zeros(1_000_000)}, 2, best_step=2)
    assert checkpoints.load_latest(pytest.fail)["step"] == 1
    assert names(checkpoints) == ["best.pt", "latest.pt", "step-00000001.pt"]


@pytest.mark.parametrize("wrong", [{"keep": 0}, {"minutes": -1.0}, {"minutes": float("nan")}, {"steps": -1}])
def test_options_out_of_bounds_are_refused(wrong):
    from fastirv2.errors import UsageError

    with pytest.raises(UsageError, match="checkpoint: "):
        CheckpointConfig(**wrong)


def test_links_left_half_made_by_a_kill_are_in_nobodys_way(checkpoints):
    checkpoints.folder.mkdir()
    (checkpoints.folder / ".latest.pt.new").symlink_to("gone")
    checkpoints.save({"step": 1}, 1, 1)
    (checkpoints.folder / ".best.pt.new").symlink_to("gone")
    checkpoints.sweep()
    assert names(checkpoints) == ["best.pt", "latest.pt", "step-00000001.pt"]


def test_a_link_that_the_disk_refuses_is_an_error(checkpoints, monkeypatch):
    def refused(*_):
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(Path, "symlink_to", refused)
    with pytest.raises(RefusedError, match="Input/output error"):
        checkpoints.save({"step": 1}, 1, 1)
