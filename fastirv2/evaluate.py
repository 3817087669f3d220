"""Score a trained network on a validation set: `python -m fastirv2.evaluate`, or with torchrun on several GPUs."""

from __future__ import annotations

import contextlib
import io
import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import tyro
from tyro.conf import Positional, arg

from fastirv2.data.dataset import Records
from fastirv2.data.faults import Faults, OnBad
from fastirv2.data.pictures import picture_of
from fastirv2.data.records import open_records
from fastirv2.data.samples import check_input, needs_sizes
from fastirv2.errors import DataError, UsageError, put, run_command, short_options
from fastirv2.models.weight_files import Which
from fastirv2.report.accuracy import Score
from fastirv2.report.classes import ByClass, make_folder, write_tables
from fastirv2.report.console import Console
from fastirv2.scoring.lists import labels_among, read_excluded, read_real
from fastirv2.scoring.network import Network, enough_memory
from fastirv2.scoring.outcomes import Outcomes, outcomes_of
from fastirv2.scoring.progress import progress
from fastirv2.scoring.protocol import Protocol, choose_protocol
from fastirv2.trained import Trained, open_trained
from fastirv2.training.distributed import Process, from_all, join, leaving, together
from fastirv2.training.engine import choose_precision
from fastirv2.training.plan import Amp

PROGRAM = "fastirv2.evaluate"
_BATCH = {"cuda": 256, "cpu": 32}


@dataclass(frozen=True)
class Options:
    """Score a trained network on a validation set. Start it with torchrun for several GPUs; the score is the same."""

    checkpoint: Positional[Annotated[str, arg(metavar="CHECKPOINT")]]
    """A run folder (its best weights), a checkpoint of ours, a safetensors file, or a file of another program."""
    val: Annotated[str, arg(metavar="PATH")]
    """Validation set: an LMDB folder, several joined by commas, a folder of class folders, or a list of "path label" lines."""
    arch: Literal["paper", "slim"] | None = None
    """The network, where CHECKPOINT does not say it."""
    weights: Which = "auto"
    """A checkpoint's own weights (raw) or their running averages (ema); auto: the averages where there are any."""
    crops: Literal[1, 12, 144] = 1
    """Crops of each image, over which softmax is averaged."""
    resize: Annotated[int | None, arg(metavar="N")] = None
    """Side in pixels that images are resized to before they are cropped; as the network was trained unless given."""
    resize_mode: Literal["warp", "short"] | None = None
    """Both sides to --resize, or only the shorter one, which keeps the aspect; as it was trained unless given."""
    crop: Annotated[int | None, arg(metavar="N")] = None
    """Side in pixels of the crop; as it was trained unless given."""
    interpolation: Literal["bilinear", "bicubic"] | None = None
    """The filter of the resize, antialiased; as it was trained unless given."""
    exclude: Annotated[str | None, arg(metavar="FILE")] = None
    """Leave out the images of this list: a file name a line (a path where several have it), or its number in the order of
    file names, from 1, as in ImageNet's list of 1,762."""
    real: Annotated[str | None, arg(metavar="FILE")] = None
    """Take labels from this JSON list of lists, one for each image in the order of file names, as ImageNet-ReaL's real.json."""
    tables: Annotated[str | None, arg(metavar="DIR")] = None
    """Write classes.csv, confusion.csv and worst.png, a picture of the worst classes, into this folder."""
    json: bool = False
    """Print the score as one line of JSON."""
    on_bad: OnBad = "stop"
    """What to do about an image that cannot be decoded: stop, or skip it and score the others."""
    batch: Annotated[int, arg(metavar="N")] = 0
    """Crops that a device takes at once; 0: 256 on a GPU, 32 on a CPU."""
    amp: Amp = "auto"
    """Precision, as in training; auto: bf16 where the device computes in it, else fp32."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    """auto: a GPU for each rank if there are any, else the CPU."""

    def __post_init__(self) -> None:
        if self.batch < 0:
            raise UsageError(f"--batch {self.batch} must not be negative")


@dataclass(frozen=True)
class Task:
    """A network, its validation set, and what counts as right: all that there is before the first batch."""

    trained: Trained
    records: Records
    protocol: Protocol
    labels: np.ndarray  # int64 (N,), each record's own, among the network's classes
    right: np.ndarray  # int64 (N, K), those that count as right
    counted: np.ndarray  # bool (N,), the records that are scored
    notes: list[str]


def prepare(options: Options) -> Task:
    """Open the data, the lists and then the network; raises UsageError and DataError."""
    records = open_records(options.val)
    counted, notes = np.ones(len(records), bool), list(records.warnings)
    if options.exclude:
        excluded, absent = read_excluded(options.exclude, records)
        counted = ~excluded
        notes += [f"of the images that {options.exclude} lists, {absent:,} are not in {options.val}"] if absent else []
    trained = open_trained(options.checkpoint, options.arch, options.weights)
    protocol = choose_protocol(
        trained.input,
        crops=options.crops,
        resize=options.resize,
        resize_mode=options.resize_mode,
        crop=options.crop,
        interpolation=options.interpolation,
    )
    notes += check_input(records, protocol.input, training=False, crops=options.crops)
    if needs_sizes(protocol.input, training=False, crops=options.crops):
        _ = records.sizes  # read here, where every rank ends with one sentence if it cannot be done
    Faults(records, options.on_bad).refuse_headless()
    labels = labels_among(trained.classes, records, trained.source)
    right = labels[:, None]
    if options.real:
        right, has_any = read_real(options.real, records, len(trained.classes))
        counted = counted & has_any
    if not counted.any():
        raise DataError(f"no image of {records.path} is left to be scored")
    return Task(trained, records, protocol, labels, right, counted, notes)


def evaluate(options: Options, process: Process, console: Console) -> None:
    """Score, and say the score on the first rank."""
    amp = choose_precision(options.amp, process.device)
    if options.tables:
        together(lambda: make_folder(Path(options.tables)))  # before hours of work for them
    task = together(lambda: prepare(options))
    for note in task.notes:
        console.warn(short_options(note))
    network = Network(task.trained, process.device, amp)
    batch = options.batch or _BATCH[process.device.type]
    with progress(len(task.records), "images", shown=process.first and not options.json) as advance:
        outcomes, skipped = outcomes_of(
            network, task.records, task.labels, task.right, task.protocol, process,
            batch=batch, on_bad=options.on_bad, advance=lambda images: advance(images * process.world),
        )  # fmt: skip
    for sentence in (sentence for part in from_all(skipped) for sentence in part):
        console.warn(f"{sentence}; it is left out")
    if process.first:
        report(options, replace(task, counted=task.counted & outcomes.known), outcomes, amp)


def report(options: Options, task: Task, outcomes: Outcomes, amp: str) -> None:
    """Print the score with its protocol, and write the tables."""
    counted = task.counted
    if not counted.any():
        raise DataError(f"none of the images of {task.records.path} that are to be scored can be decoded")
    place, loss = outcomes.place[counted], outcomes.loss[counted]
    score = Score(len(place), int((place < 1).sum()), int((place < 5).sum()), float(loss.mean()))
    left_out = len(task.records) - score.images
    lines = _introduction(options, task, amp, left_out) + score.lines()
    try:
        put(json.dumps(_table(options, task, score, amp, left_out)) if options.json else "\n".join(lines))
    finally:
        if options.tables:
            numbers = np.flatnonzero(counted)
            columns = (task.labels[counted], outcomes.predicted[counted], outcomes.confidence[counted], place < 1, place < 5)
            found = ByClass(task.trained.classes, numbers, *columns)
            write_tables(found, Path(options.tables), lambda number: picture_of(task.records, number))


def _introduction(options: Options, task: Task, amp: str, left_out: int) -> list[str]:
    """Say what is scored, on what and how."""
    trained, results = task.trained, task.trained.results
    known = [f"{name} {results[name]}" for name in ("recipe", "epoch") if results.get(name) is not None]
    averaged = {"ema": ["averaged weights"], "raw": ["weights as trained"]}.get(str(results.get("weights")), [])
    about = ", ".join([f"{trained.arch} network", f"{len(trained.classes):,} classes", *averaged, *known])
    of = f", {left_out:,} others left out" if left_out else ""
    real = f", labels of {options.real}" if options.real else ""
    return [
        f"{trained.source}: {about}",
        f"{len(task.records) - left_out:,} images of {task.records.path}{of}{real}",
        f"{task.protocol}; {amp}",
    ]


def _table(options: Options, task: Task, score: Score, amp: str, left_out: int) -> dict[str, Any]:
    """Return the score with all that it depends on, as plain values."""
    trained = task.trained
    return {
        "checkpoint": trained.source, "arch": trained.arch, "classes": len(trained.classes),
        "weights": trained.results.get("weights"), "val": task.records.path, "val_digest": task.records.digest,
        "left_out": left_out, "exclude": options.exclude, "real": options.real,
        "protocol": {**task.protocol.table(), "normalise": trained.input.normalise, "amp": amp}, **score.table(),
    }  # fmt: skip


def command() -> int:
    """Read the command line and do what it says; return the exit code."""
    first = os.environ.get("RANK", "0") == "0"
    with contextlib.nullcontext() if first else contextlib.redirect_stdout(io.StringIO()):
        description = Options.__doc__
        options = tyro.cli(
            tyro.conf.configure(tyro.conf.FlagCreatePairsOff)(Options),
            prog=f"python -m {PROGRAM}", description=description, console_outputs=first,
        )  # fmt: skip
    with leaving():
        process = join(options.device)
        with enough_memory():
            evaluate(options, process, Console(first=first))
    return 0


if __name__ == "__main__":
    run_command(command, PROGRAM, short=True)
