"""Logs of the programs that this network was trained with before: fb.resnet.torch's and Caffe's, as rows an epoch."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path

from fastirv2.errors import DataError, UsageError
from fastirv2.report.metrics import Line

_NUMBER = r"([-+]?(?:\d+\.?\d*(?:e[-+]?\d+)?|nan|inf))"
# | Epoch: [1][6252/8008]    Time 1.856  Data 1.156  Err 4.5771  top1  86.875  top5  66.250  LR 0.045000
_TORCH_STEP = re.compile(
    rf"\| Epoch: \[(\d+)\]\[(\d+)/\d+\]\s+Time {_NUMBER}\s+Data {_NUMBER}\s+Err {_NUMBER}\s+top1\s+{_NUMBER}\s+top5\s+{_NUMBER}"
    rf"(?:\s+LR {_NUMBER})?"
)
# * Finished epoch # 1     top1:  81.500  top5:  59.100
_TORCH_EPOCH = re.compile(rf"\* Finished epoch # (\d+)\s+top1:\s+{_NUMBER}\s+top5:\s+{_NUMBER}")
# I0501 12:00:00.000000  1234 solver.cpp:228] Iteration 100, loss = 6.9, or with "(2.5 iter/s, 40s/100 iters)" before the comma
_CAFFE_LINE = re.compile(rf"\] Iteration (\d+)(?: \([^)]*\))?, (loss = {_NUMBER}|lr = {_NUMBER}|Testing net)")
#     Test net output #0: accuracy = 0.5, a share; a loss may be followed by (* 1 = 2.5 loss)
_CAFFE_TEST = re.compile(rf"Test net output #\d+: (\S+) = {_NUMBER}")


def read_log(path: Path, caffe_epoch_iterations: int = 0) -> list[Line]:
    """Return the rows of a log, which program wrote it being seen from its content; of what is there twice the later counts.

    Args:
        path: the log.
        caffe_epoch_iterations: iterations of an epoch, which Caffe's logs do not say.

    Returns:
        rows as `report.metrics.epochs` has them, with the columns that the log knows. An epoch of Caffe is a fraction where
        it was validated within one.

    Raises:
        DataError: the file cannot be read, is no such log, or holds no finished epoch.
        UsageError: it is Caffe's, and the iterations of an epoch are missing.
    """
    try:
        with path.open(encoding="utf-8", errors="replace") as file:
            rows = _rows(path, file, caffe_epoch_iterations)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}") from error
    if not rows:
        raise DataError(f"{path} has no finished epoch, so there is nothing to draw")
    return rows


def _rows(path: Path, lines: Iterable[str], caffe_epoch_iterations: int) -> list[Line]:
    iterator = iter(lines)
    for line in iterator:
        if _TORCH_STEP.search(line) or _TORCH_EPOCH.search(line):
            return _torch_rows(line, iterator)
        if _CAFFE_LINE.search(line):
            if caffe_epoch_iterations < 1:
                raise UsageError(
                    f"{path} is a log of Caffe, which does not say what an epoch is: give --caffe-epoch-iterations"
                )
            return _caffe_rows(line, iterator, caffe_epoch_iterations)
    raise DataError(f"{path} is neither a run folder nor a log of fb.resnet.torch or Caffe")


def _torch_rows(first: str, lines: Iterable[str]) -> list[Line]:
    steps: dict[int, dict[int, list[float]]] = defaultdict(dict)
    validated: dict[int, tuple[float, float]] = {}
    for line in (first, *lines):
        if found := _TORCH_STEP.search(line):
            epoch, step, *numbers = found.groups()
            steps[int(epoch)][int(step)] = [float(number or "nan") for number in numbers]
        elif found := _TORCH_EPOCH.search(line):
            validated[int(found[1])] = float(found[2]), float(found[3])
    rows = []
    for epoch, (top1, top5) in sorted(validated.items()):
        row: Line = {"epoch": epoch, "val_top1_error": top1, "val_top5_error": top5}
        if trained := list(steps[epoch].values()):
            seconds, waited, *errors = (sum(column) for column in zip(*(numbers[:5] for numbers in trained), strict=True))
            means = [total / len(trained) for total in errors]
            row |= dict(zip(("train_loss", "train_top1_error", "train_top5_error"), means, strict=True))
            row |= {"data_wait_share": waited / seconds if seconds else None, "lr": trained[-1][5]}
        rows.append(_known(row))
    return rows


def _caffe_rows(first: str, lines: Iterable[str], epoch_iterations: int) -> list[Line]:
    losses: dict[int, float] = {}
    learning_rates: dict[int, float] = {}
    tests: dict[int, Line] = defaultdict(dict)
    iteration = 0
    for line in (first, *lines):
        if found := _CAFFE_LINE.search(line):
            iteration = int(found[1])
            if found[3]:
                losses[iteration] = float(found[3])
            elif found[4]:
                learning_rates[iteration] = float(found[4])
        elif found := _CAFFE_TEST.search(line):
            tests[iteration].update(_caffe_output(found[1].lower(), float(found[2])))
    ends = sorted(tests) or [step for step in sorted(losses) if step % epoch_iterations == 0 and step]
    rows, last = [], -1
    for end in ends:
        trained = [loss for step, loss in losses.items() if last < step <= end]
        rate = max((step for step in learning_rates if step <= end), default=None)
        row: Line = {"epoch": end / epoch_iterations, **tests.get(end, {})}
        row |= {"train_loss": sum(trained) / len(trained) if trained else None}
        rows.append(_known(row | {"lr": None if rate is None else learning_rates[rate]}))
        last = end
    return rows


def _caffe_output(name: str, value: float) -> Line:
    """Return what an output of Caffe's test net is here: names are the user's, as accuracy, accuracy_top5 or loss3/top-1."""
    if re.search(r"acc|top", name):
        return {"val_top5_error" if re.search(r"5$", name) else "val_top1_error": 100 * (1 - value)}
    return {"val_loss": value} if "loss" in name else {}


def _known(row: Line) -> Line:
    """Return a row without what is no number: a loss that overflowed, a rate that was not logged."""
    return {key: value for key, value in row.items() if value is not None and math.isfinite(value)}
