"""What a run leaves for its reader: summary.csv, report.md and curves.png, made anew while it goes."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

from fastirv2.files import read_toml
from fastirv2.report.console import clock
from fastirv2.report.curves import Curve, plot
from fastirv2.report.metrics import Line, epochs, over_time, read_metrics, used, write_summary, write_text
from fastirv2.report.published import CLASSES, PREDECESSOR_RATE, Reference, curve, reference_of

PREDECESSOR_SIZE = 299  # pixels a side of the images that its rate was reached with


@dataclass
class Sitting:
    """One process's, or one torchrun's, part of a run."""

    ranks: int
    device: str
    begun: float  # Unix seconds, as `ended`
    ended: float

    @property
    def seconds(self) -> float:
        """How long it took, up to its last line."""
        return self.ended - self.begun


def sittings(lines: Iterable[Line]) -> list[Sitting]:
    """Return the sittings of a run; the time between them belongs to none."""
    found: list[Sitting] = []
    for line in lines:
        if line["kind"] == "begin":
            found.append(Sitting(line["ranks"], line["device"], line["time"], line["time"]))
        elif found and "time" in line:
            found[-1].ended = max(found[-1].ended, line["time"])
    return found


def draw(run: Path, *, picture: bool = True) -> None:
    """Write summary.csv, report.md and, if asked, curves.png from what was measured so far, once an epoch has been validated.

    Raises:
        DataError: one of them cannot be written.
    """
    lines = read_metrics(run / "metrics.jsonl")
    rows = epochs(lines)
    if not rows:
        return
    table = read_toml(run / "config.toml")
    write_summary(run, rows)
    write_text(run / "report.md", report(run.name, table, lines))
    if not picture:
        return
    reference = reference_of(table)
    others = [Curve.of_reference(reference)] if reference else []
    plot([*others, Curve(run.resolve().name, rows)], run / "curves.png")


def report(name: str, table: dict[str, Any], lines: list[Line]) -> str:
    """Return the report of a run as Markdown that reads well as it is; `table` is its resolved configuration."""
    rows, found = epochs(lines), sittings(lines)
    last, train = rows[-1], [line for line in lines if line["kind"] == "train"]
    steps = f"{last['step']:,} steps of {table['train']['global_batch']} images"
    working = [sum(row[f"{which}_seconds"] or 0 for row in rows) for which in ("train", "val")]
    seconds = max(sum(working), sum(each.seconds for each in found))
    sizes = [int(text.split(":")[1]) for text in table["input"]["sizes"]] or [table["input"]["crop"]]
    parts = [
        f"# {name}: top-1 error {used(last, 'top1_error'):.3f} % after epoch {last['epoch']} of {table['train']['epochs']}",
        f"Recipe {table['recipe']}, {table['model']['arch']} network, {table['train']['amp']}; {steps}.",
        errors(table, rows),
        speeds(lines, rows),
        *([times(found, *working)] if found else []),
        *([compared(sum(line["images"] for line in train), seconds, sizes)] if seconds else []),
    ]
    if bad := sum(line["kind"] == "bad" for line in lines):
        parts.append(f"Records that do not decode and were skipped: {bad}; metrics.jsonl names them.")
    return "\n\n".join(parts) + "\n"


def errors(table: dict[str, Any], rows: list[Line]) -> str:
    """Return the errors beside those that were published for the recipe."""
    last, best = rows[-1], min(rows, key=lambda row: used(row, "top1_error"))
    found = []
    for when, row in (("last", last), ("best", best)) if best is not last else (("last and best", last),):
        for which, what in (("val", ""), ("ema", ", averaged weights")):
            if row[f"{which}_loss"] is not None or which == "val":
                numbers = (row[f"{which}_{name}"] for name in ("top1_error", "top5_error"))
                found.append([f"{when} epoch, {row['epoch']}{what}", *map(_percent, numbers)])
    reference = reference_of(table)
    if reference:
        found.append(_of_reference(reference, last["epoch"]))
    published = table.get("published", "none") if table["model"]["classes"] == CLASSES else "none"
    if numbers := re.match(r"(\d+(?:\.\d+)?) / (\d+(?:\.\d+)?) %", published):
        found.append(["published for the recipe", *numbers.groups()])
    text = _table([["validation", "top-1 error (%)", "top-5 error (%)"], *found])
    return text if published == "none" else f"{text}\n\nPublished for the recipe: {published}."


def _of_reference(reference: Reference, epoch: int) -> list[str]:
    row = max((row for row in curve(reference.name) if row["epoch"] <= epoch), key=lambda row: row["epoch"], default={})
    numbers = (row.get(f"val_{name}") for name in ("top1_error", "top5_error"))
    return [f"{reference.name} at epoch {row.get('epoch', epoch)}", *map(_percent, numbers)]


def speeds(lines: list[Line], rows: list[Line]) -> str:
    """Return rates and times, those of the first epoch, whose page cache is cold, apart from the others'."""
    used = any("flop_utilisation" in line for line in lines)
    found = [["", "images/s", *(["MFU (%)"] if used else []), "waiting (%)", "training", "validation"]]
    last = rows[-1]["epoch"]
    later = f"epochs 2 to {last}" if last > 2 else "epoch 2"
    for name, first, end in (("epoch 1 (cold cache)", 1, 1), (later, 2, last), ("all", 1, last)):
        average = over_time([line for line in lines if line["kind"] == "train" and first <= line["epoch"] <= end])
        if not average["train_seconds"] or (name == "all" and last == 1):
            continue
        shares = [f"{100 * (average[name] or 0):.1f}" for name in (["flop_utilisation"] if used else []) + ["data_wait_share"]]
        validated = sum(row["val_seconds"] or 0 for row in rows if first <= row["epoch"] <= end)
        seconds = [clock(average["train_seconds"]), clock(validated)]
        found.append([name, f"{average['images_per_second']:,.1f}", *shares, *seconds])
    return _table(found)


def times(found: list[Sitting], training_seconds: float, validation_seconds: float) -> str:
    """Return how long a run took, over all its sittings, and the hours of its devices."""
    seconds = max(sum(each.seconds for each in found), training_seconds + validation_seconds)  # steps after a last line count
    hours = sum(each.ranks * each.seconds for each in found) / 3600
    unit = "CPU" if all(each.device == "CPU" for each in found) else "GPU"
    devices = dict.fromkeys(f"{each.ranks} × {each.device}" for each in found)
    working = training_seconds, validation_seconds
    shares = [100 * part / max(seconds, 1e-9) for part in working]
    return (
        f"From {_date(found[0].begun)} to {_date(found[-1].ended)}: {clock(seconds)} in "
        f"{f'{len(found)} sittings' if len(found) > 1 else 'one sitting'}, {hours:,.2f} {unit}-hours "
        f"({', then '.join(devices)}), of which {shares[0]:.0f} % training and {shares[1]:.0f} % validation."
    )


def compared(images: int, seconds: float, sizes: list[int]) -> str:
    """Return the rate over all the time, training with crops of `sizes`, beside the predecessor's, which is over all too."""
    rate = images / seconds
    other = f"; its images were {PREDECESSOR_SIZE}², these {' and '.join(f'{size}²' for size in sizes)}"
    return (
        f"{images:,} images in all that time are {rate:,.1f} images/s, {rate / PREDECESSOR_RATE:,.2f} × the {PREDECESSOR_RATE} "
        f"images/s of lim0606's setting 1 on two Titan X{'' if sizes == [PREDECESSOR_SIZE] else other}."
    )


def _percent(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _date(time: float) -> str:
    when = datetime.fromtimestamp(time)
    return f"{when:%a} {when.day} {when:%b %Y %H:%M}"


def _table(rows: list[list[str]]) -> str:
    """Return a Markdown table whose columns line up."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    cells = [
        [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))] for row in rows
    ]
    cells.insert(1, ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])])
    return "\n".join(f"| {' | '.join(row)} |" for row in cells)
