"""Where a run stands, and how that is saved and taken up."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch

from fastirv2.errors import DataError, DivergedError
from fastirv2.models.norm import unite_running_statistics
from fastirv2.report.console import Console
from fastirv2.report.machine import device_name
from fastirv2.report.reporter import Reporter
from fastirv2.report.utilisation import Utilisation, pixels_trained
from fastirv2.training.background import BackgroundWriter
from fastirv2.training.checkpoint import CheckpointConfig, Checkpoints
from fastirv2.training.distributed import Agreed, Agreement, Process, together
from fastirv2.training.engine import Batch, Engine
from fastirv2.training.plan import Plan, SyncBN


class Faults(Protocol):
    """What is wrong with the records that batches are made of: what is to end the run, and what was skipped."""

    error: DataError | None

    def untold(self) -> list[str]:
        """Return a sentence for each record that was skipped since the last call."""


class Batches(Protocol):
    """An endless iterator of batches that knows how long it kept the device waiting, and what is wrong with its records."""

    faults: Faults

    def __next__(self) -> Batch: ...

    def wait_seconds(self) -> float:
        """Return the seconds waited since the last call."""

    def close(self) -> None:
        """Stop making batches."""


@dataclass
class Run:
    """The parts of a run, and where it stands."""

    plan: Plan
    process: Process
    console: Console
    reporter: Reporter
    folder: Path
    table: dict[str, Any]  # the resolved configuration, as it is kept in checkpoints
    classes: list[str]
    checkpoint: CheckpointConfig
    sync_bn: SyncBN
    engine: Engine
    optimizer: torch.optim.Optimizer
    train: Batches
    val: Batches
    val_steps: int
    agreement: Agreement
    most_bad: int  # records that may be bad, of all that the ranks have met together
    crops: Sequence[tuple[int, int]]  # the first epoch of each size in training, and the size in pixels
    utilisation: Utilisation | None = None  # where the devices' peak is known
    bad: set[str] = field(default_factory=set)  # what is said of those
    writer: BackgroundWriter = field(init=False)  # of checkpoints, on the first rank
    recalibration: Callable[[Callable[[], bool]], None] | None = None  # before the last validation, unless told to stop
    dying: bool = False  # whether the user has been warned of it
    step: int = 0
    pending: int = 0  # an epoch that has ended and is not yet validated
    best_error: float = float("inf")
    best_epoch: int = 0
    best_step: int = 0
    interval: float = 0.0  # when the interval of the next log line began, on the perf_counter clock
    paused: float = 0.0  # seconds of it spent on validation and checkpoints
    saved: float = 0.0  # when the last checkpoint was handed over to be written
    saved_step: int = 0  # and of which step
    asked: bool = False  # whether the clock's wish for the next checkpoint has been said

    @property
    def checkpoints(self) -> Checkpoints:
        """The run's checkpoints."""
        return Checkpoints(self.folder / "checkpoints")

    def __post_init__(self) -> None:
        self.writer = BackgroundWriter(self.checkpoints, self.prune, self.console.say, self.console.warn)

    def prune(self, best_step: int) -> None:
        """Delete the checkpoints that are not to be kept."""
        every = self.checkpoint.keep_every
        self.checkpoints.prune(self.checkpoint.keep, best_step, lambda step: _kept(self.plan, step, every))

    def begin(self) -> None:
        """Start the clocks and all that reports."""
        self.console.begin(self.step, self.plan.total_steps, self.plan.epochs, ranks=self.process.world, work=self.work)
        self.reporter.begin(self.step, ranks=self.process.world, device=device_name(self.process.device))
        self.saved = time.perf_counter()
        self.interval += self.saved  # what a checkpoint said of the interval it was written in is negative

    def __enter__(self) -> None:
        self.begin()

    def __exit__(self, _: object, error: BaseException | None, __: object) -> None:
        self.end(with_all=error is None or getattr(error, "shared", False))

    def end(self, *, with_all: bool) -> None:
        """Stop all that runs beside the steps; what cannot be stopped cleanly does not hide why the run ends.

        When the run ends `with_all` ranks, none of them does before rank 0 has written what it is writing.
        """
        stops = [self.console.end, lambda: _write_out(self, with_all), self.train.close, self.val.close, self.agreement.close]
        for stop in stops:
            with contextlib.suppress(OSError, RuntimeError):
                stop()

    def work(self, step: int) -> float:
        """Return what the steps up to `step` take, in pixels: those of a small crop are soon done."""
        return pixels_trained(self.crops, step * self.plan.global_batch / self.plan.count)

    def agree(self) -> Agreed:
        """Return what all ranks know; a checkpoint is due by the clock or by steps."""
        self.writer.check()
        minutes, steps = self.checkpoint.minutes, self.checkpoint.steps
        late = minutes > 0 and time.perf_counter() - self.saved > 60 * minutes
        wish = self.process.first and late and not self.asked
        self.asked |= wish
        agreed = self.agreement.reach(checkpoint=wish, fault=self.fault is not None)
        return agreed._replace(checkpoint=agreed.checkpoint or (steps > 0 and self.step % steps == 0))

    @property
    def fault(self) -> DataError | None:
        """What this rank has met that is to end the run."""
        return self.train.faults.error or self.val.faults.error


def settle_statistics(run: Run) -> torch.Tensor | None:
    """Make the running statistics, and their averages, the same on all ranks, where ranks normalise over their own images.

    Returns:
        this rank's own before, (1 or 2, n); None where all had the same.
    """
    if run.plan.bn_ranks == run.process.world:
        return None
    own = []
    for statistics in _statistics(run):
        own.append(statistics.clone())
        unite_running_statistics(statistics, average=run.sync_bn != "off")
    return torch.stack(own)


def _take_back(run: Run, own: torch.Tensor) -> None:
    """Have the running statistics, and their averages, be what `settle_statistics` returned."""
    for statistics, before in zip(_statistics(run), own, strict=True):
        statistics.copy_(before)


def _statistics(run: Run) -> Iterator[torch.Tensor]:
    """Yield the running statistics (n,), and then their averages, each while they are in the model."""
    for context in [contextlib.nullcontext(), *([run.engine.ema.in_place()] if run.engine.ema else [])]:
        with context:
            yield run.engine.gate.statistics


def _of_all_ranks(run: Run, own: torch.Tensor) -> torch.Tensor:
    """Return every rank's tensor, stacked in the order of the ranks."""
    gathered = own.new_empty((run.process.world, *own.shape))
    torch.distributed.all_gather(list(gathered), own)
    return gathered


def save(run: Run, *, last: bool = False) -> None:
    """Hand over the state to be written while training goes on; the `last` time, return once it is on the disk.

    Every rank calls this. Rank 0's state is every rank's, but for the counts since the last line, which are summed.

    Raises:
        DivergedError: a weight is no finite number; what was saved before stays.
        DataError: the disk refuses it the `last` time; before that, training goes on without, which is said.
    """
    if run.saved_step != run.step:
        _hand_over(run)
    if last:
        together(run.writer.finish)  # no rank may end while rank 0 writes


def _hand_over(run: Run) -> None:
    begun = time.perf_counter()
    own = settle_statistics(run)
    of_ranks = None if own is None else _of_all_ranks(run, own)
    sums = run.engine.train_counts.take()
    if not run.engine.weights_are_finite():
        raise DivergedError(
            f"a weight is no finite number by step {run.step}: training diverged; begin anew with a lower --schedule.rate in "
            f"another RUN ({run.folder} keeps its last checkpoint)"
        )
    if run.process.first:
        run.engine.train_counts.add_sums(sums)
        run.reporter.flush()
        state = _state(run, sums, begun) | {"statistics_of_ranks": of_ranks}
        run.writer.put(state, run.step, run.best_step)
    if own is not None:
        _take_back(run, own)  # so that no bit depends on when the run was saved
    run.saved, run.saved_step, run.asked = time.perf_counter(), run.step, False
    run.paused += run.saved - begun


def _state(run: Run, sums: torch.Tensor, now: float) -> dict[str, Any]:
    state = {
        "step": run.step, "pending": run.pending, "best_error": run.best_error, "best_epoch": run.best_epoch,
        "best_step": run.best_step, "train_counts": sums, "interval_seconds": now - run.interval - run.paused,
        "model": run.engine.model.state_dict(), "optimizer": run.optimizer.state_dict(), "gate": run.engine.gate.state_dict(),
        "classes": run.classes, "config": run.table, "unlogged": run.reporter.waiting,
    }  # fmt: skip
    if run.engine.ema:
        state["ema"] = run.engine.ema.state_dict()
    return state


def _write_out(run: Run, with_all: bool) -> None:
    """Write what the disk has not taken yet, as far as it does now."""
    run.reporter.close()
    together(run.writer.close) if with_all else run.writer.close()


def _kept(plan: Plan, step: int, every: int) -> bool:
    """Say whether `step` ends an epoch whose number `every` divides."""
    epoch = plan.ended_by(step)
    return every > 0 and epoch > 0 and epoch % every == 0


def restore(run: Run, state: dict[str, Any]) -> None:
    """Take up a checkpoint: weights, optimizer, counts, and the best so far, unless its file is gone."""
    run.engine.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    if "gate" in state:  # not from an older version
        run.engine.gate.load_state_dict(state["gate"])
    if run.engine.ema:
        run.engine.ema.load_state_dict(state["ema"])
    of_ranks = state.get("statistics_of_ranks")
    if of_ranks is not None and len(of_ranks) == run.process.world:
        _take_back(run, of_ranks[run.process.rank])
    run.step, run.pending = state["step"], state["pending"]
    if run.checkpoints.path(state["best_step"]).exists():
        run.best_error, run.best_epoch, run.best_step = state["best_error"], state["best_epoch"], state["best_step"]
    run.interval = -state["interval_seconds"]
    if run.process.first:
        run.engine.train_counts.add_sums(state["train_counts"])
    together(lambda: run.checkpoints.link(run.step, run.best_step) if run.process.first else None)
