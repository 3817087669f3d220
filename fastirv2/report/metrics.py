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
COLUMNS = (
    "epoch", "step", "lr", "train_loss", "train_top1_error", "train_top5_error", "val_loss", "val_top1_error",
    "val_top5_error", "images_per_second", "data_wait_share",
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


def _json(line: Line) -> str:
    finite = {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in line.items()}
    return json.dumps(finite, allow_nan=False) + "\n"


def read_metrics(path: Path) -> list[Line]:
    """Return the lines of a metrics.jsonl; a last line cut by a kill is left out."""
    if not path.exists():
        return []
    lines = []
    for text in path.read_text().splitlines():
        try:
            lines.append(json.loads(text))
        except ValueError:  # only a line that was being written when the process was killed
            continue
    return lines


def epochs(lines: list[Line]) -> list[Line]:
    """Return a row a validation, with the columns `COLUMNS`; training is averaged over the images since the one before."""
    rows, last = [], 0
    for val in (line for line in lines if line["kind"] == "val"):
        train = [line for line in lines if line["kind"] == "train" and last < line["step"] <= val["step"]]
        last = val["step"]
        images = sum(line["images"] for line in train)
        seconds = sum(line["images"] / line["images_per_second"] for line in train)
        row: Line = {"epoch": val["epoch"], "step": val["step"], "lr": train[-1]["lr"] if train else None}
        for name in ("loss", "top1_error", "top5_error"):
            known = [line for line in train if line[name] is not None]
            counted = sum(line["images"] for line in known)
            row[f"train_{name}"] = sum(line[name] * line["images"] for line in known) / counted if known else None
            row[f"val_{name}"] = val[name]
        row["images_per_second"] = images / seconds if train else None
        row["data_wait_share"] = max((line["data_wait_share"] for line in train), default=None)
        rows.append(row)
    return rows


def write_summary(run: Path) -> None:
    """Write summary.csv from metrics.jsonl; raises DataError when it cannot be written."""
    table = io.StringIO(newline="")
    writer = csv.DictWriter(table, COLUMNS)
    writer.writeheader()
    rows = epochs(read_metrics(run / "metrics.jsonl"))
    writer.writerows({name: _rounded(row[name]) for name in COLUMNS} for row in rows)
    path = run / "summary.csv"
    with _said(path):
        write_file(path, lambda file: file.write(table.getvalue().encode()))


def _rounded(value: float | None) -> float | str | None:
    return f"{value:.6g}" if isinstance(value, float) else value

