"""torchrun for batch systems: signals go to the ranks, which save, and the exit code is theirs.

torchrun itself dies of SIGUSR1, kills ranks that take longer than 30 seconds to save, and makes 1 of every exit code, so that
nobody could tell a run that was stopped (75) from one that failed. (torch 2.13 has --signals-to-handle and --shutdown-timeout
for the first two, 2.9 has neither.) Here ranks have as long as the batch system gives them, and once a signal has come,
--max-restarts does not start them again. What is ignored at the start stays so: SIGHUP under nohup. The options are torchrun's.
Works with torch 2.8 and later.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.agent.server.api import RunResult, WorkerGroup
from torch.distributed.elastic.agent.server.local_elastic_agent import LocalElasticAgent
from torch.distributed.elastic.multiprocessing import api
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher import api as launcher
from torch.distributed.run import determine_local_world_size, main, parse_args

FORWARDED = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGQUIT, signal.SIGUSR1, signal.SIGUSR2)
IGNORED = {number for number in FORWARDED if signal.getsignal(number) == signal.SIG_IGN}


class Agent(LocalElasticAgent):
    """torchrun's agent, which starts no rank again that a signal has stopped."""

    stopping = False  # whether a signal has come

    def _monitor_workers(self, worker_group: WorkerGroup) -> RunResult:
        result = super()._monitor_workers(worker_group)
        if Agent.stopping:
            self._remaining_restarts = 0
        return result


def children() -> list[int]:
    """Return the numbers of the processes that this one has started."""
    return [int(child) for path in Path("/proc/self/task").glob("*/children") for child in path.read_text().split()]


def forward(number: int, frame: FrameType | None) -> None:
    """Send a signal to every rank; end, as torchrun does, when there is none yet. One that nobody wants is passed over."""
    if number in IGNORED:
        return
    Agent.stopping = True
    ranks = children()
    if not ranks:
        raise api.SignalException(f"signal {number} before any rank was started", sigval=signal.Signals(number))
    for rank in ranks:
        with contextlib.suppress(ProcessLookupError):
            os.kill(rank, number)


def run(arguments: list[str]) -> int:
    """Run torchrun and return the exit code of the rank that ended first, as a shell gives it."""
    ranks = parse_args(arguments).nproc_per_node
    try:
        determine_local_world_size(ranks)
    except ValueError as error:  # gpu, where torch finds none
        print(f"run_ranks: --nproc-per-node {ranks}: {error}", file=sys.stderr)
        return 2
    launcher.LocalElasticAgent = Agent
    api._terminate_process_handler = forward  # what torchrun hears SIGTERM and the like with, once it has started the ranks
    for number in FORWARDED:
        signal.signal(number, forward)
    try:
        main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"run_ranks: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr, flush=True)
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except api.SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
