"""What a run measured: metrics.jsonl, a line a measurement, and summary.csv, a row an epoch, made from it."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastirv2.errors import DataError, UsageError
from fastirv2.files import Log, write_file

Line = dict[str, Any]
MEASURED = ("loss", "top1_error", "top5_error")
COLUMNS = (
    "epoch", "step", "lr", *(f"{which}_{name}" for which in ("train", "val", "ema") for name in MEASURED),
    "images_per_second", "data_wait_share", "flop_utilisation", "train_seconds", "val_seconds",
)  # fmt: skip


@dataclass(frozen=True)
class LogConfig:
    """How often a run reports."""

    every: int = 20
    """Steps between two lines; one more comes at each epoch's end."""

    def __post_init__(self) -> None:
        if self.every < 1:
            raise UsageError(f"--log.every {self.every} must be at least 1")


def rates(sums: Iterable[float]) -> Line:
    """Turn sums of loss, top-1 correct, top-5 correct and images into mean loss and errors in percent; NaN of no images."""
    loss, top1, top5, images = sums
    images = images or math.nan
    return {"loss": loss / images, "top1_error": 100 * (1 - top1 / images), "top5_error": 100 * (1 - top5 / images)}


class Metrics:
    """The file metrics.jsonl of a run; every line is whole and on its way to the disk before the run goes on.

    Its methods raise DataError when the file cannot be written; lines then wait in memory, and come with the next.
    """

    def __init__(self, run: Path) -> None:
        self.path = run / "metrics.jsonl"
        self._log = Log(self.path)

    @property
    def waiting(self) -> list[str]:
        """The lines that are not in the file yet."""
        return [line.decode() for line in self._log.waiting]

    def add(self, line: Line) -> None:
        """Append a line; a number that is none (a loss that overflowed) is written as null, which JSON has."""
        with _said(self.path):
            self._log.add(_json(line).encode())

    def lines(self) -> list[Line]:
        """Return all lines, those that wait among them."""
        return read_metrics(self.path) + [json.loads(line) for line in self.waiting]

    def write(self) -> None:
        """Append the lines that wait."""
        with _said(self.path):
            self._log.write()

    def cut(self, step: int, *, pending: bool, waiting: Iterable[str] = ()) -> None:
        """Drop what was written after `step`, and the validation of `step` itself when it is `pending`: it will come again.

        Lines that were `waiting` at that step and never came into the file are appended.
        """
        with _said(self.path):
            done = [n for n in read_metrics(self.path) if n["step"] < step or (n["step"] == step and not _again(n, pending))]
            lines = [_json(line) for line in done]
            lines += [line for line in waiting if line not in set(lines)]
            write_file(self.path, lambda file: file.write("".join(lines).encode()))


@contextlib.contextmanager
def _said(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; make room, or mend that") from error


def _again(line: Line, pending: bool) -> bool:
    return pending and line["kind"] == "val"


def finite(line: Line) -> Line:
    """Return a line as it is read back: None for what is no number."""
    return {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}


def _json(line: Line) -> str:
    return json.dumps(finite(line), allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[Line]:
    """Return the lines of a metrics.jsonl, none where there is no file; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:  # only a line that was being written when the process was killed
            continue
        if isinstance(line, dict) and "kind" in line:
            lines.append(line)
    return lines


def epochs(lines: Iterable[Line]) -> list[Line]:
    """Return a row an epoch, with the columns `COLUMNS`, None where there is nothing; other kinds of lines are passed over.

    Training is averaged over the images since the validation before, rates over the seconds; "val" is what the weights
    themselves reached and "ema" their running average.
    """
    rows: list[Line] = []
    train: list[Line] = []
    for line in lines:
        if line["kind"] == "train":
            train.append(line)
        elif line["kind"] == "val":
            if not rows or rows[-1]["step"] != line["step"]:
                rows.append({"epoch": line["epoch"], "step": line["step"], **over_time(train), "val_seconds": None})
                train = []
            which = "ema" if line.get("weights") == "ema" else "val"
            rows[-1].update({f"{which}_{name}": line[name] for name in MEASURED})
            rows[-1]["val_seconds"] = line.get("seconds", rows[-1]["val_seconds"])
    return [dict.fromkeys(COLUMNS) | row for row in rows]


def since_validation(lines: Iterable[Line]) -> list[Line]:
    """Return the lines of kind "train" that no row of `epochs` has yet."""
    train: list[Line] = []
    for line in lines:
        if line["kind"] == "train":
            train.append(line)
        elif line["kind"] == "val":
            train = []
    return train


def over_time(train: list[Line]) -> Line:
    """Average lines of kind "train": over their images, and what is a rate over their seconds."""
    images = [line["images"] for line in train]
    seconds = [line["images"] / line["images_per_second"] for line in train]
    average: Line = {f"train_{name}": _mean([line.get(name) for line in train], images) for name in MEASURED}
    for name in ("data_wait_share", "flop_utilisation"):
        average[name] = _mean([line.get(name) for line in train], seconds)
    average["lr"] = train[-1]["lr"] if train else None
    average["images_per_second"] = sum(images) / sum(seconds) if train else None
    average["train_seconds"] = sum(seconds) if train else None
    return average


def _mean(values: list[float | None], weights: list[float]) -> float | None:
    """Return the weighted mean of the values that there are."""
    known = [(value, weight) for value, weight in zip(values, weights, strict=True) if value is not None]
    return sum(value * weight for value, weight in known) / sum(weight for _, weight in known) if known else None


def used(row: Line, name: str) -> float:
    """Return what a row's validation found of the weights in use: their running average where there is one; inf for nothing."""
    value = row.get(f"val_{name}") if row.get(f"ema_{name}") is None else row[f"ema_{name}"]
    return math.inf if value is None else value


def write_summary(run: Path, rows: list[Line]) -> None:
    """Write the rows of a run's epochs into its summary.csv; raises DataError when it cannot be written."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    writer.writerows({name: _rounded(row[name]) for name in COLUMNS} for row in rows)
    write_text(run / "summary.csv", table.getvalue())


def write_text(path: Path, text: str) -> None:
    """Write a file of text whole or not at all; raises DataError when it cannot be written."""
    with _said(path):
        write_file(path, lambda file: file.write(text.encode()))


def _rounded(value: float | None) -> float | str | None:
    return f"{value:.6g}" if isinstance(value, float) else value
