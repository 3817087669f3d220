"""Validation curves that others have published, and the band above one in which a run by its recipe is to stay."""

from __future__ import annotations

import csv
import functools
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fastirv2.errors import UsageError, nearest
from fastirv2.report.metrics import Line

FOLDER = Path(__file__).parent / "reference"
CLASSES = 1000  # of the data set that all of them are errors on, ImageNet
PREDECESSOR_RATE = 63.5  # images/s of lim0606's setting 1: 1,801,710 steps of 64 images in about 21 days on two Titan X


def curve_names() -> list[str]:
    """Return the names of the curves that come with the program."""
    return sorted(path.stem for path in FOLDER.glob("*.csv"))


@functools.cache
def curve(name: str) -> list[Line]:
    """Return a row an epoch with "epoch", "val_top1_error" and "val_top5_error", None where nothing was published.

    Raises:
        UsageError: there is no such curve.
    """
    if name not in curve_names():
        raise UsageError(f"there is no reference curve '{name}'{nearest(name, curve_names())}")
    lines = (FOLDER / f"{name}.csv").read_text(encoding="utf-8").splitlines()
    rows = csv.DictReader(line for line in lines if not line.startswith("#"))
    return [{"epoch": int(row.pop("epoch")), **{k: float(v) if v else None for k, v in row.items()}} for row in rows]


@dataclass(frozen=True)
class Reference:
    """The curve that a recipe is held against, and how many points of top-1 error above it are its band."""

    name: str
    band: float = 5.0

    def __post_init__(self) -> None:
        curve(self.name)
        if not 0 < self.band < math.inf:
            raise UsageError(f"the band of reference '{self.name}' is {self.band} points; it must be positive")

    def top1_error(self, epoch: int) -> float | None:
        """Return the curve's top-1 error after an epoch: beyond its end the last one, None where there is none."""
        rows = [row for row in curve(self.name) if row["epoch"] <= epoch]
        known = rows and (rows[-1]["epoch"] == epoch or rows[-1] is curve(self.name)[-1])
        return rows[-1]["val_top1_error"] if known else None

    def behind(self, row: Line) -> str:
        """Return a sentence when the errors after an epoch lie above the band, else an empty string."""
        theirs = self.top1_error(row["epoch"])
        found = [row[key] for key in ("val_top1_error", "ema_top1_error") if row[key] is not None]
        ours = min(found, default=math.inf)  # averaged weights trail at first
        if theirs is None or ours <= theirs + self.band:
            return ""
        return (
            f"after epoch {row['epoch']} the top-1 error, {ours:.2f} %, is {ours - theirs:.1f} points above that of "
            f"{self.name}, {theirs:.2f} %: more than the recipe's band of {self.band:g}; curves.png has both"
        )


def reference_of(table: dict[str, Any]) -> Reference | None:
    """Return the reference that a run's resolved configuration names, if it trains on as many classes."""
    if not table.get("reference") or table["model"]["classes"] != CLASSES:
        return None
    return Reference(table["reference"], table["band"])
