"""A live line on stderr, where that is a terminal, of how much is done."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn


@contextlib.contextmanager
def progress(total: int, things: str, *, shown: bool = True) -> Iterator[Callable[[int], None]]:
    """Give what is to be told how many more of `total` are done."""
    if not (shown and sys.stderr.isatty()):
        yield lambda _: None
        return
    columns = TextColumn(things), MofNCompleteColumn(), BarColumn(), TimeRemainingColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as live:
        task = live.add_task(things, total=total)
        yield lambda count: live.advance(task, count)
