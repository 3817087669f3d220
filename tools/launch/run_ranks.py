"""torchrun for batch systems: SIGUSR1 goes to the ranks, and the exit code is theirs.

torchrun itself dies of SIGUSR1, and its ranks are killed before they have saved; and it makes 1 of every exit code, so that
nobody could tell a run that was stopped (75) from one that failed. The options are torchrun's.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from pathlib import Path
from types import FrameType

from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.run import main


def forward(number: int, _: FrameType | None) -> None:
    """Send a signal to every process that this one has started."""
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(child), number)


def run(arguments: list[str]) -> int:
    """Run torchrun and return the exit code of the rank that ended first, as a shell gives it."""
    signal.signal(signal.SIGUSR1, forward)
    try:
        main(arguments)
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        print(f"run_ranks: rank {rank} ended with exit code {failure.exitcode}", file=sys.stderr, flush=True)
        return failure.exitcode if failure.exitcode >= 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + error.sigval
    return 0


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:]))
