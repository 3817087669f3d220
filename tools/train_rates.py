"""The rates that a run is made of, from the trainer's own parts: the input, the step on a batch that lies ready, and both.

both       the trainer's loop: the rate is set, the loader's next batch trained, and all ranks asked whether to stop
synthetic  the same loop on one batch that lies on the device
input      the loader's batches, and nothing done with them

They are taken in turn, so that what else happens on the machine meets them all; the first batches of each turn, which may
have been made before it, are left out, and so is all until every size of kernel has been chosen and compiled.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise, repeat
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from typing import Any

import numpy as np
import torch

from fastirv2.assembly import at_largest_crop, build, check_device, fit_batch, prepare
from fastirv2.config import Config, parse
from fastirv2.errors import StoppedError
from fastirv2.report.console import Console
from fastirv2.report.machine import forget_peak, peak_memory, seconds_of, spread, wait_for
from fastirv2.training import signals
from fastirv2.training.compiled import explained
from fastirv2.training.distributed import from_all, join, leaving, same_on_all, together
from fastirv2.training.engine import Batch
from fastirv2.training.optim import set_rate
from fastirv2.training.run import Run
from fastirv2.training.watchdog import Watchdog

WARM_UP = 3  # steps, besides the very first
RATE = 1e-3  # learning rate: small enough for the weights to stay finite, whatever the recipe


@contextmanager
def opened_run(arguments: Sequence[str], program: str) -> Iterator[tuple[Run, Config]]:
    """Make a run from the trainer's arguments on this rank, as the trainer does, at its largest crop and without a run folder.

    Raises:
        UsageError: an option is wrong, or the network cannot be compiled.
        DataError: the data cannot be used.
    """
    options = parse(arguments, silent=True)
    watchdog = Watchdog(program, 0, signals.Signals())
    try:
        with leaving():
            process = join(options.config.train.device, watchdog.collective_seconds)
            check_device(options.config, process.device)
            with TemporaryDirectory() as folder, explained():
                console = Console(first=False)
                prepared = together(lambda: prepare(fit_batch(options, process, console), process))
                prepared = replace(prepared, config=at_largest_crop(prepared.config))
                run = build(prepared, Path(folder), process, console, watchdog, None, None)
                try:
                    yield run, prepared.config
                finally:
                    run.end(with_all=False)
    finally:
        watchdog.stop()


class Loop:
    """The trainer's loop over a run, in pieces."""

    def __init__(self, run: Run, prefetch: int) -> None:
        self.run = run
        self.ahead = 2 + prefetch // run.plan.accumulation  # steps' worth of batches that may have been made before a turn
        self.device = run.engine.device
        self.ready = settled(next(run.train))

    def step(self, batches: Iterator[Batch]) -> None:
        """Take one step, as the trainer does."""
        self.run.step += 1
        set_rate(self.run.optimizer, RATE)
        self.run.engine.step(batches, self.run.optimizer, number=self.run.step, draw=self.run.step)
        self.run.engine.gate.bad_in_a_row()  # which keeps the host from running ahead
        agreed = self.run.agree()
        if agreed.signal:
            raise StoppedError(f"stopped by {signals.name(agreed.signal)}: nothing was written")

    def both(self) -> None:
        """Train the loader's next batch."""
        self.step(self.run.train)

    def synthetic(self) -> None:
        """Train the batch that lies ready."""
        self.step(repeat(self.ready))

    def input(self) -> None:
        """Take the next batches of a step, and do nothing with them."""
        for _ in range(self.run.plan.accumulation):
            next(self.run.train)


def settled(batch: Batch) -> Batch:
    """Return a copy of a batch, in its layout, which the loader does not take back."""
    images, labels, count = batch
    return images.clone(memory_format=torch.preserve_format), labels.clone(), count


def taken(work: Callable[[], None], count: int, device: torch.device) -> list[float]:
    """Return the seconds of each of `count` calls: between events on the stream on a GPU, so that nothing waits."""
    if device.type == "cuda":
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
        marks[0].record()
        for mark in marks[1:]:
            work()
            mark.record()
        wait_for(device)
        return [a.elapsed_time(b) / 1000 for a, b in pairwise(marks)]
    marks_on_host = [perf_counter()]
    for _ in range(count):
        work()
        marks_on_host.append(perf_counter())
    return [b - a for a, b in pairwise(marks_on_host)]


def measure(run: Run, config: Config, *, rounds: int, seconds: float) -> dict[str, Any]:
    """Measure the three in `rounds` turns of about `seconds` each, on every rank alike; return what rank 0 is to write down."""
    loop = Loop(run, config.input.prefetch)
    first = seconds_of(loop.both, loop.device)
    forget_peak(loop.device)
    for _ in range(WARM_UP):
        loop.both()
    each = seconds_of(loop.synthetic, loop.device)
    count = same_on_all(max(3, min(200, round(seconds / each))))
    gc.collect()
    found: dict[str, list[list[float]]] = {"both": [], "synthetic": [], "input": []}
    waits = []
    for _ in range(rounds):
        for name, rows in found.items():
            work = getattr(loop, name)
            for _ in range(loop.ahead if name != "synthetic" else 1):
                work()
            wait_for(loop.device)  # so that all that was waited before is known, and forgotten
            run.train.wait_seconds()
            rows.append(slowest(taken(work, count, loop.device)))
            if name == "both":
                waits.append(run.train.wait_seconds() / sum(rows[-1]))
    images = run.plan.global_batch
    compiler = run.engine.compiler
    return {
        "ranks": run.plan.world, "batch": run.plan.batch, "accumulation": run.plan.accumulation, "steps_a_turn": count,
        "rounds": rounds, "first_step_seconds": max(from_all(first)), "graphs": compiler.graphs if compiler else 0,
        "compile_seconds": compiler.seconds if compiler else 0.0, "peak_memory_bytes": peak_memory(loop.device),
        **{name: summed_up(rows, images) for name, rows in found.items()},
        "both_to_synthetic": spread([sum(b) / sum(a) for a, b in zip(found["both"], found["synthetic"], strict=True)]),
        "data_wait_share": max(from_all(min(1.0, median(waits)))),
    }  # fmt: skip


def slowest(seconds: list[float]) -> list[float]:
    """Return what each step took on the rank that it took longest on."""
    return np.max(from_all(seconds), axis=0).tolist()


def summed_up(rows: list[list[float]], images: int) -> dict[str, Any]:
    """Return images/s of the turns, and the median and 95th percentile of a step's seconds, of steps of `images`."""
    steps = [seconds for row in rows for seconds in row]
    return {
        "images_per_second": spread([images * len(row) / sum(row) for row in rows]),
        "step_seconds": {"median": median(steps), "p95": float(np.percentile(steps, 95))},
    }
