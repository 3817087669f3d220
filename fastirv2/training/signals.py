"""What asks a run to stop: Ctrl-C, SIGTERM and the like, and the death of the launcher that started it."""

from __future__ import annotations

import signal
from types import FrameType

from fastirv2.errors import StoppedError

# SIGUSR1 comes from Slurm's --signal, SIGUSR2 from submitit and from Grid Engine's -notify. NCCL 2.12 took SIGUSR1 for itself
# (NVIDIA/nccl issue 704); since 2.14 it does so only when NCCL_PROXY_DUMP_SIGNAL says so.
HEARD = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
LAUNCHER_DIED = 128  # beyond all signals, so that it wins where ranks have met different ones


def name(number: int) -> str:
    """Return what has stopped the run, in words."""
    return "the death of its launcher" if number == LAUNCHER_DIED else signal.Signals(number).name


class Signals:
    """Notes what asks this process to stop. Until the run trains there is nothing to save, and it ends where it is.

    A second Ctrl-C ends it in any case. What is ignored already, as nohup has it with SIGHUP, stays so.
    """

    def __init__(self) -> None:
        self.received = 0
        self.training = False
        for number in HEARD:
            if signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._handle)

    def _handle(self, number: int, _: FrameType | None) -> None:
        again = self.received > 0
        self.received = self.received or number
        if again and number == signal.SIGINT:
            raise KeyboardInterrupt
        if not self.training and not again:
            error = StoppedError(f"stopped by {name(number)} at its start: nothing is lost, the same command goes on")
            error.shared = False  # the other ranks may not have heard it
            raise error
