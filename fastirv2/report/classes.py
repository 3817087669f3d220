"""Which classes a network gets wrong, and what it takes them for: two tables and a picture."""

from __future__ import annotations

import csv
import io
import textwrap
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from fastirv2.errors import DataError
from fastirv2.files import write_file

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from PIL import Image

PICTURE = "worst.png"
WORST, EXAMPLES = 10, 5  # classes in the picture, and images of each


@dataclass(frozen=True)
class ByClass:
    """The images of a score, in one order: records, labels and predictions int64 (n,), confidence float64 (n,), and whether
    each was right at once and within the first five, bool (n,); `names` are the classes'."""

    names: Sequence[str]
    records: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray
    top1: np.ndarray
    top5: np.ndarray

    def confusion(self) -> np.ndarray:
        """Return how often each pair occurs: rows (label, predicted, images), the most frequent first within a label."""
        pairs = self.labels * len(self.names) + self.predicted
        found, counts = np.unique(pairs, return_counts=True)
        rows = np.stack([found // len(self.names), found % len(self.names), counts], axis=1)
        return rows[np.lexsort((rows[:, 1], -rows[:, 2], rows[:, 0]))]

    def rows(self) -> list[dict[str, object]]:
        """Return a row for each class that has images, the worst first: counts, errors, and what it is most often taken for."""
        count = len(self.names)
        images, top1, top5 = (np.bincount(self.labels, weights, count).astype(int) for weights in (None, self.top1, self.top5))
        taken: dict[int, tuple[str, int]] = {}
        for label, predicted, times in self.confusion().tolist():
            if label != predicted:
                taken.setdefault(label, (self.names[predicted], times))
        order = sorted(np.flatnonzero(images).tolist(), key=lambda label: (top1[label] / images[label], label))
        return [
            {
                "class": self.names[label], "label": label, "images": int(images[label]),
                "top1_correct": int(top1[label]), "top5_correct": int(top5[label]),
                "top1_error": 100 * (1 - top1[label] / images[label]), "top5_error": 100 * (1 - top5[label] / images[label]),
                "taken_for": taken.get(label, ("", 0))[0], "times": taken.get(label, ("", 0))[1],
            }
            for label in order
        ]  # fmt: skip

    def examples(self, label: int) -> list[int]:
        """Return places in the arrays of a class's errors, those of most confidence first."""
        wrong = np.flatnonzero((self.labels == label) & ~self.top1)
        return wrong[np.argsort(-self.confidence[wrong], kind="stable")][:EXAMPLES].tolist()


def make_folder(folder: Path) -> None:
    """Make the folder for tables; raises DataError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"{folder} cannot be made: {error.strerror or error}; choose another --tables") from error


def write_tables(found: ByClass, folder: Path, picture_of: Callable[[int], Image.Image]) -> None:
    """Write classes.csv, confusion.csv and, unless all is right, worst.png into a folder; `picture_of` gives a record's image.

    Raises:
        DataError: they cannot be written.
    """
    rows = found.rows()
    pairs = [
        {"class": found.names[label], "predicted": found.names[predicted], "images": images}
        for label, predicted, images in found.confusion().tolist()
    ]
    make_folder(folder)
    try:
        for name, table in (("classes.csv", rows), ("confusion.csv", pairs)):
            text = _csv(table)
            write_file(folder / name, lambda file, text=text: file.write(text))
        worst = [row for row in rows[:WORST] if row["top1_correct"] != row["images"]]
        picture = _picture(found, worst, picture_of) if worst else b""
        (folder / PICTURE).unlink(missing_ok=True)  # that of another score, where this one has no errors
        if worst:
            write_file(folder / PICTURE, lambda file: file.write(picture))
    except OSError as error:
        raise DataError(f"{folder} cannot be written: {error.strerror or error}; choose another --tables") from error


def _csv(rows: list[dict[str, object]]) -> bytes:
    text = io.StringIO()
    writer = csv.DictWriter(text, rows[0])
    writer.writeheader()
    writer.writerows(
        {name: f"{value:.3f}" if isinstance(value, float) else value for name, value in row.items()} for row in rows
    )
    return text.getvalue().encode(errors="surrogateescape")


def _picture(found: ByClass, rows: list[dict[str, object]], picture_of: Callable[[int], Image.Image]) -> bytes:
    """Return a PNG with a row for each class: its error, and errors of most confidence with what they were taken for."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(2.6 + 1.7 * EXAMPLES, 0.5 + 2.05 * len(rows)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(len(rows), EXAMPLES + 1, squeeze=False, width_ratios=[1.5, *[1] * EXAMPLES])
    figure.suptitle("The classes with most top-1 errors, and those of their errors that the network was surest of", fontsize=10)
    for row, line in zip(rows, axes, strict=True):
        for axis in line:
            axis.axis("off")
        _describe(line[0], row)
        for axis, place in zip(line[1:], found.examples(int(row["label"])), strict=False):
            axis.imshow(picture_of(int(found.records[place])))
            name = found.names[int(found.predicted[place])]
            axis.set_title(f"{_short(name, 22)}\n{100 * found.confidence[place]:.0f} %", fontsize=7)
    picture = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Glyph")  # of names in a script that matplotlib's font has not
        figure.savefig(picture, format="png", dpi=110)
    return picture.getvalue()


def _describe(axis: Axes, row: dict[str, object]) -> None:
    """Write what a class is, how often it is wrong, and what it is taken for."""
    wrong = int(row["images"]) - int(row["top1_correct"])
    lines = [*textwrap.wrap(str(row["class"]), 24)[:3], f"{row['top1_error']:.1f} % wrong: {wrong} of {row['images']}"]
    if row["times"]:
        lines += [f"{row['times']} × taken for", *textwrap.wrap(str(row["taken_for"]), 24)[:2]]
    axis.text(0, 0.5, "\n".join(lines).replace("$", r"\$"), fontsize=8, va="center", transform=axis.transAxes)


def _short(text: str, length: int) -> str:
    text = text if len(text) <= length else text[: length - 1] + "…"
    return text.replace("$", r"\$")
