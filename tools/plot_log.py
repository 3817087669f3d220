"""Draw the curves of one or several runs: python tools/plot_log.py RUN… [--out FILE.png] [--json FILE]."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from fastirv2.errors import DataError, run_command
from fastirv2.report.curves import plot
from fastirv2.report.metrics import Line, epochs, read_metrics


@dataclass(frozen=True)
class Options:
    """Draw errors, loss and learning rate of runs over their epochs."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN…")]
    """Run folders, each with a metrics.jsonl."""
    out: Path = Path("curves.png")
    """The picture; its suffix chooses the format."""
    json: Path | None = None
    """Write the rows of summary.csv, for each run, into this file too."""


def write_rows(path: Path, rows: dict[str, list[Line]]) -> None:
    """Write the rows of each run as JSON; raises DataError when the file cannot be written."""
    try:
        path.write_text(json.dumps(rows, indent=1) + "\n")
    except OSError as error:
        raise DataError(f"{path} cannot be written: {error.strerror}; choose another --json") from error


def main() -> None:
    """Read the command line and draw."""
    options = tyro.cli(Options, description=__doc__)
    for run in options.runs:
        if not (run / "metrics.jsonl").is_file():
            raise DataError(f"{run} is no run folder: it has no metrics.jsonl")
    plot(list(options.runs), options.out)
    for run in options.runs:
        best = min(epochs(read_metrics(run / "metrics.jsonl")), key=lambda row: row["val_top1_error"])
        print(f"{run}: {best['val_top1_error']:.3f} / {best['val_top5_error']:.3f} % after epoch {best['epoch']}")
    if options.json:
        rows = {str(run): epochs(read_metrics(run / "metrics.jsonl")) for run in options.runs}
        write_rows(options.json, rows)
    print(f"curves in {options.out}")


if __name__ == "__main__":
    run_command(main, "plot_log")
