"""What a run says while it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from datetime import datetime

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from fastirv2.report.metrics import Line

SLOW = 0.05  # the share of waiting for data from which on the rank that waits most is named


class _Rich(RichConsole):
    """Says nothing more once nobody reads it, as when tee is ended by the same Ctrl-C: a run is to save all the same."""

    def on_broken_pipe(self) -> None:
        """Fall silent, where rich would end the process."""
        self.quiet = True


class Console:
    """Speaks for rank 0; silent on the other ranks."""

    def __init__(self, *, first: bool) -> None:
        self._rich = _Rich(quiet=not first, highlight=False, soft_wrap=True)
        self._errors = _Rich(quiet=not first, highlight=False, soft_wrap=True, stderr=True)
        self._first = first
        self._live: Live | None = None
        self._steps = Progress()
        self._total = self._epochs = 0
        self._ranks = 1
        self._work: Callable[[int], float] = float
        self._begun = 0, time.monotonic()
        self._since: tuple[int, float] | None = None  # the step of the first line, and when it came

    def say(self, text: str) -> None:
        """Print a line."""
        _print(self._rich, text)

    def warn(self, text: str) -> None:
        """Print a line on stderr."""
        _print(self._errors, f"warning: {text}")

    def begin(self, step: int, total_steps: int, epochs: int, *, ranks: int = 1, work: Callable[[int], float] = float) -> None:
        """Start reporting after `step` of `total_steps`; `work` is what all steps up to one take, in any unit."""
        self._total, self._epochs, self._ranks, self._work = total_steps, epochs, ranks, work
        self._since = None
        self._begun = step, time.monotonic()
        if self._first and self._rich.is_terminal:
            text = TextColumn("{task.description}"), TextColumn("{task.fields[left]}")
            self._steps = Progress(text[0], MofNCompleteColumn(), BarColumn(None), text[1], expand=True)
            self._steps.add_task(f"epoch 1/{epochs}  step", total=total_steps, completed=step, left="")
            self._live = Live(self._steps, console=self._rich, refresh_per_second=4)
            self._live.start()

    def advance(self, step: int) -> None:
        """Show that `step` is done; costs nothing where there is no terminal."""
        if self._live:
            self._steps.update(self._steps.task_ids[0], completed=step)

    def train(self, line: Line) -> None:
        """Report a line of kind "train"."""
        slowest = f" (rank {line['data_wait_rank']})" if self._ranks > 1 and line["data_wait_share"] > SLOW else ""
        parts = [
            f"loss {_number(line['loss'])}",
            f"error {line['top1_error']:.1f} / {line['top5_error']:.1f} %",
            f"{line['images_per_second']:,.0f} images/s",
            *([f"MFU {100 * line['flop_utilisation']:.1f} %"] if "flop_utilisation" in line else []),
            f"wait {100 * line['data_wait_share']:.0f} %{slowest}",
            f"lr {line['lr']:.4g}",
            f"{line['memory_bytes'] / 2**30:.1f} GiB",
        ]
        text, epoch, left = "  ".join(parts), f"epoch {line['epoch']}/{self._epochs}  step", self._left(line["step"])
        if self._live:
            self._steps.update(self._steps.task_ids[0], completed=line["step"], description=epoch, left=left)
            self._live.update(Group(self._steps, Text(text, overflow="ellipsis", no_wrap=True)))
        else:
            self.say(f"{epoch} {line['step']}/{self._total}  {text}  {left}")

    def epoch(self, row: Line, images: int, *, best: bool) -> None:
        """Report an epoch: its row, as `report.metrics.epochs` has it, and how many images it was validated on."""
        parts = [f"error {_pair(row, 'val', 3)} on {images:,} images, loss {_number(row['val_loss'])}"]
        if row["ema_loss"] is not None:
            parts.append(f"with averaged weights {_pair(row, 'ema', 3)}, loss {_number(row['ema_loss'])}")
        parts[-1] += ", the best so far" if best else ""
        if row["images_per_second"]:
            parts += [
                f"training {_pair(row, 'train', 1)}, loss {_number(row['train_loss'])}",
                f"{row['images_per_second']:,.0f} images/s, wait {100 * row['data_wait_share']:.0f} %",
                f"{clock(row['train_seconds'])} + {clock(row['val_seconds'] or 0)}",
            ]
        self.say(f" * epoch {row['epoch']}/{self._epochs}  {'; '.join(parts)}")

    def end(self) -> None:
        """Stop the live line."""
        if self._live:
            self._live.stop()
            self._live = None

    def _left(self, step: int) -> str:
        """Say how long it takes to the end, and when that is, at the rate since the first line, which has what is slow once."""
        now = time.monotonic()
        first, since = self._since or self._begun
        self._since = self._since or (step, now)
        rate = (self._work(step) - self._work(first)) / max(now - since, 1e-9)
        if rate <= 0:
            return ""
        seconds = (self._work(self._total) - self._work(step)) / rate
        return f"{clock(seconds)} left, ends {moment(time.time() + seconds)}"


def clock(seconds: float) -> str:
    """Return hours, minutes and seconds, as 1:02:03."""
    return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"


def moment(time: float) -> str:
    """Return a Unix time as local weekday, day and time of the day: Tue 14 Oct 18:05."""
    try:
        when = datetime.fromtimestamp(time)
    except (OverflowError, ValueError, OSError):  # ten thousand years
        return "the end of time"
    return f"{when:%a} {when.day} {when:%b %H:%M}"


def _print(console: RichConsole, text: str) -> None:
    """Print a line; output that goes to a full disk comes later, and is no reason to end a run."""
    with contextlib.suppress(OSError):
        console.print(text, markup=False)


def _pair(row: Line, which: str, digits: int) -> str:
    """Return top-1 and top-5 error."""
    errors = (row[f"{which}_{name}"] for name in ("top1_error", "top5_error"))
    return f"{' / '.join('none' if error is None else f'{error:.{digits}f}' for error in errors)} %"


def _number(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"
