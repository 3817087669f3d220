"""Where a run stands, and what it does besides its steps: log lines, validation, checkpoints, going on."""

from __future__ import annotations

import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from fastirv2.errors import DivergedError
from fastirv2.models.norm import average_running_statistics
from fastirv2.report.board import Board
from fastirv2.report.console import Console
from fastirv2.report.metrics import Metrics, rates, write_summary
from fastirv2.training.checkpoint import CheckpointConfig, Checkpoints
from fastirv2.training.distributed import Agreement, Process, sum_over_ranks
from fastirv2.training.engine import Batch, Engine
from fastirv2.training.plan import Plan


class Batches(Protocol):
    """An endless iterator of batches that knows how long it kept the device waiting."""

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
    folder: Path
    table: dict[str, Any]  # the resolved configuration, as it is kept in checkpoints
    classes: list[str]
    checkpoint: CheckpointConfig
    average_statistics: bool  # the ranks normalise over images of their own, so running statistics must be averaged
    engine: Engine
    optimizer: torch.optim.Optimizer
    train: Batches
    val: Batches
    val_steps: int
    agreement: Agreement
    step: int = 0
    best_error: float = float("inf")
    best_epoch: int = 0
    interval: float = 0.0  # when the interval of the next log line began, on the perf_counter clock
    paused: float = 0.0  # seconds of it spent on validation and checkpoints
    saved: float = 0.0  # when the last checkpoint was written
    board: Board | None = None  # on the first rank, from the first step on

    def begin(self) -> None:
        """Start the clocks and, on the first rank, all that reports."""
        self.console.begin(self.step, self.plan.total_steps, self.plan.epochs)
        if self.process.first:
            self.board = Board(self.folder / "tensorboard", self.step)
        self.interval = self.saved = time.perf_counter()

    def report(self, line: dict[str, Any]) -> None:
        """Write a line to the files of the run."""
        Metrics(self.folder).add(line)
        if self.board:
            self.board.add(line)

    def end(self) -> None:
        """Stop all that runs beside the steps."""
        self.console.end()
        if self.board:
            self.board.close()
        self.agreement.close()
        self.train.close()
        self.val.close()

    def checkpoint_due(self) -> bool:
        """Say whether the options ask for a checkpoint after this step; on rank 0 the clock does too."""
        minutes, steps = self.checkpoint.minutes, self.checkpoint.steps
        late = self.process.first and minutes > 0 and time.perf_counter() - self.saved > 60 * minutes
        return late or (steps > 0 and self.step % steps == 0)


def log_interval(run: Run, rate: float) -> None:
    """Write and show what the steps since the last line amounted to. Every rank calls this; the counts are read here.

    Raises:
        DivergedError: the loss is no finite number.
    """
    sums = run.engine.train_counts.take()
    seconds = time.perf_counter() - run.interval - run.paused
    shares = torch.zeros(run.process.world, dtype=torch.float64, device=run.engine.device)
    shares[run.process.rank] = run.train.wait_seconds() / seconds
    slowest = sum_over_ranks(shares).max(0)
    line = {
        "kind": "train", "step": run.step, "epoch": run.plan.epoch_of(run.step), **rates(sums.tolist()),
        "images": int(sums[3]), "lr": rate, "images_per_second": float(sums[3]) / seconds,
        "data_wait_share": min(float(slowest.values), 1.0), "data_wait_rank": int(slowest.indices),
        "memory_bytes": peak_memory(run.engine.device), "time": time.time(),
    }  # fmt: skip
    run.interval, run.paused = time.perf_counter(), 0.0
    if not torch.isfinite(sums[0]):
        error = DivergedError(
            f"the loss is {float(sums[0])} by step {run.step}: training diverged; begin anew with a lower --schedule.rate "
            f"in another RUN ({run.folder} keeps its last checkpoint)"
        )
        error.shared = True
        raise error
    if run.process.first:
        run.report(line)
        run.console.train(line)


def peak_memory(device: torch.device) -> int:
    """Return the most memory used so far in bytes: the GPU's, or this process's on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def validate(run: Run, epoch: int) -> bool:
    """Validate at an epoch's end, log it, and say whether it is the best so far."""
    begun = time.perf_counter()
    settle_statistics(run)
    sums = run.engine.validate(run.val, run.val_steps)
    counts = {"images": int(sums[3]), "top1_correct": int(sums[1]), "top5_correct": int(sums[2])}
    line = {"kind": "val", "step": run.step, "epoch": epoch, **counts, **rates(sums.tolist()), "weights": "raw"}
    improved = line["top1_error"] < run.best_error
    if improved:
        run.best_error, run.best_epoch = line["top1_error"], epoch
    if run.process.first:
        run.report(line)
        write_summary(run.folder)
        run.console.validation(line, best=improved)
    run.paused += time.perf_counter() - begun
    return improved


def settle_statistics(run: Run) -> None:
    """Make the running statistics the same on all ranks."""
    if run.average_statistics:
        average_running_statistics(run.engine.model)


def save(run: Run, *, best: bool) -> None:
    """Write a checkpoint: rank 0's state is every rank's, but for the counts since the last line, which are summed."""
    begun = time.perf_counter()
    settle_statistics(run)
    sums = run.engine.train_counts.take()
    if run.process.first:
        run.engine.train_counts.add_sums(sums)
        state = {
            "step": run.step, "best_error": run.best_error, "best_epoch": run.best_epoch, "train_counts": sums,
            "model": run.engine.model.state_dict(), "optimizer": run.optimizer.state_dict(),
            "classes": run.classes, "config": run.table,
        }  # fmt: skip
        checkpoints = Checkpoints(run.folder / "checkpoints")
        checkpoints.save(state, run.step, best=best)
        checkpoints.prune(run.checkpoint.keep, lambda step: _is_kept(run.plan, step, run.checkpoint.keep_every))
    run.saved = time.perf_counter()
    run.paused += run.saved - begun


def _is_kept(plan: Plan, step: int, every: int) -> bool:
    """Say whether `step` ends an epoch whose number `every` divides."""
    epoch = plan.ended_by(step)
    return every > 0 and epoch > 0 and epoch % every == 0


def restore(run: Run, state: dict[str, Any]) -> None:
    """Take up a checkpoint; what was logged after it is dropped, since it will be done again."""
    run.engine.model.load_state_dict(state["model"])
    run.optimizer.load_state_dict(state["optimizer"])
    run.step, run.best_error, run.best_epoch = state["step"], state["best_error"], state["best_epoch"]
    if run.process.first:
        run.engine.train_counts.add_sums(state["train_counts"])
        Metrics(run.folder).cut(run.step)
