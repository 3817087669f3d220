"""Curves of one or several runs as a picture: errors, loss, learning rate, speed and waiting over the epochs."""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

from fastirv2.errors import DataError
from fastirv2.files import write_file
from fastirv2.report.metrics import Line, used
from fastirv2.report.published import Reference, curve

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

PANELS = (
    ("top-1 error (%)", "top1_error"),
    ("top-5 error (%)", "top5_error"),
    ("loss", "loss"),
    ("learning rate", "lr"),
    ("images/s", "images_per_second"),
    ("waiting for data (% of the time)", "data_wait_share"),
)
STYLES = {  # the prefix of a column → what it is called and how it is drawn
    "train_": ("training", {"linewidth": 1.0, "linestyle": (0, (4, 2)), "alpha": 0.8}),
    "val_": ("validation", {"linewidth": 1.8}),
    "ema_": ("validation of averaged weights", {"linewidth": 1.8, "linestyle": (0, (1, 1))}),
    "": ("", {"linewidth": 1.4}),
}
# Okabe and Ito's colours, which all eyes tell apart; what was published is gray and black.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
GRAYS = ("#777777", "#222222")
LEAST_RANGE = {"data_wait_share": 10.0}  # so that waiting for 1 % of the time looks like little
FAR = 20.0  # the greatest value over the median from which on an axis is logarithmic


@dataclass(frozen=True)
class Curve:
    """What is drawn of a run: its name, and rows as `report.metrics.epochs` has them, any columns but "epoch" missing.

    `published` marks a curve of others, and `band` how many points above its top-1 error are shaded.
    """

    name: str
    rows: Sequence[Line]
    published: bool = False
    band: float = 0.0

    @staticmethod
    def of_reference(reference: Reference) -> Curve:
        """Return the curve that a run is held against."""
        return Curve(reference.name, curve(reference.name), published=True, band=reference.band)

    def points(self, column: str) -> tuple[list[float], list[float]]:
        """Return the epochs and the values of a column, where it has any."""
        known = [(row["epoch"], row[column]) for row in self.rows if row.get(column) is not None]
        return [x for x, _ in known], [100 * y if column == "data_wait_share" else y for _, y in known]

    @property
    def label(self) -> str:
        """The name with the best errors."""
        validated = [row for row in self.rows if used(row, "top1_error") < float("inf")]
        if not validated:
            return self.name
        best = min(validated, key=lambda row: used(row, "top1_error"))
        errors = [f"{used(best, name):.2f}" for name in ("top1_error", "top5_error") if used(best, name) < float("inf")]
        return f"{self.name}: {' / '.join(errors)} % at epoch {best['epoch']:g}"


def plot(curves: Sequence[Curve], out: Path) -> None:
    """Draw curves into the picture `out`, whose suffix chooses the format.

    Raises:
        DataError: there is nothing to draw, or the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [panel for panel in PANELS if any(each.points(column)[0] for each in curves for column in _columns(panel[1]))]
    if not panels:
        raise DataError(f"there is nothing to draw in {', '.join(each.name for each in curves)}")
    columns = min(len(panels), 3 if len(panels) > 4 else 2)
    figure = Figure(figsize=(4.6 * columns, 0.6 + 3.4 * -(-len(panels) // columns)), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(-(-len(panels) // columns), columns, squeeze=False).ravel()
    colours = _colours(curves)
    last = max(row["epoch"] for each in curves for row in each.rows)
    for axis, (title, name) in zip(axes, panels, strict=False):
        for each, colour in zip(curves, colours, strict=True):
            _draw(axis, each, name, colour)
        _finish(axis, title, name, last)
    for axis in axes[len(panels) :]:
        axis.remove()
    _legend(figure, curves, colours)
    _save(figure, out)


def _columns(name: str) -> list[str]:
    """Return the columns of a panel: an error or a loss is of training and of validation."""
    return (
        [f"{prefix}{name}" for prefix in ("train_", "val_", "ema_")] if name in ("top1_error", "top5_error", "loss") else [name]
    )


def _colours(curves: Sequence[Curve]) -> list[str]:
    runs, others = iter(COLOURS * len(curves)), iter(GRAYS * len(curves))
    return [next(others if each.published else runs) for each in curves]


def _draw(axis: Axes, each: Curve, name: str, colour: str) -> None:
    for column in _columns(name):
        x, y = each.points(column)
        style = STYLES[column.removesuffix(name)][1] | ({"linewidth": 1.2} if each.published else {})
        axis.plot(x, y, color=colour, marker="o" if len(x) == 1 else None, markersize=4, **style)
        if column in ("val_top1_error", "ema_top1_error") and y and not each.published:
            axis.plot(x[y.index(min(y))], min(y), color=colour, marker="o", markersize=4)
        if column == "val_top1_error" and each.band:
            axis.fill_between(x, y, [value + each.band for value in y], color=colour, alpha=0.15, linewidth=0)


def _finish(axis: Axes, title: str, name: str, last: float) -> None:
    """Give an axis its title, range and scale; `last` is the last epoch of the picture."""
    from matplotlib.ticker import StrMethodFormatter

    axis.set_title(title, fontsize=10)
    axis.set_xlabel("epoch", fontsize=9)
    axis.tick_params(labelsize=8)
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)
    axis.xaxis.get_major_locator().set_params(integer=True)
    axis.set_xlim(0, max(last, 1) * 1.02)
    values = [float(y) for line in axis.lines for y in line.get_ydata()]
    if name in ("loss", "lr") and min(values) > 0 and max(values) > FAR * median(values):
        axis.set_yscale("log")  # a loss can begin thousands of times above its end, a rate end far below its beginning
        axis.set_ylim(bottom=max(min(values) / 1.5, max(values) * 1e-5))
        return
    axis.set_ylim(bottom=0, top=max(LEAST_RANGE.get(name, 0), *values) * 1.05 or 1)
    if name.endswith("error"):
        axis.yaxis.get_major_locator().set_params(nbins=12, steps=[1, 2, 5, 10])
    if name == "images_per_second":
        axis.yaxis.set_major_formatter(StrMethodFormatter("{x:,.0f}"))


def _legend(figure: Figure, curves: Sequence[Curve], colours: list[str]) -> None:
    """Name each curve by its colour and each kind of line by its form."""
    from matplotlib.lines import Line2D

    handles = [
        Line2D([], [], color=colour, linewidth=2, label=each.label) for each, colour in zip(curves, colours, strict=True)
    ]
    there = {
        prefix for each in curves for row in each.rows for prefix in STYLES if prefix and row.get(f"{prefix}loss") is not None
    }
    for prefix in (prefix for prefix in STYLES if prefix in there and there - {"val_"}):
        name, style = STYLES[prefix]
        handles.append(Line2D([], [], color="#444444", label=name, **style))
    figure.legend(handles=handles, loc="outside lower center", ncols=2 if len(handles) < 7 else 3, fontsize=8, frameon=False)


def _save(figure: Figure, out: Path) -> None:
    picture = io.BytesIO()
    try:
        figure.savefig(picture, format=out.suffix[1:] or None, dpi=130)
        write_file(out, lambda file: file.write(picture.getvalue()))
    except (OSError, ValueError) as error:
        raise DataError(f"the picture {out} cannot be written: {getattr(error, 'strerror', None) or error}") from error
