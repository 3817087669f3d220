"""What a finished build holds and what it left out or changed: the table at its end."""

from __future__ import annotations

import io
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from rich import box
from rich.console import Console
from rich.table import Table

from fastirv2.errors import tell

_REASONS = 12  # lines of reasons that the table shows, the most frequent first


def print_summary(out: Path, seconds: float) -> str:
    """Print what the LMDB folder `out` holds, what became of the images that are not in it as they were, and the time.

    Returns the line that sums it up.
    """
    dataset = json.loads((out / "dataset.json").read_bytes())
    index = np.load(out / "index.npy", mmap_mode="r")
    reasons = _count_reasons(out / "rejected.jsonl")
    table = Table(box=box.SIMPLE, show_header=False)
    table.add_column(no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in _rows(dataset, index, reasons):
        table.add_row(name, text)
    size = size_text((out / "data.mdb").stat().st_size)
    table.add_row("size", size)
    table.add_row("time", f"{time_text(seconds)}, {dataset['count'] / max(seconds, 1e-9):,.0f} images/s")
    text = io.StringIO()  # rich ends a process by itself where nobody reads what it prints
    Console(file=text, width=Console().width, highlight=False, markup=False).print(table)
    tell(text.getvalue().rstrip("\n"))
    totals = {action: counts.total() for action, counts in reasons.items()}
    return (
        f"{dataset['count']:,} images, {totals['rejected']:,} rejected, {totals['repaired']:,} repaired, {size}, "
        f"{seconds:.1f} s: {out}"
    )


def size_text(size: float) -> str:
    """Return a number of bytes in words."""
    for unit in ("B", "kB", "MB", "GB"):
        if size < 1000:
            return f"{size:.3g} {unit}"
        size /= 1000
    return f"{size:.4g} TB"


def time_text(seconds: float) -> str:
    """Return a duration as hours, minutes and seconds, the last alone when it is short."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}"


def _rows(dataset: dict[str, Any], index: np.ndarray, reasons: dict[str, Counter[str]]) -> list[tuple[str, str]]:
    """Return the table's lines on images, classes and sizes, and a line a reason."""
    per_class = np.array(dataset["images_per_class"])
    size = index["width"].astype(np.int64) * index["height"]
    middle = int(np.argsort(size, kind="stable")[len(size) // 2])
    rows = [
        ("images", f"{dataset['count']:,}"),
        ("classes", f"{len(per_class):,}" + (f", {(per_class == 0).sum():,} of them empty" if not per_class.all() else "")),
        ("smallest class", _class_text(dataset, int(per_class.argmin()))),
        ("largest class", _class_text(dataset, int(per_class.argmax()))),
        (
            "median size",
            f"{index['width'][middle]} × {index['height'][middle]} pixels, {size_text(float(np.median(index['length'])))}",
        ),
    ]
    for action, counts in reasons.items():
        rows.append((action, f"{counts.total():,}"))
        common = counts.most_common(_REASONS)
        rows += [("", f"{number:,} × {reason}") for reason, number in common]
        if rest := counts.total() - sum(number for _, number in common):
            rows.append(("", f"{rest:,} × something else: see rejected.jsonl"))
    return rows


def _class_text(dataset: dict[str, Any], label: int) -> str:
    """Return a class's name and number of images."""
    return f"{dataset['classes'][label]}, {dataset['images_per_class'][label]:,} images"


def _count_reasons(report: Path) -> dict[str, Counter[str]]:
    """Return how often each reason occurs in rejected.jsonl, by action."""
    counts: dict[str, Counter[str]] = {"repaired": Counter(), "rejected": Counter()}
    with report.open("rb") as lines:
        for line in lines:
            entry = json.loads(line)
            counts[entry["action"]][entry["reason"]] += 1
    return counts
