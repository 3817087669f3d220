"""How far a build is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any


class Progress:
    """Shows images/s and the time left: a bar on a terminal, a line every ten seconds elsewhere; on stderr."""

    def __init__(self, total: int, done: int) -> None:
        self._total = total
        self._first = done
        self._begun = self._last = time.monotonic()
        self._bar: Any = None

    def __enter__(self) -> Progress:
        if sys.stderr.isatty():
            from rich import progress
            from rich.console import Console

            self._bar = progress.Progress(
                progress.BarColumn(),
                progress.MofNCompleteColumn(),
                progress.TextColumn("{task.fields[text]}"),
                progress.TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("build", total=self._total, completed=self._first, text="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, rejected: int) -> None:
        """Take the number of images done and rejected so far."""
        now = time.monotonic()
        rate = (done - self._first) / max(now - self._begun, 1e-9)
        if self._bar:
            self._bar.update(self._task, completed=done, text=f"{rate:,.0f} images/s, {rejected:,} rejected")
        elif now - self._last >= 10 or done == self._total:
            self._last = now
            left = (self._total - done) / rate
            print(
                f"{done:,} of {self._total:,} images, {rate:,.0f} images/s, {rejected:,} rejected, {left:,.0f} s left",
                file=sys.stderr,
                flush=True,
            )
