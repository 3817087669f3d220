"""What a run reports while it goes: lines to its files, and for each interval and epoch one to the console."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fastirv2.errors import DataError
from fastirv2.report.board import Board
from fastirv2.report.console import Console
from fastirv2.report.final import draw
from fastirv2.report.metrics import Line, Metrics, epochs, finite, since_validation
from fastirv2.report.published import reference_of

REPORT_SHARE = PICTURE_SHARE = 0.01  # of the time, at most, that a run spends on either, while all ranks wait for the first


class _Seldom:
    """Says when it is time for something again, that is to take a share of the time at most."""

    def __init__(self) -> None:
        self._next = 0.0  # on the perf_counter clock

    def due(self) -> bool:
        """Say whether the share allows it."""
        return time.perf_counter() >= self._next

    @contextlib.contextmanager
    def spent(self, share: float) -> Iterator[None]:
        """Count the time within the context."""
        begun = time.perf_counter()
        yield
        ended = time.perf_counter()
        self._next = ended + (ended - begun) / share


class Reporter:
    """Reports for the first rank into the folder of a run; on the other ranks nothing is written and nothing is said.

    `table` is the run's resolved configuration, whose reference curve each epoch is held against.
    """

    def __init__(self, folder: Path, table: dict[str, Any], console: Console, *, first: bool) -> None:
        self._folder, self._table, self._console, self._first = folder, table, console, first
        self._metrics = Metrics(folder)
        self._board: Board | None = None
        self._refused: set[str] = set()  # what the disk does not take at present
        self._undrawn = False  # whether an epoch may not be in the picture yet
        self._report, self._picture = _Seldom(), _Seldom()
        self._trained: list[Line] = []  # the lines of kind "train" since the last validation

    @property
    def waiting(self) -> list[str]:
        """The lines that are not in metrics.jsonl yet."""
        return self._metrics.waiting

    def begin(self, step: int, *, ranks: int, device: str) -> None:
        """Report that `ranks` ranks, each on such a device, go on after `step`."""
        if self._first:
            self._board = Board(self._folder / "tensorboard", step)
            self._undrawn = True  # what went before may have been killed
            self._trained = since_validation(self._metrics.lines())
        self.write({"kind": "begin", "step": step, "ranks": ranks, "device": device, "time": time.time()})

    def write(self, line: Line) -> None:
        """Write a line of any kind to the files of the run."""
        if not self._first:
            return
        if line["kind"] == "train":
            self._trained.append(finite(line))
        with self.goes_on("metrics.jsonl"):
            self._metrics.add(line)
        if self._board and line["kind"] in ("train", "val"):
            with self.goes_on("tensorboard"):
                self._board.add(line)

    def train(self, line: Line) -> None:
        """Report a line of kind "train"."""
        self.write(line)
        self._console.train(line)

    def epoch(self, lines: list[Line], *, best: bool) -> None:
        """Report an epoch by its lines of kind "val"; warn when it lies above the band of the recipe's reference."""
        if not self._first:
            return
        for line in lines:
            self.write(line)
        self._undrawn = True
        (row,) = epochs([*self._trained, *map(finite, lines)])
        self._trained = []
        self._console.epoch(row, lines[0]["images"], best=best)
        reference = reference_of(self._table)
        if reference and (late := reference.behind(row)):
            self._console.warn(late)

    def bad(self, sentence: str, step: int) -> None:
        """Report a record that was skipped."""
        self._console.warn(f"{sentence}; it is left out")
        self.write({"kind": "bad", "step": step, "record": sentence, "time": time.time()})

    def draw(self, *, last: bool = False) -> None:
        """Write how the run stands, and draw its picture, where it is the `last` time or there is time for it.

        What cannot be written now can be after the next epoch, or by the command anew.
        """
        if not (self._first and self._undrawn):
            return
        picture = last or self._picture.due() or "curves.png" in self._refused
        if not picture and not self._report.due():
            return
        clock, share = (self._picture, PICTURE_SHARE) if picture else (self._report, REPORT_SHARE)
        with clock.spent(share), self.goes_on("curves.png"):
            draw(self._folder, picture=picture)
            self._undrawn = not picture

    @contextlib.contextmanager
    def goes_on(self, name: str) -> Iterator[None]:
        """Let training go on when one of its files cannot be written; that is said once, and once that it can be again."""
        try:
            yield
        except DataError as error:
            if name not in self._refused:
                self._console.warn(f"{error}; training goes on, and it is tried again with what is to be written next")
            self._refused.add(name)
        else:
            if name in self._refused:
                self._console.say(f"{self._folder / name} is written again, with nothing lost")
            self._refused.discard(name)

    def flush(self) -> None:
        """Write the lines that wait into metrics.jsonl, as far as the disk takes them."""
        if self._first:
            with self.goes_on("metrics.jsonl"):
                self._metrics.write()

    def close(self) -> None:
        """Write what waits, as far as the disk takes it now; that it does not was said."""
        for write in (self._metrics.write, *([self._board.write] if self._board else [])):
            with contextlib.suppress(DataError):
                write()
