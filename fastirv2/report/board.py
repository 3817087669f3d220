"""A run's lines in TensorBoard's format, where tensorboard is installed."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastirv2.report.metrics import Line

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

SHOWN = ("loss", "top1_error", "top5_error", "lr", "images_per_second", "data_wait_share")


class Board:
    """The folder RUN/tensorboard; without the package nothing is made and nothing is said."""

    def __init__(self, folder: Path, after_step: int) -> None:
        """Write what comes after `after_step`; what an interrupted process wrote beyond it is no longer shown."""
        self._writer: SummaryWriter | None = None
        if find_spec("tensorboard"):
            from torch.utils.tensorboard import SummaryWriter

            self._writer = SummaryWriter(str(folder), purge_step=after_step + 1)

    def add(self, line: Line) -> None:
        """Add a line of kind "train" or "val"."""
        if not self._writer:
            return
        try:
            for name in SHOWN:
                if name in line:
                    self._writer.add_scalar(f"{name}/{line['kind']}", line[name], line["step"])
        except OSError:  # a full disk: what matters is in metrics.jsonl, whose error is said
            self._writer = None

    def close(self) -> None:
        """Write out what is left."""
        if self._writer:
            self._writer.close()
