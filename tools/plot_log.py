"""Draw the curves of runs, of old logs and of what was published: python tools/plot_log.py RUN… [--reference NAME…]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastirv2.errors import DataError, UsageError, run_command, say
from fastirv2.report.curves import Curve, plot
from fastirv2.report.metrics import Line, epochs, read_metrics
from fastirv2.report.old_logs import read_log
from fastirv2.report.published import curve, curve_names


@dataclass(frozen=True)
class Options:
    """Draw errors, loss, learning rate and speed over the epochs, of several runs in one picture."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")] = ()
    """Run folders, and logs of fb.resnet.torch or of Caffe's solver."""
    reference: tuple[str, ...] = ()
    """Published curves to draw beside them: lim0606_setting1, revilokeb."""
    caffe_epoch_iterations: int = 0
    """Iterations of an epoch in Caffe's logs, which do not say it: training images / (batch size × iter_size × GPUs)."""
    out: Path = Path("curves.png")
    """The picture; its suffix chooses the format."""
    json: Path | None = None
    """Write the rows of each run, an epoch a row, into this file too."""


def read(path: Path, caffe_epoch_iterations: int) -> list[Line]:
    """Return the rows of a run folder, its metrics.jsonl, or an old log; none if no epoch of the run has ended.

    Raises:
        DataError: it is none of these, or no epoch of an old log has ended.
        UsageError: it is a log of Caffe, and `caffe_epoch_iterations` is 0.
    """
    if path.is_dir() and not (path / "metrics.jsonl").is_file():
        raise DataError(f"{path} is no run folder: it has no metrics.jsonl")
    metrics = path / "metrics.jsonl" if path.is_dir() else path
    if metrics.suffix != ".jsonl":
        return read_log(path, caffe_epoch_iterations)
    try:
        return epochs(read_metrics(metrics))
    except (KeyError, TypeError, OSError) as error:
        raise DataError(f"{metrics} is no metrics.jsonl of a run ({type(error).__name__}: {error})") from error


def names(paths: tuple[Path, ...]) -> list[str]:
    """Return the shortest ends of paths that tell them apart: a, b for runs/a and runs/b, x/run, y/run for runs of one name."""
    parts = [path.resolve().parts for path in paths]
    length = next((n for n in range(1, max(map(len, parts), default=1)) if len({p[-n:] for p in parts}) == len(set(parts))), 1)
    return ["/".join(each[-length:]) for each in parts]


def write_rows(path: Path, rows: dict[str, list[Line]]) -> None:
    """Write the rows of each run as JSON; raises DataError when the file cannot be written."""
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another --json") from error


def main() -> None:
    """Read the command line and draw."""
    options = tyro.cli(Options, description=__doc__)
    if not options.runs and not options.reference:
        raise UsageError(f"nothing to draw: give run folders or logs, or --reference with {', '.join(curve_names())}")
    curves = {name: Curve(name, curve(name), published=True) for name in options.reference}
    for path, name in zip(options.runs, names(options.runs), strict=True):
        curves[str(path)] = Curve(name, read(path, options.caffe_epoch_iterations))
    if unfinished := [path for path, each in curves.items() if not each.rows]:
        missing = f"no epoch has ended yet in {', '.join(unfinished)}"
        if len(unfinished) == len(curves):
            raise DataError(f"{missing}, so there is nothing to draw")
        say(f"warning: {missing}")
    drawn = {path: each for path, each in curves.items() if each.rows}
    plot(list(drawn.values()), options.out)
    for each in drawn.values():
        print(each.label)
    if options.json:
        write_rows(options.json, {path: list(each.rows) for path, each in drawn.items()})
    print(f"curves in {options.out}")


if __name__ == "__main__":
    run_command(main, "plot_log")
