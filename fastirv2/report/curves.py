"""The curves of one or several runs as a picture: errors, loss and learning rate over the epochs."""

from __future__ import annotations

from pathlib import Path

from fastirv2.errors import DataError
from fastirv2.report.metrics import Line, epochs, read_metrics

PANELS = (
    ("top-1 error (%)", "train_top1_error", "val_top1_error"),
    ("top-5 error (%)", "train_top5_error", "val_top5_error"),
    ("loss", "train_loss", "val_loss"),
    ("learning rate", "lr", None),
)


def plot(runs: list[Path], out: Path) -> None:
    """Draw the curves of `runs` (folders with a metrics.jsonl) into the picture `out`.

    Training is drawn thin and averaged over each epoch, validation bold; the best validation error is in the legend.

    Raises:
        DataError: a run has no finished epoch, or the picture cannot be written.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 7), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(2, 2).ravel()
    for number, run in enumerate(runs):
        rows = epochs(read_metrics(run / "metrics.jsonl"))
        if not rows:
            raise DataError(f"{run} has no finished epoch in its metrics.jsonl, so there is nothing to draw")
        _draw(axes, run.resolve().name, rows, f"C{number}")
    for axis, (title, _, _) in zip(axes, PANELS, strict=True):
        axis.set(title=title, xlabel="epoch")
        axis.grid(alpha=0.3)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8)
    for axis in axes[2:]:  # a loss can begin thousands of times above its end, a rate ends far below its beginning
        axis.set_yscale("log" if all(_positive(line) for line in axis.lines) else "linear")
    try:
        figure.savefig(out, dpi=110)
    except (OSError, ValueError) as error:
        raise DataError(f"the picture {out} cannot be written: {error}") from error


def _draw(axes: list, name: str, rows: list[Line], colour: str) -> None:  # type: ignore[type-arg]
    x = [row["epoch"] for row in rows]
    best = min(rows, key=lambda row: row["val_top1_error"])
    label = f"{name}, validation: {best['val_top1_error']:.2f} / {best['val_top5_error']:.2f} % at epoch {best['epoch']}"
    for axis, (_, train, val) in zip(axes, PANELS, strict=True):
        axis.plot(x, [row[train] for row in rows], color=colour, linewidth=0.8, linestyle="--", label=f"{name}, training")
        if val:
            axis.plot(x, [row[val] for row in rows], color=colour, linewidth=1.8, label=label)


def _positive(line: object) -> bool:
    return all(y is not None and y > 0 for y in line.get_ydata())  # type: ignore[attr-defined]
