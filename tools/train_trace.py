"""What a training step consists of, as ranges: a Chrome trace for Perfetto, or NVTX ranges for Nsight Systems.

batch    one call of the loader
pass     forward and backward pass of a batch
update   the check of the gradient, the optimizer, the average of the weights, the counts

The trainer's own code has none of it: a tool that is asked to puts the ranges around its parts.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from fastirv2.errors import DataError, UsageError
from fastirv2.report.machine import wait_for
from fastirv2.training.run import Run

STEPS = 10


def ranged(name: str, work: Callable[..., Any]) -> Callable[..., Any]:
    """Return `work` inside a range of the profiler."""

    def inside(*arguments: Any, **named: Any) -> Any:
        with record_function(name):
            return work(*arguments, **named)

    return inside


class RangedBatches:
    """A loader whose every batch is a range."""

    def __init__(self, loader: Any) -> None:
        self._loader = loader

    def __next__(self) -> Any:
        with record_function("batch"):
            return next(self._loader)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


@contextmanager
def ranges(run: Run) -> Iterator[None]:
    """Have the run's loader and the parts of its step be ranges for as long as the context lasts."""
    loader, engine = run.train, run.engine
    run.train = RangedBatches(loader)
    engine._pass, engine._update = ranged("pass", engine._pass), ranged("update", engine._update)  # type: ignore[method-assign]
    try:
        yield
    finally:
        run.train = loader
        del engine._pass, engine._update


def write_trace(run: Run, step: Callable[[], None], file: Path) -> None:
    """Write a Chrome trace of some steps of rank 0; every rank takes them. Raises DataError when the file cannot be written."""
    if not run.process.first:
        _take(run, step)
        return
    try:
        file.write_bytes(b"")
    except OSError as error:
        raise DataError(f"{file} cannot be written: {error.strerror}; choose another --trace") from error
    activities = [ProfilerActivity.CPU]
    if run.engine.device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    else:
        os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # its lines on stderr
    with ranges(run), profile(activities=activities) as profiler:
        _take(run, step)
    profiler.export_chrome_trace(str(file))


def check_nsight(run: Run) -> None:
    """Raise UsageError where there is no GPU to show to Nsight."""
    if run.engine.device.type != "cuda":
        raise UsageError("--nvtx is for Nsight, which needs an NVIDIA GPU; --trace writes a trace on a CPU too")


def show_to_nsight(run: Run, step: Callable[[], None]) -> None:
    """Take some steps with NVTX ranges, between cudaProfilerStart and -Stop: `nsys profile --capture-range cudaProfilerApi`."""
    with ranges(run), torch.cuda.profiler.profile(), torch.autograd.profiler.emit_nvtx():
        _take(run, step)


def _take(run: Run, step: Callable[[], None]) -> None:
    for _ in range(STEPS):
        step()
    wait_for(run.engine.device)
