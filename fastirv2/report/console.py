"""What a run says while it goes: a live line on a terminal, plain lines elsewhere."""

from __future__ import annotations

import time

from rich.console import Console as RichConsole
from rich.console import Group
from rich.live import Live
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn
from rich.text import Text

from fastirv2.report.metrics import Line


class Console:
    """Speaks for rank 0; silent on the other ranks."""

    def __init__(self, *, first: bool) -> None:
        self._rich = RichConsole(quiet=not first, highlight=False, soft_wrap=True)
        self._errors = RichConsole(quiet=not first, highlight=False, soft_wrap=True, stderr=True)
        self._first = first
        self._live: Live | None = None
        self._steps = Progress()
        self._total = self._epochs = 0
        self._begun = (0, time.monotonic())

    def say(self, text: str) -> None:
        """Print a line."""
        _print(self._rich, text)

    def warn(self, text: str) -> None:
        """Print a line on stderr."""
        _print(self._errors, f"warning: {text}")

    def begin(self, step: int, total_steps: int, epochs: int) -> None:
        """Start reporting after `step` of `total_steps`."""
        self._total, self._epochs, self._begun = total_steps, epochs, (step, time.monotonic())
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
        text = (
            f"loss {line['loss']:.4f}  error {line['top1_error']:.1f} / {line['top5_error']:.1f} %  "
            f"{line['images_per_second']:,.0f} images/s  wait {100 * line['data_wait_share']:.0f} %  lr {line['lr']:.5f}  "
            f"{line['memory_bytes'] / 2**30:.1f} GiB"
        )
        epoch, left = f"epoch {line['epoch']}/{self._epochs}  step", f"{self._left(line['step'])} left"
        if self._live:
            self._steps.update(self._steps.task_ids[0], completed=line["step"], description=epoch, left=left)
            self._live.update(Group(self._steps, Text(text, overflow="ellipsis", no_wrap=True)))
        else:
            self.say(f"{epoch} {line['step']}/{self._total}  {text}  {left}")

    def validation(self, line: Line, *, best: bool) -> None:
        """Report a line of kind "val"."""
        self.say(
            f" * epoch {line['epoch']}/{self._epochs} validated on {line['images']:,} images: top-1 error "
            f"{line['top1_error']:.3f} %, top-5 error {line['top5_error']:.3f} %, loss {line['loss']:.4f}"
            f"{', the best so far' if best else ''}"
        )

    def end(self) -> None:
        """Stop the live line."""
        if self._live:
            self._live.stop()
            self._live = None

    def _left(self, step: int) -> str:
        first, since = self._begun
        seconds = (time.monotonic() - since) / max(step - first, 1) * (self._total - step)
        return f"{int(seconds // 3600)}:{int(seconds // 60 % 60):02}:{int(seconds % 60):02}"


def _print(console: RichConsole, text: str) -> None:
    """Print a line; output that goes to a full disk comes later, and is no reason to end a run."""
    try:
        console.print(text, markup=False)
    except BrokenPipeError:
        raise
    except OSError:
        pass
