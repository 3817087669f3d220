"""Two nodes, each with a launcher of its own, train what one node trains."""

import signal
import socket
import subprocess
import sys

import torch

from tests.train.conftest import assert_done, latest, learned, wait_for_line

SIZE = ("--train.epochs", "2")


def start_nodes(*arguments):
    """Start two torchruns of one rank each that find each other by a rendezvous, as on two hosts."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        endpoint = f"localhost:{probe.getsockname()[1]}"
    shape = ("--nnodes", "2", "--nproc-per-node", "1")
    meeting = (*shape, "--rdzv-backend", "c10d", "--rdzv-endpoint", endpoint, "--rdzv-id", "1")
    line = [sys.executable, "-m", "torch.distributed.run", *meeting, *arguments]
    return [subprocess.Popen(line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]


def test_two_nodes_train_what_one_does_and_a_signal_to_one_of_them_stops_both(trainer, tmp_path):
    one, two = tmp_path / "one", tmp_path / "two"
    assert_done(trainer(one, *SIZE, ranks=2))

    nodes = start_nodes(*trainer.arguments(two, *SIZE))
    wait_for_line(two, '"step": 2,', nodes[0])
    nodes[1].send_signal(signal.SIGTERM)
    said = "".join(node.communicate(timeout=240)[1] for node in nodes)
    step = latest(two)["step"]
    assert said.count(f"stopped by SIGTERM after step {step}; the state is saved and the same command goes on") == 1
    assert step < 6

    nodes = start_nodes(*trainer.arguments(two, *SIZE))
    said = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], said
    assert sum(f"going on after step {step}" in output for output, _ in said) == 1
    assert learned(two) == learned(one)
    ours, theirs = (latest(run)["model"] for run in (two, one))
    for name, value in theirs.items():
        assert torch.equal(ours[name], value), name
