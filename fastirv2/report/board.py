"""A run's lines in TensorBoard's format, where tensorboard is installed."""

from __future__ import annotations

import io
import os
import socket
import time
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from fastirv2.errors import DataError
from fastirv2.files import Log
from fastirv2.report.metrics import Line

if TYPE_CHECKING:
    from tensorboard.compat.proto.event_pb2 import Event

SHOWN = ("loss", "top1_error", "top5_error", "lr", "images_per_second", "data_wait_share", "flop_utilisation", "zero_share")


class Board:
    """The folder RUN/tensorboard; without the package nothing is made and nothing is said.

    Events are written by the calling thread, in tensorboard's own records: its SummaryWriter loses those of a full disk.
    """

    def __init__(self, folder: Path, after_step: int) -> None:
        """Write what comes after `after_step`; what an interrupted process wrote beyond it is no longer shown."""
        self._log: Log | None = None
        if find_spec("tensorboard"):
            self._log = Log(folder / f"events.out.tfevents.{int(time.time()):010}.{socket.gethostname()}.{os.getpid()}")
            self._log.waiting.append(_header(after_step + 1))

    def add(self, line: Line) -> None:
        """Add a line of kind "train" or "val".

        Raises:
            DataError: it cannot be written; it waits, and comes with the next.
        """
        if self._log:
            self._log.waiting.append(_scalars(line))
            self.write()

    def write(self) -> None:
        """Write what waits; raises DataError if it cannot be written."""
        if not self._log:
            return
        try:
            self._log.path.parent.mkdir(exist_ok=True)
            self._log.write()
        except OSError as error:
            raise DataError(f"{self._log.path} cannot be written: {error.strerror}; make room, or mend that") from error


def _header(step: int) -> bytes:
    """Return what begins a file whose first step is `step`: what older files have from there on is not to be shown."""
    from tensorboard.compat.proto.event_pb2 import Event, SessionLog

    return _records(
        Event(wall_time=time.time(), step=step, file_version="brain.Event:2"),
        Event(wall_time=time.time(), step=step, session_log=SessionLog(status=SessionLog.START)),
    )


def _scalars(line: Line) -> bytes:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    shown = {name: line[name] for name in SHOWN if line.get(name) is not None}
    values = [Summary.Value(tag=f"{name}/{line['kind']}", simple_value=value) for name, value in shown.items()]
    return _records(Event(wall_time=time.time(), step=line["step"], summary=Summary(value=values)))


def _records(*events: Event) -> bytes:
    from tensorboard.summary.writer.record_writer import RecordWriter

    stream = io.BytesIO()
    for event in events:
        RecordWriter(stream).write(event.SerializeToString())
    return stream.getvalue()
