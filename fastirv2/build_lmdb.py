"""fastirv2-build-lmdb: image folders, lists and tars become an LMDB of verified JPEGs in one random order."""

from __future__ import annotations

import errno
import os
import re
import signal
import sys
import time
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from tyro.conf import Positional, arg

from fastirv2.building.images import Preparer, Resize, Result, Task
from fastirv2.building.partial import (
    check_apart,
    check_out,
    disk_errors,
    make_parent,
    only_builder,
    open_partial,
    partial_folder,
    publish,
)
from fastirv2.building.progress import Progress
from fastirv2.building.sources import Source, open_source
from fastirv2.building.summary import print_summary
from fastirv2.building.workers import WorkerDiedError, Workers
from fastirv2.building.writer import FORMAT_VERSION, RecordWriter, key_digits, write_dataset
from fastirv2.data.counter import permutation
from fastirv2.errors import DataError, StoppedError, UsageError, run_command, say, tell
from fastirv2.host import available_cpus

PROGRAM = "fastirv2-build-lmdb"
_OF_THE_FILE = {  # the reasons for which a file cannot be read that are the file's own
    errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.ELOOP, errno.ENAMETOOLONG, errno.ENXIO
}  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What a build is made from and how; the field's docstrings are the help text."""

    source: Positional[Annotated[str, arg(metavar="SOURCE")]] = ""
    """Class folders, class tars, a tar of either, a list of "path label" lines, or, with --val-labels, one folder or tar."""
    out: Positional[Annotated[str, arg(metavar="OUT")]] = ""
    """The LMDB folder to make; built in OUT.partial, which the same command goes on from."""
    root: Annotated[str | None, arg(metavar="DIR")] = None
    """The folder that the paths of a list file are relative to; the list's own unless given."""
    val_labels: Annotated[str | None, arg(metavar="FILE")] = None
    """For flat validation images: a label (class index or name) a line, in their file-name order, or "name label" lines."""
    classes: Annotated[str | None, arg(metavar="FILE")] = None
    """A file with the classes' names, a line each, in label order."""
    resize: Annotated[str, arg(metavar="none|WxH|short:N")] = "none"
    """none, WIDTHxHEIGHT (warps), or short:N (keeps the aspect, never enlarges)."""
    quality: Annotated[int, arg(metavar="Q")] = 95
    """JPEG quality of the images that are encoded again, 1 to 100."""
    workers: Annotated[int | None, arg(metavar="N")] = None
    """Processes that decode; as many as there are CPUs unless given."""
    seed: Annotated[int, arg(metavar="S")] = 0
    """The seed of the global random order."""
    limit: Annotated[int | None, arg(metavar="N")] = None
    """Take only the first images of the random order, this many."""
    part: Annotated[str | None, arg(metavar="I/N")] = None
    """i/n: take the i-th of n equal slices of the random order, i from 1."""
    max_bad: Annotated[float, arg(metavar="SHARE")] = 0.001
    """The share of images that may be rejected, 0 to 1."""
    overwrite: bool = False
    """Replace OUT, and an OUT.partial that was begun with other settings."""
    check: Annotated[str | None, arg(metavar="OUT")] = None
    """Check this finished LMDB folder instead of building one."""
    decode: bool = False
    """With --check: decode every image too."""

    def __post_init__(self) -> None:
        if self.check is None and not (self.source and self.out):
            raise UsageError("give SOURCE and OUT, or --check OUT")
        if self.check is not None and (self.source or self.out):
            raise UsageError("--check takes its folder alone; leave SOURCE and OUT out")
        if self.decode and self.check is None:
            raise UsageError("--decode goes with --check")
        if self.check is not None:
            idle = [each.name for each in fields(self) if getattr(self, each.name) != each.default]
            for name in (name for name in idle if name not in ("check", "decode", "workers")):
                raise UsageError(f"--{name.replace('_', '-')} goes with building an LMDB; leave it out beside --check")
        for name, low, high in (("quality", 1, 100), ("workers", 1, 4096), ("limit", 1, None), ("max_bad", 0, 1)):
            value = getattr(self, name)
            if value is not None and not (value >= low and (high is None or value <= high)):
                bound = f"between {low} and {high}" if high is not None else f"at least {low}"
                raise UsageError(f"--{name.replace('_', '-')} {value} must be {bound}")

    def slice(self) -> tuple[int, int]:
        """Return i and n of --part (1 and 1 when it is not given)."""
        if self.part is None:
            return 1, 1
        numbers = re.fullmatch(r"(\d{1,9})/(\d{1,9})", self.part, re.ASCII)
        if not numbers or not 1 <= int(numbers[1]) <= int(numbers[2]):
            raise UsageError(f"--part {self.part} must be i/n with i from 1 to n, as in 2/8")
        return int(numbers[1]), int(numbers[2])


def main() -> None:
    """Run the command line."""
    run_command(lambda: _run(parse_options(sys.argv[1:])), PROGRAM)


def parse_options(arguments: list[str]) -> Options:
    """Return the options of a command line; ends the process with exit code 2 for an unknown one."""
    return tyro.cli(Options, prog=PROGRAM, args=arguments, description=__doc__, config=(tyro.conf.FlagCreatePairsOff,))


def build(options: Options) -> str:
    """Make OUT, or go on with making it, print what it holds, and return the line that sums it up."""
    begun = time.monotonic()
    resize = Resize.parse(options.resize)
    part = options.slice()
    out = Path(os.path.realpath(options.out))
    check_out(out, overwrite=options.overwrite)
    check_apart(options.source, out)
    source = open_source(options.source, options.root, options.classes, options.val_labels)
    for note in source.notes:
        say(f"{PROGRAM}: {note}")
    order = stored_order(len(source), options.seed, options.limit, part)
    settings = {
        "format_version": FORMAT_VERSION,
        "source": source.digest(),
        "images": len(source),
        "resize": str(resize),
        "quality": options.quality,
        "seed": options.seed,
        "limit": options.limit,
        "part": options.part and "{}/{}".format(*part),
    }
    make_parent(out)
    with only_builder(out), disk_errors(partial_folder(out), len(order)):
        check_out(out, overwrite=options.overwrite)  # another builder may have finished it while SOURCE was listed
        folder = open_partial(out, settings, overwrite=options.overwrite)
        if not (folder / "dataset.json").exists():
            workers = options.workers or available_cpus()
            fill(folder, source, order, Preparer(resize, options.quality), workers, options.max_bad)
            write_dataset(folder, source.classes, settings, (source.names[position] for position in order))
        publish(out, overwrite=options.overwrite)
    return print_summary(out, time.monotonic() - begun)


def stored_order(count: int, seed: int, limit: int | None, part: tuple[int, int]) -> np.ndarray:
    """Return the source positions (int64) to store, in order: a slice of the first `limit` of the random order."""
    order = permutation(seed, 0, count)[:limit]
    i, n = part
    order = order[(i - 1) * len(order) // n : i * len(order) // n]
    if not len(order):
        raise DataError(f"--part {i}/{n} of {min(count, limit or count):,} images holds none; choose a smaller n")
    return order


def fill(folder: Path, source: Source, order: np.ndarray, job: Preparer, workers: int, max_bad: float) -> None:
    """Store the images of `order`, going on after what `folder` holds already.

    Raises DataError for too many rejected images or a dead worker, and StoppedError for a signal.
    """
    writer = RecordWriter(folder, key_digits(len(order)))
    try:
        append_all(writer, source, order, job, workers)
        check_share(writer, len(order), max_bad)
    except WorkerDiedError as error:
        raise DataError(
            f"{ended(error)}, as others before; give the same command to go on, with fewer --workers, or without that image"
        ) from error
    except StoppedError as error:
        if writer.whole:
            writer.commit()
        raise StoppedError(
            f"stopped with {writer.committed:,} of {len(order):,} images in {folder}; give the same command to go on"
        ) from error
    finally:
        writer.close()


def append_all(writer: RecordWriter, source: Source, order: np.ndarray, job: Preparer, workers: int) -> None:
    """Prepare in parallel and append in order what the writer does not hold yet."""
    left = order[writer.done :]
    if not len(left):
        return
    tasks = (Task(source.place(position), int(source.labels[position])) for position in left)
    positions, read = iter(left), 0
    with Progress(len(order), writer.done) as progress:

        def replaced(error: WorkerDiedError) -> None:
            progress.say(f"{ended(error)}; another one tries again")

        count = min(workers, len(left))
        modules = ("tyro", *job.modules)  # tyro: a worker loads this file too
        with Workers(job, count, modules=modules, weigh=stored_bytes, on_death=replaced) as pool:
            for results in pool.map(tasks, len(left)):
                for result in results:
                    position = next(positions)
                    if result.errno:
                        check_source(source, position, result)
                    name = source.names[position] if result.reason else ""
                    writer.add(name, int(source.labels[position]), result)
                    read += result.read
                progress.show(writer.done, writer.rejected, read)
        writer.commit()


def ended(error: WorkerDiedError) -> str:
    """Say which worker ended, and how; the kernel kills with signal 9 for memory."""
    memory = "; out of memory?" if error.exit_code in (-signal.SIGKILL, 137) else ""
    return f"worker process {error.process} ended ({error.how}{memory}) while working on {error.task.place.path}"


def check_source(source: Source, position: int, result: Result) -> None:
    """Raise DataError where an image that cannot be read says something of the source, and not of that image.

    A disk that fails or is gone for a while must not cost images that are there: the build ends, and goes on later.
    """
    place = source.place(position)
    if source.packed:
        is_its_own = place.length == 0  # a link to what the tar does not hold: the tar itself can always be read
    else:
        folder = os.path.dirname(place.path)
        is_there = os.path.exists(source.folder) and (source.listed or os.path.exists(folder))
        is_open = result.errno not in (errno.EACCES, errno.EPERM) or os.access(folder, os.R_OK | os.X_OK)  # a ticket may expire
        is_its_own = is_there and is_open and result.errno in _OF_THE_FILE
    if not is_its_own:
        raise DataError(f"{place.path} {result.reason}; when that is mended, the same command goes on")


def stored_bytes(result: Result) -> int:
    """Return the bytes that a result will take in the LMDB."""
    return result.header + result.length


def check_share(writer: RecordWriter, count: int, max_bad: float) -> None:
    """Raise DataError when more images were rejected than allowed, or all."""
    report = writer.folder / "rejected.jsonl"
    if not writer.stored:
        raise DataError(f"none of the {count:,} images can be used; the reasons are in {report}")
    if writer.rejected > max_bad * count:
        raise DataError(
            f"{writer.rejected:,} of {count:,} images were rejected, more than --max-bad {max_bad:g} allows; the reasons are "
            f"in {report}: give a larger --max-bad to leave them out, or mend them, remove {writer.folder} and build again"
        )


def _run(options: Options) -> None:
    """Build or check; SIGTERM and Ctrl-C end it, and what is written so far stays."""
    signal.signal(signal.SIGTERM, _stop)
    if signal.getsignal(signal.SIGINT) != signal.SIG_IGN:  # as in a shell's background job
        signal.signal(signal.SIGINT, _stop)
    if options.check is not None:
        from fastirv2.building.check import check

        try:
            tell(check(Path(options.check), decode=options.decode, workers=options.workers or available_cpus()))
        except StoppedError as error:
            raise StoppedError("the check was stopped by a signal; give the same command to begin it anew") from error
    else:
        tell(build(options))


def _stop(number: int, _: object) -> None:
    """End what runs; a second signal does not end it in another way."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise StoppedError(f"stopped by {signal.Signals(number).name}; give the same command to go on")


if __name__ == "__main__":
    main()
