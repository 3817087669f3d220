"""Ends a rank that hangs or whose launcher has died, from a thread of its own, with a sentence that says who is missing."""

from __future__ import annotations

import contextlib
import math
import os
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from fastirv2.errors import DataError, StoppedError
from fastirv2.training.signals import LAUNCHER_DIED, Signals
from fastirv2.training.words import SECONDS, Words

START = 6  # times as long may the start and the first step take, and what is compiled later, for another size of images
HUNG_AT_START = 70  # tried again by itself, it would most likely hang again
_PACKAGE = Path(__file__).parents[1]


class Sign(NamedTuple):
    """A rank's sign of life: how many it has given, when the last, and where its main thread stood."""

    count: int
    clock: str
    where: str


class Watchdog:
    """Watches that the main thread goes on: it calls `beat`, and this thread tells the other ranks, every some seconds.

    When no beat comes for `minutes` (0: for ever), the process ends with exit code 75, since the same command goes on from the
    last checkpoint; or with 70 when it has not come as far as its first beat. Before it does, it looks twice at the signs of
    life of the other ranks: those that have given none between are said to be silent. Time in which the whole process is
    stopped, as a suspended job is, does not count.

    A rank whose launcher dies notes it as it does a signal, so that all ranks stop with the state saved. One that waits for a
    rank which has told that it fails ends, too, with the same exit code.
    """

    def __init__(self, program: str, minutes: float, signals: Signals) -> None:
        self.signals = signals
        self.describe: Callable[[], str] = lambda: "at its start"
        self.compiling: Callable[[], bool] = lambda: False
        self._program = program
        self._seconds = 60 * minutes or math.inf
        self._tick = min(1.0, self._seconds / 30)
        self._rank, self._world = int(os.environ.get("RANK", "0")), int(os.environ.get("WORLD_SIZE", "1"))
        self._launcher = _launcher() if "TORCHELASTIC_RUN_ID" in os.environ else 0
        self._hosts_store = self._world > 1 and self._rank == 0 and os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True"
        self._words = Words()
        self._heard: int | None = None
        self._beats, self._idle, self._signs = 0, 0.0, 0
        self._main = threading.main_thread().ident
        self._stopped = threading.Event()
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

    def tell(self, code: int) -> None:
        """Leave word that this rank fails with an exit code, so that the others end quietly and not with a lost connection."""
        left = self._words.leave("failed", f"{self._rank} {code}")
        if left and self._hosts_store:  # without a launcher it ends with this process
            time.sleep(max(1.0, 2 * self._tick))

    def told(self) -> int | None:
        """Return the exit code that another rank has failed with, if one has."""
        if self._heard is None:
            rank, code = (self._words.find("failed") or f"{self._rank} 0").split()
            self._heard = int(code) if int(rank) != self._rank else None
        return self._heard

    def lost_rank(self) -> StoppedError:
        """Make the error of a rank that has lost another one while it trained; the first rank to meet it says it."""
        error = StoppedError(
            "the connection to another rank is lost: it was killed, or its host is gone; the same command goes on from the "
            "last checkpoint"
        )
        error.shared = self._words.first("lost") is False
        return error

    def end(self, sentence: str, code: int = DataError.exit_code) -> None:
        """End this process from a thread that is not the main one, since what that waits for will not come."""
        with contextlib.suppress(OSError):  # whoever read it may have died with the launcher
            if sentence:
                print(f"{self._program}: {sentence}", file=sys.stderr, flush=True)
        last = threading.Thread(target=self.tell, args=(code,), daemon=True)
        last.start()
        last.join(SECONDS)
        os._exit(code)

    def _watch(self) -> None:
        looked: tuple[float, dict[int, Sign]] | None = None
        published, before, doomed = -math.inf, time.monotonic(), math.inf
        while not self._stopped.wait(self._tick):
            now = time.monotonic()
            self._idle += min(now - before, 5 * self._tick) / (START if self._beats and self.compiling() else 1)
            before = now
            if self._launcher and os.getppid() != self._launcher:
                self._orphaned()
            if now - published >= 10 * self._tick:
                published = now
                self._publish()
            if doomed == math.inf and self.told() is not None:
                doomed = now
            if now - doomed >= 10 * self._tick:
                os._exit(self.told() or StoppedError.exit_code)
            limit = self._seconds if self._beats else START * self._seconds
            if self._idle < limit:
                looked = None
            elif looked is None:
                looked = now, self._read()
            elif now - looked[0] >= 25 * self._tick:
                self._give_up(looked[1], self._read())

    def _orphaned(self) -> None:
        self._launcher = 0
        self._words.close()  # the store was the launcher's
        self._seconds = min(self._seconds, 600.0)
        if not self.signals.training:
            self.end("its launcher has died at its start: nothing is lost, the same command goes on", StoppedError.exit_code)
        self.signals.received = self.signals.received or LAUNCHER_DIED

    def _publish(self) -> None:
        self._signs += 1
        self._words.leave(f"alive/{self._rank}", f"{self._signs}\n{time.strftime('%H:%M:%S')}\n{self._where()}")

    def _read(self) -> dict[int, Sign]:
        """Return the last sign of life of each rank that has given one; of this one alone when the store does not answer."""
        signs = {self._rank: Sign(self._signs, "", self._where())}

        def collect() -> None:
            for rank in range(self._world):
                text = self._words.find(f"alive/{rank}") if rank != self._rank else None
                if text:
                    count, clock, where = text.split("\n")
                    signs[rank] = Sign(int(count), clock, where)

        reader = threading.Thread(target=collect, daemon=True)
        reader.start()
        reader.join(SECONDS)
        return dict(signs)

    def _where(self) -> str:
        """Return what the main thread is at: the step, and the innermost line of ours."""
        frame = sys._current_frames().get(self._main or 0)
        while frame and not Path(frame.f_code.co_filename).is_relative_to(_PACKAGE):
            frame = frame.f_back
        if frame is None:
            return self.describe()
        file = Path(frame.f_code.co_filename).relative_to(_PACKAGE)
        return f"{self.describe()}, in {file}:{frame.f_lineno} ({frame.f_code.co_name})"

    def _give_up(self, first: dict[int, Sign], second: dict[int, Sign]) -> None:
        """Say who hangs and where, once for all ranks, and end the process."""
        trained = self._beats > 0
        minutes = self._seconds / 60 * (1 if trained and not self.compiling() else START)
        hint = "the same command goes on from the last checkpoint"
        if not trained:
            hint = "can the hosts reach each other?" if self._world > 1 else "what takes so long needs a longer --train.timeout"
        sentence = f"no progress for {minutes:g} minutes (--train.timeout): {account(first, second, self._world)}; {hint}"
        speaks = self._words.first("speaks")
        if speaks is None:  # the store is gone; if it answered before, its host has just ended, and has said it
            speaks = len(first) == 1
        self.end(sentence if speaks else "", StoppedError.exit_code if trained else HUNG_AT_START)


def _launcher() -> int:
    """Return the process that torchrun is, or -1 when it has died already.

    A process whose parent has died is adopted by another one: init or a supervisor, none of them Python, as torchrun is. Where
    the first process of all is one that we may not look at, it has other rights than torchrun, whose own ours are.
    """
    parent = os.getppid()
    try:
        program = Path(os.readlink(f"/proc/{parent}/exe")).name
    except OSError as error:  # somebody else's process; but for the first, whether it is torchrun cannot be known
        if parent == 1 and isinstance(error, PermissionError):
            return -1
        return parent
    return parent if program.startswith(("python", "pypy")) or not Path(sys.executable).name.startswith("python") else -1


def account(first: dict[int, Sign], second: dict[int, Sign], world: int) -> str:
    """Say of each rank where it stands or stood, from two looks at the signs of life; ranks that share a fate share words."""
    fates: dict[str, list[int]] = {}
    for rank in range(world):
        sign = second.get(rank)
        if sign is None:
            fate = "never heard from"
        elif sign.clock and first.get(rank) == sign:
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
