"""A signal to any one rank stops all of them with the state saved, and the run ends with the bits of an undisturbed one."""

import signal
import time

import pytest

from tests.processes import start_ranks
from tests.train.conftest import latest, metrics, wait_for_line
from tests.train.test_going_on import assert_same_end

SIZE = ("--train.epochs", "2", "--train.global-batch", "4", "--train.bn-batch", "4", "--checkpoint.steps", "2")


@pytest.fixture
def start(trainer, file_list, tmp_path):
    """Starts two ranks, which validate for longer than they train."""
    many = tmp_path / "many.txt"
    lines = file_list.read_text().splitlines()
    many.write_text("".join(f"{file_list.parent}/{line}\n" for line in lines) * 8)
    return lambda run: start_ranks(2, *trainer.arguments(run, *SIZE, train=file_list, val=many))


def ended(ranks):
    """Return the exit code and the complaints of each rank."""
    complaints = [rank.communicate(timeout=240)[1] for rank in ranks]
    return [rank.returncode for rank in ranks], complaints


def test_stopped_in_a_checkpoint_in_validation_and_at_its_start_it_ends_as_undisturbed(start, tmp_path):
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert ended(start(calm))[0] == [0, 0]

    ranks = start(run)
    while not list(run.glob("checkpoints/*.new")) and ranks[0].poll() is None:
        time.sleep(0.001)
    for number in (signal.SIGTERM, signal.SIGTERM):
        ranks[1].send_signal(number)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    step = latest(run)["step"]
    assert 2 <= step <= 5
    sentence = f"stopped by SIGTERM after step {step}; the state is saved and the same command goes on"
    assert said == [f"fastirv2.train: {sentence}\n", ""]

    ranks = start(run)
    wait_for_line(run, '"step": 6,', ranks[0])
    ranks[1].send_signal(signal.SIGUSR2)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    assert "stopped by SIGUSR2 after step 6" in said[0]
    assert latest(run)["pending"] == 1
    assert metrics(run, "val") == []

    ranks = start(run)
    assert "paper network" in ranks[0].stdout.readline()
    ranks[1].send_signal(signal.SIGINT)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    assert said[1] == "fastirv2.train: stopped by SIGINT at its start: nothing is lost, the same command goes on\n"
    assert (latest(run)["step"], latest(run)["pending"]) == (6, 1)

    codes, said = ended(start(run))
    assert codes == [0, 0], said
    assert_same_end(run, calm)
