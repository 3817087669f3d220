"""A Chrome trace of some batches through the loader, for chrome://tracing and Perfetto.

batch       one call of the loader; inside it, one after the other:
feed        the next batch is drawn, and views of its records go into the graph
wait        for the graph to put out a batch that it was fed earlier
hand-over   its tensors as torch's
read-ahead  the kernel is asked for the records of later batches, on a thread of its own

On a GPU the kernels and copies of DALI and torch are there too. The graph's own threads are seen by no profiler of torch's.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from input_stages import Input
from torch._C._profiler import _ExperimentalConfig
from torch.profiler import ProfilerActivity, profile, record_function

from fastirv2.data.loader import Batch, Loader
from fastirv2.errors import DataError
from fastirv2.report.machine import wait_for

BATCHES = 20


class TracedLoader(Loader):
    """The trainer's loader, with what it does as ranges of torch's profiler."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._after_waiting = ExitStack()
        self._records.read_ahead = ranged("read-ahead", self._records.read_ahead)
        self._pipeline.schedule_run = ranged("feed", self._pipeline.schedule_run)
        outputs = ranged("wait", self._pipeline.outputs)

        def outputs_then_hand_over(*stream: Any) -> Any:
            waited_for = outputs(*stream)
            self._after_waiting.enter_context(record_function("hand-over"))
            return waited_for

        self._pipeline.outputs = outputs_then_hand_over

    def __next__(self) -> Batch:
        """Return the next batch."""
        with record_function("batch"), self._after_waiting:
            return super().__next__()


def ranged(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` inside a range of the profiler."""

    def inside(*arguments: Any) -> Any:
        with record_function(name):
            return work(*arguments)

    return inside


def write_trace(given: Input, file: Path) -> None:
    """Write the trace of some batches, after as many that warm up; raises DataError when the file cannot be written."""
    try:
        file.write_bytes(b"")
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}; choose another --trace") from error
    loader = given.loader(TracedLoader)
    for _ in range(BATCHES):
        next(loader)
    activities = [ProfilerActivity.CPU]
    if given.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines on stderr; on a GPU they tell when CUPTI cannot be used
    with profile(activities=activities, experimental_config=_ExperimentalConfig(profile_all_threads=True)) as profiler:
        for _ in range(BATCHES):
            next(loader)
        wait_for(given.device)
    loader.close()
    profiler.export_chrome_trace(str(file))
