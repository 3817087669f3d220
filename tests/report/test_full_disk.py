"""What a run says of itself outlives a full disk: nothing ends for it, and nothing is lost or doubled."""

import subprocess
import sys
from types import SimpleNamespace

import pytest

from fastirv2.errors import DataError
from fastirv2.files import Log
from fastirv2.report.board import Board
from fastirv2.report.metrics import Metrics, read_metrics
from fastirv2.report.reporter import Reporter
from tests.processes import full_disk


def train(step):
    return {"kind": "train", "step": step, "loss": 0.5}


def steps(path):
    return [line["step"] for line in read_metrics(path)]


def test_a_piece_that_was_cut_off_comes_whole_and_once_when_there_is_room(tmp_path):
    log = Log(tmp_path / "log")
    log.add(b"first\n")
    with full_disk(10):
        for piece in (b"second\n", b"third\n"):
            with pytest.raises(OSError, match="File too large"):
                log.add(piece)
    log.add(b"fourth\n")
    assert log.path.read_text() == "first\nsecond\nthird\nfourth\n"
    assert log.waiting == []


def test_what_another_program_wrote_or_cut_is_left_as_it_is(tmp_path):
    log = Log(tmp_path / "log")
    log.add(b"first\n")
    log.path.write_bytes(b"other\n" * 3)
    log.add(b"second\n")
    with full_disk(), pytest.raises(OSError, match="File too large"):
        log.add(b"third\n")
    log.path.write_bytes(b"")
    log.write()
    assert log.path.read_bytes() == b"third\n"


def test_lines_that_wait_come_with_the_next(tmp_path):
    metrics = Metrics(tmp_path)
    with full_disk(20):
        for step in (1, 2):
            with pytest.raises(DataError, match=r"metrics\.jsonl cannot be written: File too large; make room"):
                metrics.add(train(step))
    metrics.add(train(3))
    assert steps(metrics.path) == [1, 2, 3]


def test_lines_that_waited_when_a_checkpoint_was_written_come_back_once(tmp_path):
    """The process may have been killed before it wrote them, or after."""
    metrics = Metrics(tmp_path)
    metrics.add(train(1))
    with full_disk(), pytest.raises(DataError):
        metrics.add(train(2))
    kept = metrics.waiting
    for _ in range(2):
        Metrics(tmp_path).cut(2, pending=False, waiting=kept)
        assert steps(metrics.path) == [1, 2]


def test_a_run_says_once_that_a_file_is_refused_and_once_that_it_is_written_again(tmp_path):
    said, warned = [], []
    console = SimpleNamespace(say=said.append, warn=warned.append)
    reporter = Reporter(tmp_path, {}, console, first=True)
    metrics = Metrics(tmp_path)
    for most in (0, 0, 1000, 1000, 0):
        with full_disk(most), reporter.goes_on("metrics.jsonl"):
            metrics.add(train(1))
    begun = f"{tmp_path}/metrics.jsonl cannot be written: File too large; make room, or mend that; training goes on"
    assert [text.startswith(begun) for text in warned] == [True, True]
    assert said == [f"{tmp_path}/metrics.jsonl is written again, with nothing lost"]
    assert len(read_metrics(metrics.path)) == 4


def test_tensorboard_shows_what_a_full_disk_refused(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    board = Board(tmp_path / "tensorboard", 0)
    for step, most in ((1, 1000), (2, 150), (3, 0), (4, 1000)):
        refused = most < 1000
        with full_disk(most), pytest.raises(DataError) if refused else full_disk(most):
            board.add(train(step))
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/train")
    assert [event.step for event in shown] == [1, 2, 3, 4]


def test_what_goes_on_after_a_kill_hides_what_came_after_its_checkpoint(tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    first = Board(tmp_path / "tensorboard", 0)
    for step in (1, 2, 3):
        first.add(train(step))
    again = Board(tmp_path / "tensorboard", 1)
    again._log.path = again._log.path.with_name(f"{again._log.path.name}.1")  # as of another process
    for step in (2, 3, 4):
        again.add({**train(step), "loss": 0.25})
    shown = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss/train")
    assert [(event.step, event.value) for event in shown] == [(1, 0.5), (2, 0.25), (3, 0.25), (4, 0.25)]


SPEAKER = """
from fastirv2.errors import StoppedError, run_command
from fastirv2.report.console import Console
def main():
    console = Console(first=True)
    console.say("before"), console.warn("before")
    raise StoppedError("stopped")
run_command(main, "speaker")
"""


def test_output_into_a_full_disk_changes_no_exit_code():
    with open("/dev/full", "w") as full:
        done = subprocess.run([sys.executable, "-c", SPEAKER], stdout=full, stderr=full, check=False)
    assert done.returncode == 75
