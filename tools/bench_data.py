"""Measure the input: images/s of the loader, beside other ways to the same batches, in the same run.

From images of 500 × 375 pixels as they are, and from records of the size that windows are cut from; beside DALI's own Caffe
reader with the same operations, and beside Pillow in a torch DataLoader with as many workers as the loader has threads.
Feeding alone, without decoding, stands beside DALI's reader alone, and the Python of the loader's main thread is timed for
itself, with the records in the page cache and without.

`bench_data.py --build` measures fastirv2-build-lmdb instead; `--build --help` lists its options.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import bench_build
import photographs
import torch
import tyro
from input_yardsticks import caffe_reader, pillow_loader, readers_alone

from fastirv2.data.loader import Loader
from fastirv2.data.records import open_records
from fastirv2.data.samples import InputConfig, TrainOrder
from fastirv2.errors import UsageError, run_command
from fastirv2.report.machine import spread, write_json
from fastirv2.training.distributed import Process, join

RATIOS = {  # of the first to the second
    "loader / readers.caffe": ("loader", "readers.caffe"),
    "loader / Pillow": ("loader", "Pillow"),
    "loader, resized / Pillow, resized": ("loader, resized", "Pillow, resized"),
    "loader, resized / Pillow": ("loader, resized", "Pillow"),
    "reading / readers.caffe, reading": ("reading", "readers.caffe, reading"),
}


@dataclass(frozen=True)
class Options:
    """Measure how many images a second the input makes ready for training on this machine."""

    data: Path | None = None
    """An LMDB folder to measure over; without it, and for everything else, JPEGs are made."""
    images: int = 1000
    """JPEGs to make, of 500 × 375 pixels and about 100 KB like ImageNet's."""
    side: int | None = None
    """The longer side of the images in pixels, if other."""
    batch: int = 64
    """Images a batch."""
    seconds: float = 5.0
    """Length of one measurement."""
    rounds: int = 5
    """Measurements of each, taken in turn."""
    device: str = "auto"
    """auto, cpu or cuda."""
    input: tyro.conf.OmitArgPrefixes[InputConfig] = InputConfig()  # noqa: RUF009
    """The input's own options."""
    json: Path | None = None
    """Write the result into this file too."""

    def __post_init__(self) -> None:
        if self.data is None and self.images < self.batch:
            raise UsageError(f"--images {self.images} must be at least a batch, --batch {self.batch}")
        if self.input.augment != "crop" or self.input.resize_mode != "warp" or self.input.sizes:
            raise UsageError("the other ways warp, crop and mirror: leave --augment, --resize-mode and --sizes as they are")


@dataclass(frozen=True)
class Data:
    """The same images as an LMDB and as files, as they are, and warped to the size that windows are cut from."""

    lmdb: Path
    files: Path | None = None
    resized: Path | None = None
    resized_files: Path | None = None


def make_data(folder: Path, options: Options) -> Data:
    """Make the images and build the LMDBs."""
    lmdb, files, resized, resized_files = (folder / name for name in ("lmdb", "files", "resized", "resized-files"))
    photographs.write_photographs(photographs.Options(files, options.images, options.side))
    for out, resize in ((lmdb, "none"), (resized, f"{options.input.resize}x{options.input.resize}")):
        line = [sys.executable, "-m", "fastirv2.build_lmdb", files, out, "--resize", resize]
        subprocess.run(line, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = open_records(resized)
    resized_files.mkdir()
    for number in range(len(records)):
        (resized_files / f"{number:06}.jpg").write_bytes(records[number][0])
    return Data(lmdb, files, resized, resized_files)


def rate(batch: Callable[[], object], options: Options) -> float:
    """Return images/s over one measurement, counted in whole batches as they come out."""
    begun, batches = perf_counter(), 0
    while perf_counter() - begun < options.seconds:
        batch()
        batches += 1
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return batches * options.batch / (perf_counter() - begun)


def train_order(data: Path, options: Options) -> TrainOrder:
    """Return the order of training over an LMDB."""
    records = open_records(data)
    return TrainOrder(records, options.input, seed=0, global_batch=options.batch, world=1, rank=0, parts=1, step=0)


def make_loader(data: Path, options: Options, process: Process) -> Loader:
    """Return the trainer's own loader over an LMDB."""
    where = {"batch": options.batch, "device": process.device, "cpus": process.cpus}
    return Loader(open_records(data), train_order(data, options), options.input, **where)


def main_thread_microseconds(data: Path, options: Options, *, cold: bool, batches: int = 12) -> float:
    """Return the time that drawing and feeding a record takes the loader's main thread, median over batches, in µs."""
    records, order = open_records(data), train_order(data, options)
    ahead = [order() for _ in range(batches)]
    file = os.open(data / "data.mdb", os.O_RDONLY)
    if cold:
        os.fsync(file)
        os.posix_fadvise(file, 0, 0, os.POSIX_FADV_DONTNEED)
    os.close(file)
    order = train_order(data, options)
    seconds = []
    for fed in islice(ahead, batches):
        begun = perf_counter()
        order()
        records.feed(fed.numbers)
        seconds.append(perf_counter() - begun)
    return median(seconds) / options.batch * 1e6


def ways_to_batches(data: Data, options: Options, process: Process) -> dict[str, Callable[[], Any]]:
    """Return what is measured: each gives one batch a call."""
    sides = {"batch": options.batch, "resize": options.input.resize, "crop": options.input.crop}
    loader = make_loader(data.lmdb, options, process)
    ways: dict[str, Callable[[], Any]] = {"loader": loader.__next__}
    ways["readers.caffe"] = caffe_reader(
        data.lmdb, threads=loader.threads, hw_decoder_load=options.input.hw_decoder_load, **sides
    )
    if data.resized and data.files and data.resized_files:
        ways["loader, resized"] = make_loader(data.resized, options, process).__next__
        ways["Pillow"] = pillow_loader(data.files, workers=loader.threads, **sides)
        ways["Pillow, resized"] = pillow_loader(data.resized_files, workers=loader.threads, **sides)
    feeding = {"batch": options.batch, "threads": loader.threads}
    return ways | readers_alone(open_records(data.lmdb), train_order(data.lmdb, options), data.lmdb, **feeding)


def measure(data: Data, options: Options) -> dict[str, Any]:
    """Measure everything in turn, each warmed up first."""
    process = join(options.device)
    python = {
        name: spread([main_thread_microseconds(data.lmdb, options, cold=name == "cold") for _ in range(options.rounds)])
        for name in ("warm", "cold")
    }
    ways = ways_to_batches(data, options, process)
    for batch in ways.values():
        for _ in range(4):
            batch()
    rates: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, batch in ways.items():
            rates[name].append(rate(batch, options))
    ratios = {
        name: spread([ours / theirs for ours, theirs in zip(rates[one], rates[other], strict=True)])
        for name, (one, other) in RATIOS.items()
        if one in rates and other in rates
    }
    return {
        "batch": options.batch, "resize": options.input.resize, "crop": options.input.crop, "augment": options.input.augment,
        "threads": options.input.threads or process.cpus, "records": len(open_records(data.lmdb)),
        "device": str(process.device), "seconds": options.seconds, "rounds": options.rounds,
        "images_per_second": {name: spread(values) for name, values in rates.items()}, "ratios": ratios,
        "main_thread_microseconds_per_record": python,
    }  # fmt: skip


def print_result(result: dict[str, Any]) -> None:
    """Print what was measured as a table."""
    print(f"{result['device']}, {result['threads']} threads, batches of {result['batch']}, {result['records']:,} records")
    for name, figures in result["images_per_second"].items():
        print(f"{name:34} {figures['median']:10,.0f} images/s   ({figures['min']:,.0f} to {figures['max']:,.0f})")
    for name, ratio in result["ratios"].items():
        print(f"{name:34} {ratio['median']:10.2f}            ({ratio['min']:.2f} to {ratio['max']:.2f})")
    for name, figures in result["main_thread_microseconds_per_record"].items():
        spans = f"({figures['min']:.2f} to {figures['max']:.2f})"
        print(f"{'main thread a record, ' + name:34} {figures['median']:10.2f} µs         {spans}")


def main() -> None:
    """Read the command line, measure, print a table."""
    if "--build" in sys.argv[1:]:
        return bench_build.main([word for word in sys.argv[1:] if word != "--build"])
    options = tyro.cli(Options, description=__doc__)
    with tempfile.TemporaryDirectory(prefix="bench_data-") as folder:
        result = measure(Data(options.data) if options.data else make_data(Path(folder), options), options)
    print_result(result)
    return write_json(options.json, result)


if __name__ == "__main__":
    run_command(main, "bench_data")
