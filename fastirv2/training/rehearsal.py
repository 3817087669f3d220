"""Two minutes before a week: some steps, a validation batch, a checkpoint and an all-reduce, and what the run would take."""

from __future__ import annotations

import shutil
import tempfile
import time
from pathlib import Path

import torch
import torch.distributed as dist

from fastirv2.errors import DataError
from fastirv2.report.machine import forget_peak, seconds_of, wait_for
from fastirv2.training.checkpoint import Checkpoints, read
from fastirv2.training.distributed import same_on_all, sum_over_ranks, together
from fastirv2.training.plan import Plan
from fastirv2.training.run import Run

_STEPS, _SECONDS = 20, 20.0  # timed steps, at most, and about how long they may take


def rehearse(run: Run, plan: Plan, stages: list[tuple[int, int, int]], place: Path, bytes_per_image: float) -> list[str]:
    """Do once what a run does again and again, and say what that means for the run; every rank calls this.

    Args:
        run: made for one pass a step, of the run's own batch on each rank, at the largest crop.
        plan: the run's own plan.
        stages: (first epoch, resize, crop in pixels) of each stage of training.
        place: an existing folder on the disk that checkpoints will go to.
        bytes_per_image: mean of the stored training images.

    Returns:
        sentences for the user.

    Raises:
        DataError: a record cannot be decoded, or a checkpoint not be written or read back.
    """
    first = _seconds(run, 1)
    torch.cuda.empty_cache()
    forget_peak(run.engine.device)
    steps = same_on_all(max(1, min(_STEPS, int(_SECONDS / _seconds(run, 1)))))
    run.train.wait_seconds()
    seconds = _seconds(run, steps)
    shares = torch.zeros(run.process.world, dtype=torch.float64, device=run.engine.device)
    shares[run.process.rank] = min(run.train.wait_seconds() / seconds, 1.0)
    waiting = float(sum_over_ranks(shares).max())
    _validate(run)
    validation = _validate(run)
    _end_for_fault(run)
    rate = steps * run.plan.global_batch / seconds
    said = [
        f"a pass of {run.plan.world} × {run.plan.batch} images takes {seconds / steps:.3g} s (the very first {first:.3g} s): "
        f"{rate:,.0f} images/s, {100 * waiting:.0f} % of the time waiting for data; a validation batch {validation:.3g} s",
        _memory(run),
        f"reading the images as they are stored takes {rate * bytes_per_image / 1e6:.3g} MB/s, over all ranks",
        *_all_reduce(run),
        _checkpoint(run, place),
    ]
    hours = _hours(plan, stages, rate) + plan.epochs * run.val_steps * validation / 3600
    said.append(f"at this speed {plan.epochs} epochs take {_duration(hours)}, {plan.epochs} validations included")
    return said


def _seconds(run: Run, steps: int) -> float:
    """Return the seconds of some steps, of the slowest rank."""
    taken = seconds_of(lambda: [run.engine.step(run.train, run.optimizer) for _ in range(steps)], run.engine.device)
    return _slowest(run, taken)


def _validate(run: Run) -> float:
    """Return the seconds of a validation batch, of the slowest rank."""
    return _slowest(run, seconds_of(lambda: run.engine.validate(run.val, 1, lambda: False), run.engine.device))


def _slowest(run: Run, seconds: float) -> float:
    every = torch.zeros(run.process.world, dtype=torch.float64, device=run.engine.device)
    every[run.process.rank] = seconds
    return float(sum_over_ranks(every).max())


def _end_for_fault(run: Run) -> None:
    def raise_own() -> None:
        if run.fault:
            raise run.fault

    together(raise_own)


def _memory(run: Run) -> str:
    """Say how much memory was needed: on a GPU with the input pipeline's own, which torch does not count."""
    if run.engine.device.type != "cuda":
        return "memory of a GPU is not known on a CPU; --train.batch is what it depends on"
    free, whole = torch.cuda.mem_get_info(run.engine.device)
    ours, used = torch.cuda.max_memory_reserved(run.engine.device), whole - free
    return (
        f"the GPU's memory: {used / 2**30:.1f} of {whole / 2**30:.1f} GiB are in use, of which the network took "
        f"{ours / 2**30:.1f} at most and the input pipeline with all else {max(used - ours, 0) / 2**30:.1f}"
    )


def _all_reduce(run: Run) -> list[str]:
    """Say how fast gradients are added up over the ranks."""
    if run.process.world == 1:
        return []
    gradient = torch.zeros(sum(p.numel() for p in run.engine.model.parameters() if p.requires_grad), device=run.engine.device)
    dist.all_reduce(gradient)
    wait_for(run.engine.device)
    seconds = _slowest(run, seconds_of(lambda: [dist.all_reduce(gradient) for _ in range(3)], run.engine.device)) / 3
    size = gradient.numel() * 4
    return [f"adding up {size / 1e6:,.0f} MB of gradients over all ranks: {seconds:.3g} s, {size / seconds / 1e9:.2f} GB/s"]


def _checkpoint(run: Run, place: Path) -> str:
    """Write a checkpoint and read it back, on the first rank."""

    def write() -> str:
        folder = Path(tempfile.mkdtemp(prefix=".dry-run-", dir=place))
        try:
            checkpoints, begun = Checkpoints(folder), time.perf_counter()
            state = {"model": run.engine.model.state_dict(), "optimizer": run.optimizer.state_dict()}
            checkpoints.save(state, 0, 0)
            written = time.perf_counter()
            read(checkpoints.path(0))
            size = checkpoints.path(0).stat().st_size
        except OSError as error:
            raise DataError(f"{place} cannot hold checkpoints: {error.strerror}; choose another --out") from error
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return (
            f"a checkpoint of {size / 1e6:,.0f} MB was written in {written - begun:.3g} s in {place} and read back in "
            f"{time.perf_counter() - written:.3g} s"
        )

    return together(lambda: write() if run.process.first else "")


def _hours(plan: Plan, stages: list[tuple[int, int, int]], rate: float) -> float:
    """Return the hours of all steps, if a smaller crop takes as much less time as it has less pixels."""
    largest = max(crop for _, _, crop in stages)
    ends = [first - 1 for first, _, _ in stages[1:]] + [plan.epochs]
    epochs = sum((end - first + 1) * (crop / largest) ** 2 for (first, _, crop), end in zip(stages, ends, strict=True))
    return epochs * plan.count / rate / 3600


def _duration(hours: float) -> str:
    if hours < 1:
        return f"{60 * hours:.1f} minutes"
    return f"{hours:.1f} hours" if hours < 48 else f"{hours / 24:.1f} days"
