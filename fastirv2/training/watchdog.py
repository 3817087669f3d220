"""Ends a rank that hangs or whose launcher has died, from a thread of its own, with a sentence that says who is missing."""

from __future__ import annotations

import math
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

import torch.distributed as dist

from fastirv2.errors import StoppedError
from fastirv2.training.signals import LAUNCHER_DIED, Signals

START = 6  # times as long may the start and the first step take: indices are made, kernels chosen and compiled
HUNG_AT_START = 70  # tried again by itself, it would most likely hang again
_PACKAGE = Path(__file__).parents[1]
_SILENT = timedelta(seconds=30)  # the longest that the store may take to answer


@dataclass(frozen=True)
class Sign:
    """A rank's sign of life: how many it has given, when, and where its main thread stands."""

    count: int
    clock: str
    where: str


class Watchdog:
    """Watches that the main thread goes on: it calls `beat`, and this thread tells the other ranks, every some seconds.

    When no beat comes for `minutes` (0: for ever), the process ends with exit code 75, since the same command goes on from the
    last checkpoint; or with 70 when it has not come as far as its first beat. Before it does, it looks twice at the signs of
    life of the other ranks: those that have given none between are said to be silent. Time in which the whole process is
    stopped, as a suspended job is, does not count.

    `end` says a sentence, if it is none that another rank has said, tells the other ranks and ends this process.

    A rank whose launcher dies notes it as it does a signal, so that all ranks stop with the state saved.
    """

    def __init__(self, minutes: float, signals: Signals, end: Callable[[str, int], None]) -> None:
        self.signals = signals
        self.describe: Callable[[], str] = lambda: "at its start"
        self._end_process = end
        self._seconds = 60 * minutes or math.inf
        self._rank, self._world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._beats, self._idle = 0, 0.0
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()
        self._store: dist.Store | None = None
        self._signs = 0
        self._thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        self._thread.start()

    @property
    def collective_seconds(self) -> float:
        """Return how long collectives may take before torch ends them: longer than this watchdog ever waits."""
        return 60 + START * self._seconds if self._seconds < math.inf else 30 * 60

    def beat(self) -> None:
        """Say that the run goes on; from the first time on it trains, and stops with its state saved."""
        self._beats += 1
        self._idle = 0.0
        self.signals.training = True

    def stop(self) -> None:
        """Watch no longer."""
        self._stopped.set()
        self._thread.join(timeout=2)

    def _watch(self) -> None:
        tick = min(1.0, self._seconds / 30)
        looked: tuple[float, dict[int, Sign]] | None = None
        published, before = -math.inf, time.monotonic()
        while not self._stopped.wait(tick):
            now = time.monotonic()
            self._idle += min(now - before, 5 * tick)
            before = now
            if self._launcher and os.getppid() != self._launcher:
                self._orphaned()
            if now - published >= 10 * tick:
                published = now
                self._publish()
            limit = self._seconds if self._beats else START * self._seconds
            if self._idle < limit:
                looked = None
            elif looked is None:
                looked = now, self._read()
            elif now - looked[0] >= 25 * tick:
                self._end(looked[1], self._read())

    def _orphaned(self) -> None:
        self._launcher = 0
        self._store = None  # it was the launcher's
        self.signals.received = self.signals.received or LAUNCHER_DIED
        self._seconds = min(self._seconds, 600.0)
        if not self.signals.training:
            self._leave("its launcher has died at its start: nothing is lost, the same command goes on", StoppedError.exit_code)

    def _publish(self) -> None:
        """Leave a sign of life in the launcher's store, over a connection of its own: the main thread may use the other."""
        if self._world == 1 or self.signals.received == LAUNCHER_DIED:
            return
        self._signs += 1
        try:
            self._store = self._store or connect()
            self._store.set(str(self._rank), f"{self._signs}\n{time.strftime('%H:%M:%S')}\n{self._where()}")
        except (RuntimeError, ValueError):
            self._store = None

    def _read(self) -> dict[int, Sign]:
        """Return the last sign of life of each rank that has given one; of none when the store does not answer."""
        signs = {self._rank: Sign(self._signs, "", self._where())}
        reader = threading.Thread(target=self._collect, args=(signs,), daemon=True)
        reader.start()
        reader.join(_SILENT.total_seconds())
        return dict(signs)

    def _collect(self, signs: dict[int, Sign]) -> None:
        store = self._store
        try:
            for rank in range(self._world if store else 0):
                if rank != self._rank and store.check([str(rank)]):
                    count, clock, where = store.get(str(rank)).decode().split("\n")
                    signs[rank] = Sign(int(count), clock, where)
        except RuntimeError:
            return

    def _where(self) -> str:
        """Return what the main thread is at: the step, and the innermost line of ours."""
        frame = sys._current_frames().get(self._main or 0)
        while frame and not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
            frame = frame.f_back
        if frame is None:
            return self.describe()
        file = Path(frame.f_code.co_filename).relative_to(_PACKAGE)
        return f"{self.describe()}, in {file}:{frame.f_lineno} ({frame.f_code.co_name})"

    def _end(self, first: dict[int, Sign], second: dict[int, Sign]) -> None:
        """Say who hangs and where, once for all ranks, and end the process."""
        code = StoppedError.exit_code if self._beats else HUNG_AT_START
        minutes = self._seconds / 60 * (1 if self._beats else START)
        hint = "the same command goes on from the last checkpoint" if self._beats else "can the hosts reach each other?"
        sentence = f"no progress for {minutes:g} minutes (--train.timeout): {account(first, second, self._world)}; {hint}"
        self._leave(sentence if self._speaks(answered=len(first) > 1) else "", code)

    def _speaks(self, *, answered: bool) -> bool:
        """Say whether this rank is the first to end; it is not when the store has `answered` before and is gone now."""
        try:
            if self._store:
                return self._store.add("speakers", 1) == 1
        except RuntimeError:
            pass
        return not answered

    def _leave(self, sentence: str, code: int) -> None:
        """End the process, although what is to be done before may hang as well."""
        last = threading.Thread(target=self._end_process, args=(sentence, code), daemon=True)
        last.start()
        last.join(5)
        os._exit(code)


def connect() -> dist.Store:
    """Return a connection to torchrun's store, or to rank 0's, with names of this attempt only."""
    store = dist.TCPStore(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]), is_master=False, timeout=_SILENT)
    return dist.PrefixStore(f"fastirv2/alive/{os.environ.get('TORCHELASTIC_RESTART_COUNT', '0')}", store)


def account(first: dict[int, Sign], second: dict[int, Sign], world: int) -> str:
    """Say of each rank where it stands or stood, from two looks at the signs of life; ranks that share a fate share words."""
    fates: dict[str, list[int]] = {}
    for rank in range(world):
        sign, earlier = second.get(rank), first.get(rank)
        if sign is None:
            fate = "never heard from"
        elif sign.clock and earlier == sign:
            fate = f"silent since {sign.clock}, {sign.where}"
        else:
            fate = f"waiting {sign.where}"
        fates.setdefault(fate, []).append(rank)
    order = sorted(fates, key=lambda fate: fate.startswith("waiting"))  # the silent ones first
    return "; ".join(f"{_ranks(fates[fate])} {fate}" for fate in order)


def _ranks(numbers: list[int]) -> str:
    """Return "rank 3" or "ranks 0-2, 5"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and runs[-1][-1] == number - 1:
            runs[-1][1:] = [number]
        else:
            runs.append([number])
    return f"rank{'s' if len(numbers) > 1 else ''} " + ", ".join("-".join(map(str, run)) for run in runs)
