"""Runs that one leaves alone: whichever rank, node or launcher is told to stop or killed, they end as one nobody disturbed."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.processes import gone, lines, start_ranks
from tests.train.conftest import assert_the_same, latest, metrics, wait_for_line

SIZE = ("--train.epochs", "2", "--train.global-batch", "4", "--train.bn-batch", "4", "--checkpoint.steps", "2")  # 12 steps


@pytest.fixture
def command(light, file_list, tmp_path, monkeypatch):
    """Returns the command for a run folder; it validates for longer than it trains."""
    monkeypatch.setenv("PASS_SECONDS", "0.2")
    many = tmp_path / "many.txt"
    many.write_text("".join(f"{file_list.parent}/{line}\n" for line in file_list.read_text().splitlines()) * 2)
    return lambda run: light.arguments(run, *SIZE, train=file_list, val=many)


def start_nodes(*arguments):
    """Start two torchruns of one rank each that find each other by a rendezvous, as on two hosts; the first one keeps it."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = probe.getsockname()
    meeting = ("--nnodes", "2", "--rdzv-backend", "c10d", "--rdzv-endpoint", f"localhost:{endpoint[1]}", "--rdzv-id", "1")
    line = [sys.executable, "-m", "torch.distributed.run", *meeting, "--nproc-per-node", "1", *arguments]

    def start():
        return subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    keeper = start()
    while keeper.poll() is None:
        try:
            socket.create_connection(endpoint, timeout=1).close()
            break
        except OSError:
            time.sleep(0.05)
    return [keeper, start()]


def children(pid):
    """Return the processes that a process has started."""
    return [int(child) for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()]


def ended(processes):
    """Return the exit code and the complaints of each."""
    complaints = [process.communicate(timeout=240)[1] for process in processes]
    return [process.returncode for process in processes], complaints


def test_signals_to_one_rank_or_node_and_a_killed_launcher_change_no_bit(command, tmp_path):
    """Two ranks on one node, undisturbed, against ranks and nodes that are stopped in training, in validation, at their
    start and by a launcher's death."""
    calm, run = tmp_path / "calm", tmp_path / "run"
    assert ended(start_ranks(2, *command(calm)))[0] == [0, 0]

    ranks = start_ranks(2, *command(run))
    wait_for_line(run, '"step": 2,', ranks[0])  # in which a checkpoint is due
    for number in (signal.SIGTERM, signal.SIGTERM):
        ranks[1].send_signal(number)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    step = latest(run)["step"]
    assert 2 <= step <= 5
    sentence = f"stopped by SIGTERM after step {step}; the state is saved and the same command goes on"
    assert said == [f"fastirv2.train: {sentence}\n", ""]

    ranks = start_ranks(2, *command(run))
    wait_for_line(run, '"step": 6,', ranks[0])
    ranks[1].send_signal(signal.SIGTERM)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    assert said == ["fastirv2.train: stopped by SIGTERM after step 6; the state is saved and the same command goes on\n", ""]
    assert metrics(run, "val") == []
    assert (latest(run)["step"], latest(run)["pending"]) == (6, 1)

    ranks = start_ranks(2, *command(run))
    assert "paper network" in next(lines(ranks[0].stdout))
    ranks[1].send_signal(signal.SIGINT)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    assert said[1] == "fastirv2.train: stopped by SIGINT at its start: nothing is lost, the same command goes on\n"
    assert (latest(run)["step"], latest(run)["pending"]) == (6, 1)

    nodes = start_nodes(*command(run))
    wait_for_line(run, '"step": 8,', nodes[0])
    orphans = children(nodes[1].pid)
    nodes[1].kill()
    said = "".join(ended(nodes)[1])
    assert said.count("stopped by the death of its launcher after step") == 1
    assert all(gone(pid) for pid in orphans)
    state = latest(run)
    assert 8 <= state["step"] < 12 or (state["step"], state["pending"]) == (12, 2)  # the last epoch is not validated yet

    codes, said = ended(start_nodes(*command(run)))
    assert codes == [0, 0], said
    assert_the_same(run, calm)


def test_a_signal_to_the_rank_that_hosts_the_store_ends_the_other_one_too_without_a_launcher(command, tmp_path):
    ranks = start_ranks(2, *command(tmp_path / "run"))
    assert "paper network" in next(lines(ranks[0].stdout))
    ranks[0].send_signal(signal.SIGTERM)
    codes, said = ended(ranks)
    assert codes == [75, 75], said
    assert said[0] == "fastirv2.train: stopped by SIGTERM at its start: nothing is lost, the same command goes on\n"
    assert "Traceback" not in said[1]  # torch says that the store is gone


@pytest.mark.soak
def test_a_rank_that_hangs_ends_the_run_with_a_sentence(command, tmp_path):
    run = tmp_path / "run"
    ranks = start_ranks(2, *command(run), "--train.timeout", "0.2")
    wait_for_line(run, '"step": 2,', ranks[0])
    ranks[1].send_signal(signal.SIGSTOP)
    (code,), (said,) = ended(ranks[:1])
    ranks[1].kill()
    ranks[1].communicate()
    assert code == 75, said
    assert said.startswith("fastirv2.train: no progress for 0.2 minutes (--train.timeout): rank 1 silent since ")
    assert "; rank 0 waiting after step " in said
    assert said.endswith("; the same command goes on from the last checkpoint\n")
