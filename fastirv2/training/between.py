"""What a run looks at between its steps: log lines, faults, gradients that are not finite, validation."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any, NoReturn

import torch

from fastirv2.errors import DataError, DivergedError
from fastirv2.report.machine import forget_peak, peak_memory
from fastirv2.report.metrics import rates
from fastirv2.training.distributed import Agreed, from_all, sum_over_ranks, together
from fastirv2.training.run import Run, save, settle_statistics

_DYING = 0.95  # share of zeros before the pool


def log_interval(run: Run, rate: float) -> None:
    """Write and show what the steps since the last line amounted to. Every rank calls this; the counts are read here."""
    sums = run.engine.train_counts.take()
    skipped = run.engine.gate.take_skipped()
    seconds = time.perf_counter() - run.interval - run.paused
    untold = run.train.faults.untold() + run.val.faults.untold()
    figures = torch.zeros(2, run.process.world, dtype=torch.float64, device=run.engine.device)
    figures[:, run.process.rank] = torch.tensor([run.train.wait_seconds() / seconds, len(untold)])
    shares, bad = sum_over_ranks(figures).cpu()
    slowest = shares.max(0)
    images = int(sums[3]) + skipped * run.plan.global_batch  # all that passed through; losses and errors are of what counted
    epoch = run.plan.epoch_of(run.step)
    share = {"flop_utilisation": run.utilisation.share(epoch, images / seconds)} if run.utilisation else {}
    line = {
        "kind": "train", "step": run.step, "epoch": epoch, **rates(sums.tolist()),
        "images": images, "skipped_steps": skipped, "zero_share": run.engine.zero_share(),
        "lr": rate, "images_per_second": images / seconds, **share,
        "data_wait_share": min(float(slowest.values), 1.0), "data_wait_rank": int(slowest.indices),
        "memory_bytes": peak_memory(run.engine.device), "time": time.time(),
    }  # fmt: skip
    forget_peak(run.engine.device)
    run.interval, run.paused = time.perf_counter(), 0.0
    run.reporter.train(line)
    if (line["zero_share"] or 0.0) > _DYING and not run.dying:
        run.dying = True
        run.console.warn(
            f"{100 * line['zero_share']:.1f} % of the activations before the pool are zero at step {run.step}: the network is "
            "dying, after which it learns nothing more; begin anew with a lower --schedule.rate or a longer warm-up"
        )
    if news := run.engine.compiler and run.engine.compiler.news():
        run.console.say(news)
    if skipped:
        which = "a step" if skipped == 1 else f"{skipped} steps"
        run.console.warn(f"{which} before step {run.step + 1} did not count: the gradient was no finite number")
    if bad.any():
        tell_bad(run, untold)


def tell_bad(run: Run, sentences: list[str]) -> None:
    """Say and log which records the ranks have found to be bad; every rank calls this.

    Raises:
        DataError: they are too many; the state is saved.
    """
    found = dict.fromkeys(sentence for part in from_all(sentences) for sentence in part if sentence not in run.bad)
    run.bad |= set(found)
    for sentence in found:
        run.reporter.bad(sentence, run.step)
    if len(run.bad) > run.most_bad:
        save(run, last=True)
        error = DataError(
            f"{len(run.bad)} records cannot be decoded, more than 0.1 % of an epoch: {run.folder}/metrics.jsonl names them; "
            "build the LMDB anew with fastirv2-build-lmdb, which checks every image"
        )
        error.shared = True
        raise error


def end_for_fault(run: Run) -> NoReturn:
    """Raise, on all ranks, what one of them has met; the state is saved."""

    def raise_own() -> None:
        if run.fault:
            raise run.fault

    together(raise_own)
    raise RuntimeError("a rank that has met a fault does not say which")


def check_patience(run: Run, patience: int, records: Callable[[int], list[int]]) -> None:
    """End the run when `patience` steps in a row did not count; `records` gives those of this rank in a step.

    Raises:
        DivergedError: they did, on all ranks at the same step; the last checkpoint stays.
    """
    bad = run.engine.gate.bad_in_a_row()
    if bad < patience:
        return
    own = run.engine.gate.own_bad_step()
    found = from_all((own, records(own)) if own > run.step - patience else None)
    ranks = [rank for rank, what in enumerate(found) if what]
    for rank in ranks:
        step, numbers = found[rank]
        run.reporter.write({"kind": "diverged", "step": step, "rank": rank, "records": numbers, "time": time.time()})
    where = f"the loss itself on rank {', '.join(map(str, ranks))}" if ranks else "not the loss"
    raise DivergedError(
        f"the gradient was no finite number in {bad} steps in a row, {where}, by step {run.step}: training diverged; begin "
        f"anew with a lower --schedule.rate in another RUN ({run.folder} keeps its last checkpoint)"
    )


def validate(run: Run) -> Agreed:
    """Validate the epoch that is pending, log it, and note whether it is the best so far.

    Returns:
        the signal or the fault that came meanwhile, the same on all ranks; the epoch then stays pending.
    """
    begun = time.perf_counter()
    agreed = Agreed()

    def told_to_stop() -> bool:
        nonlocal agreed
        agreed = run.agreement.reach(fault=run.fault is not None)
        return agreed.signal > 0 or agreed.fault

    if run.recalibration and run.pending == run.plan.epochs:
        run.recalibration(told_to_stop)
    sums = None
    if not (agreed.signal or agreed.fault):
        settle_statistics(run)
        sums = run.engine.validate(run.val, run.val_steps, told_to_stop)
    run.val.wait_seconds()
    seconds = time.perf_counter() - begun
    run.paused += seconds
    untold = run.val.faults.untold()
    if any(from_all(bool(untold))):
        tell_bad(run, untold)
    if sums is None:
        return agreed
    clock = {"seconds": seconds, "time": time.time()}  # both in one pass
    lines = [_validation_line(run, weights, each) | clock for weights, each in zip(("raw", "ema"), sums, strict=False)]
    used = lines[-1]  # whoever averages weights uses the averages
    best = math.isfinite(used["loss"]) and used["top1_error"] < run.best_error
    if best:
        run.best_error, run.best_epoch, run.best_step = used["top1_error"], run.pending, run.step
    run.pending = 0
    run.reporter.epoch(lines, best=best)
    return Agreed()


def _validation_line(run: Run, weights: str, sums: torch.Tensor) -> dict[str, Any]:
    counts = {"images": int(sums[3]), "top1_correct": int(sums[1]), "top5_correct": int(sums[2])}
    return {"kind": "val", "step": run.step, "epoch": run.pending, **counts, **rates(sums.tolist()), "weights": weights}
