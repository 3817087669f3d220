"""How far a build is: a bar on a terminal, a line every ten seconds elsewhere."""

from __future__ import annotations

import sys
import time
from typing import Any

from fastirv2.building.summary import time_text
from fastirv2.errors import say

SECONDS_A_LINE = 10


class Progress:
    """Shows images/s, MB/s read, images rejected and the time left, on stderr.

    `total` images, of which `done` were there before; on a terminal a bar, elsewhere a line every ten seconds.
    """

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
                console=Console(stderr=True),
                transient=True,
            )
            self._task = self._bar.add_task("build", total=self._total, completed=self._first, text="")
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, done: int, rejected: int, read: int) -> None:
        """Take the number of images done and rejected, and of bytes read by this process's workers, so far."""
        now = time.monotonic()
        due = now - self._last >= SECONDS_A_LINE or done == self._total
        if not (self._bar or due):
            return
        seconds = max(now - self._begun, 1e-9)
        rate = (done - self._first) / seconds
        left = time_text((self._total - done) / rate) if rate else "unknown time"
        text = f"{rate:,.0f} images/s, {read / seconds / 1e6:,.1f} MB/s, {rejected:,} rejected, {left} left"
        if self._bar:
            self._bar.update(self._task, completed=done, text=text)
        else:
            self._last = now
            self.say(f"{done:,} of {self._total:,} images, {text}")

    def say(self, text: str) -> None:
        """Print a line of its own."""
        if self._bar:
            self._bar.console.print(text, markup=False, highlight=False)
        else:
            say(text)
